"""A bar where somebody looks: a terminal, a notebook, and nothing elsewhere."""

from __future__ import annotations

import sys
from collections import Counter
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from chappe.sdk.progress import EVERY_S, Notebook, Progress, notebook
from chappe.testing.clock import FakeClock


class Output:
    """A notebook's output: what is shown, piece by piece."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def display(self, thing: Any, *, display_id: bool) -> Output:
        assert display_id
        self.update(thing)
        return self

    def update(self, thing: Any) -> None:
        self.shown.append(thing._repr_html_())
        assert repr(thing) == ""


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Output:
    """This process as a notebook's kernel."""
    out = Output()
    ipython = ModuleType("IPython")
    display = ModuleType("IPython.display")
    monkeypatch.setattr(
        ipython, "get_ipython", lambda: SimpleNamespace(kernel=object()), raising=False
    )
    monkeypatch.setattr(display, "display", out.display, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return out


def test_a_notebook_gets_one_output_that_is_replaced(output: Output) -> None:
    with Progress(4, shown=True) as bar:
        for phase in ("finished", "finished", "failed"):
            bar.ended(phase)
    assert 'aria-valuenow="0"' in output.shown[0]
    last = output.shown[-1]
    assert 'aria-valuenow="3"' in last
    assert 'aria-valuemax="4"' in last
    assert "width:50.00%" in last
    assert "width:25.00%" in last
    assert "3 of 4 jobs · 1 failed" in last


def test_a_notebook_is_not_flooded() -> None:
    clock, out = FakeClock(), Output()
    view = Notebook(10_000, out.display, clock)
    view.start()
    phases: Counter[str] = Counter()
    for _ in range(10_000):
        phases["finished"] += 1
        clock.advance(EVERY_S / 1_000)
        view.show(phases)
    assert len(out.shown) == pytest.approx(11, abs=1)
    view.stop(phases)
    assert "10 000 of 10 000 jobs" in out.shown[-1]


def test_a_plain_shell_of_ipython_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for shell in (None, SimpleNamespace()):
        ipython = SimpleNamespace(get_ipython=lambda shell=shell: shell)
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        assert notebook() is None


def test_without_anybody_who_looks_nothing_is_drawn(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    for shown in (False, True):
        with Progress(2, shown=shown) as bar:
            bar.ended("finished")
    assert capfd.readouterr() == ("", "")


def test_an_empty_wait_is_drawn_too(output: Output) -> None:
    with Progress(0, shown=True):
        pass
    assert "0 of 0 jobs" in output.shown[-1]
