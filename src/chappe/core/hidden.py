"""Keeps secrets out of logs and tracebacks: a struct that holds one does not show it."""

from __future__ import annotations

from typing import ClassVar

SECRETS = frozenset({"token", "code", "password", "old_password", "new_password"})


class HidesToken:
    """Mixin for msgspec structs with a token, a code or a password: their `repr` has dots in its place."""

    __slots__ = ()
    __struct_fields__: ClassVar[tuple[str, ...]]

    def __repr__(self) -> str:
        shown = [
            f"{name}={'...' if name in SECRETS and value else repr(value)}"
            for name in self.__struct_fields__
            for value in [getattr(self, name)]
        ]
        return f"{type(self).__name__}({', '.join(shown)})"
