"""What the hub's command line says of countable things."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from chappe.core.errors import Invalid
from chappe.hub import main


def test_licences_of_the_hub_are_names_and_numbers() -> None:
    assert main._shared(["licence=10", "tape.drive=1"]) == {"licence": 10, "tape.drive": 1}
    assert main._shared([]) == {}


@pytest.mark.parametrize("texts", [["licence"], ["licence=x"], ["licence=-1"], ["a b=1"], ["x=0"]])
def test_what_is_neither_is_refused(texts: Sequence[str]) -> None:
    with pytest.raises(Invalid):
        main._shared(texts)
