"""Frozen sets of Jobs: what matched a filter at one moment, to be counted first and acted upon then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import msgspec

from chappe.sdk import acts
from chappe.sdk.errors import Invalid
from chappe.wire.bulk import ActView, SelectionView, Verb
from chappe.wire.jobs import EnvelopeChange

if TYPE_CHECKING:
    from chappe.sdk.engine import Engine
    from chappe.sdk.loop import Loop

__all__ = ["ActView", "Changes", "Selection", "SelectionView", "Verb", "change_of"]

Told = Callable[[ActView], None]


class Changes(TypedDict, total=False):
    """What an update changes.

    priority: higher runs first. tags: to set. untag: keys of tags to remove. data: members that replace
    those of the same names; None removes one.
    """

    priority: int
    tags: Mapping[str, str]
    untag: Sequence[str]
    data: Mapping[str, Any]


def change_of(**changes: Unpack[Changes]) -> EnvelopeChange:
    """The change on the wire. Raises Invalid for what is no change."""
    unknown = changes.keys() - Changes.__annotations__.keys()
    if unknown or not changes:
        known = ", ".join(Changes.__annotations__)
        what = f"there is no {min(unknown)!r} to change" if unknown else "say what to change"
        raise Invalid(f"{what} (there are: {known})", field="change")
    try:
        return msgspec.convert(changes, EnvelopeChange)
    except msgspec.ValidationError as e:
        raise Invalid(f"a change has the wrong type: {e}", field="change") from None


class _Frozen:
    """What both faces share: which Jobs, and how many."""

    def __init__(self, view: SelectionView) -> None:
        self.view = view

    @property
    def count(self) -> int:
        """How many Jobs it holds; no others will come in."""
        return self.view.count

    def __len__(self) -> int:
        return self.view.count

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.count} jobs>"


class AsyncSelection(_Frozen):
    """Jobs that matched when it was made. Each act returns how many Jobs got which verdict."""

    def __init__(self, engine: Engine, view: SelectionView) -> None:
        super().__init__(view)
        self._engine = engine

    async def act(
        self, verb: Verb, change: EnvelopeChange | None = None, told: Told = lambda _act: None
    ) -> dict[str, int]:
        """Any act by its name; `told` is called as it goes on."""
        return await acts.on_selection(self._engine, verb, self.view, change, told)

    async def cancel(self) -> dict[str, int]:
        """Cancel all that have not ended."""
        return await self.act("cancel")

    async def retry(self) -> dict[str, int]:
        """Run again what failed or was cancelled, as far as the signatures allow."""
        return await self.act("retry")

    async def delete(self) -> dict[str, int]:
        """Delete what has ended."""
        return await self.act("delete")

    async def hold(self) -> dict[str, int]:
        """Grant none of them until they are released; what runs goes on."""
        return await self.act("hold")

    async def release(self) -> dict[str, int]:
        """Let held Jobs be granted again."""
        return await self.act("release")

    async def update(self, **changes: Unpack[Changes]) -> dict[str, int]:
        """Change priority, tags or data (see Changes)."""
        return await self.act("update", change_of(**changes))


class Selection(_Frozen):
    """Jobs that matched when it was made. Each act returns how many Jobs got which verdict."""

    def __init__(self, loop: Loop, engine: Engine, view: SelectionView) -> None:
        super().__init__(view)
        self._loop = loop
        self._engine = engine

    def act(
        self, verb: Verb, change: EnvelopeChange | None = None, told: Told = lambda _act: None
    ) -> dict[str, int]:
        """Any act by its name; `told` is called as it goes on, on another thread."""
        return self._loop.run(acts.on_selection(self._engine, verb, self.view, change, told))

    def cancel(self) -> dict[str, int]:
        """Cancel all that have not ended."""
        return self.act("cancel")

    def retry(self) -> dict[str, int]:
        """Run again what failed or was cancelled, as far as the signatures allow."""
        return self.act("retry")

    def delete(self) -> dict[str, int]:
        """Delete what has ended."""
        return self.act("delete")

    def hold(self) -> dict[str, int]:
        """Grant none of them until they are released; what runs goes on."""
        return self.act("hold")

    def release(self) -> dict[str, int]:
        """Let held Jobs be granted again."""
        return self.act("release")

    def update(self, **changes: Unpack[Changes]) -> dict[str, int]:
        """Change priority, tags or data (see Changes)."""
        return self.act("update", change_of(**changes))
