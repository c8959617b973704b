"""A text that somebody else chose, printed to a terminal, does not command it."""

from __future__ import annotations

import sys

import pytest

from chappe.cli.output import Out, fail, plain
from chappe.sdk.errors import Invalid

ORDERS = "\x1b]0;owned\x07\x1b[2J\x9b2J\rpaid\x08\x7f\0"


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr()
    return said.out + said.err


@pytest.mark.parametrize("terminal", [True, False])
def test_control_characters_are_shown_and_not_sent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    out = Out(as_json=False)
    out.say(f"a {ORDERS} b")
    out.facts([("name", ORDERS)])
    out.table(["tag~"], [[ORDERS]], "none")
    out.finding("hub", "error", ORDERS, ORDERS)
    with pytest.raises(SystemExit):
        fail(out, Invalid(ORDERS, field=ORDERS, details=[{"id": "x", "message": ORDERS}]))
    text = shown(capsys)
    assert "\\x1b]0;owned\\x07" in text
    assert not set(text) & set("\x07\x08\r\x7f\x9b\0")
    # What is left of escapes are colours of our own.
    assert "\x1b]" not in text
    assert "\x1b[2J" not in text


def test_json_escapes_them(capsys: pytest.CaptureFixture[str]) -> None:
    Out(as_json=True).line({"tag": ORDERS.replace("\x9b", "").replace("\x7f", "")})
    assert "\x1b" not in shown(capsys)


def test_plain_text_stays_as_it_is() -> None:
    text = "Énergie: 3·10⁻⁴ 𝄞\n\tone\ntwo"
    assert plain(text) == text
    assert plain("a\r\nb") == "a\nb"
