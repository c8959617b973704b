"""The section `[spool]` of site.toml."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class SpoolConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where simulations leave messages for the agent to bring on."""

    enabled: Annotated[
        bool,
        Meta(
            description="The agent reads spool files, and Jobs find in CHAPPE_EMIT_SPOOL where to leave them."
        ),
    ] = True
    folders: Annotated[
        list[str],
        Meta(
            description="Further folders with spool files, relative to this directory; `*` may stand in "
            "them. data/spool is always read, and so is the CHAPPE_SPOOL of the agent's environment."
        ),
    ] = []
    scan_s: Annotated[
        float,
        Meta(
            ge=0.1,
            le=60.0,
            description="Seconds between two looks for what other machines wrote; of this machine's "
            "writes the kernel tells at once.",
        ),
    ] = 0.5
    keep_days: Annotated[
        float,
        Meta(
            ge=0.01,
            le=365.0,
            description="Days after which a drained file is removed whose writer did not say that it is "
            "done, and ran on another machine.",
        ),
    ] = 7.0
    archive: Annotated[
        str,
        Meta(
            description="Folder, relative to this directory, for drained files. Empty: they are removed."
        ),
    ] = ""
