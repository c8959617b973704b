"""A hub's configuration file, `hub.toml`: what is more than an option of `chappe hub start`.

Each part is one table of the file, and belongs to the package that acts on it. Names of files in it are
relative to the file's directory.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from chappe.bus.amqp_config import Amqp
from chappe.core.errors import Invalid


class HubConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file's tables; None: it has none of that name."""

    amqp: Amqp | None = None


def load(path: Path) -> HubConfig:
    """Read a configuration file. Raises Invalid, naming the file and what is wrong in it."""
    try:
        config = msgspec.toml.decode(path.read_bytes(), type=HubConfig)
    except OSError as e:
        raise Invalid(f"{path} cannot be read: {e.strerror}", field="config") from e
    except (msgspec.MsgspecError, ValueError) as e:
        raise Invalid(f"{path}: {e}", field="config") from e
    directory = path.absolute().parent
    if config.amqp is None:
        return config
    return msgspec.structs.replace(config, amqp=config.amqp.at(directory))
