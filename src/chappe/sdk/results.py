"""A Job's one result file, as Python values.

Results are data: nothing here unpickles. NumPy is used where it is installed; without it, arrays come
as the file's bytes, and so do pictures and Arrow tables.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from chappe.sdk.errors import Invalid

#: What NumPy and zipfile raise about bytes that are not what they should be, or claim to be enormous.
_BROKEN = (
    ValueError,
    LookupError,
    EOFError,
    OSError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    zipfile.BadZipFile,
    zlib.error,
)


class ResultFile(msgspec.Struct, frozen=True):
    """A result as it travelled: its media type and its bytes (≤ 1 MiB)."""

    media: str
    body: bytes

    def decode(self) -> Any:
        """The value: JSON and MessagePack decoded, npy as an array, npz as a dict of arrays, else bytes.

        Raises Invalid when the bytes are not what the media type says.
        """
        try:
            return _decode(self.media, self.body)
        except (*_BROKEN, msgspec.DecodeError) as e:
            raise Invalid(f"the result is no {self.media}: {e}", field="result") from None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the bytes to `path`, and return it."""
        target = Path(path)
        target.write_bytes(self.body)
        return target


def _decode(media: str, body: bytes) -> Any:
    if media == "application/json":
        return msgspec.json.decode(body)
    if "msgpack" in media:
        return msgspec.msgpack.decode(body)
    if ("npy" in media or "npz" in media) and find_spec("numpy") is not None:
        import numpy as np  # here: most results need no NumPy, and it takes 0.1 s to import

        loaded = np.load(io.BytesIO(body), allow_pickle=False)
        return dict(loaded) if "npz" in media else loaded
    return body
