"""The directories below data/ in which Jobs work."""

from __future__ import annotations

import os
from pathlib import Path

from chappe.link.files import PathEscape, make_below

_PRIVATE = 0o700


class Directories:
    """Makes them, with `mode`. Lives as long as one batch: what it has made, it need not resolve again."""

    def __init__(self, data: Path, mode: int) -> None:
        self._data = data
        self._mode = mode
        self._made: dict[str, str] = {}

    def make(self, relative: str, own: bool) -> str:
        """The absolute path of a directory below data/, made if need be. Raises PathEscape, OSError."""
        if not own:
            return self._shared(relative)
        made = self._parent(os.path.dirname(relative))
        path = f"{made}/{os.path.basename(relative)}"
        try:
            self._mkdir(path)
        except FileExistsError:
            # From a start of this attempt that was cut short; a link in its place would lead elsewhere.
            if os.path.islink(path) or not os.path.isdir(path):
                raise PathEscape(f"{path} is not a directory: remove it", field="workdir") from None
        return path

    def _shared(self, relative: str) -> str:
        """A directory that several Jobs of the batch may have in common: its path is resolved once."""
        made = self._made.get(relative)
        if made is None:
            made = self._made[relative] = str(make_below(self._data, relative, self._mode))
        return made

    def _parent(self, relative: str) -> str:
        """The directory that holds a Job's attempts. What can be made new below a directory that is known
        is no link, and need not be resolved: that is most of the cost of a directory."""
        if relative in self._made:
            return self._made[relative]
        above, name = os.path.split(relative)
        path = f"{self._shared(above)}/{name}"
        try:
            self._mkdir(path)
        except FileExistsError:
            return self._shared(relative)
        self._made[relative] = path
        return path

    def _mkdir(self, path: str) -> None:
        """Make a directory with the Site's mode for those of Jobs; the head's own umask is the strictest."""
        os.mkdir(path)
        if self._mode != _PRIVATE:
            os.chmod(path, self._mode)
