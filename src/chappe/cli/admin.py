"""`chappe admin`: whether what is shown follows from the journal of messages, and making it so."""

from __future__ import annotations

import sys

import click

from chappe.cli.output import FAILED, Out, with_output


@click.group("admin")
def command() -> None:
    """Prove that what is shown follows from what was received; make it so."""


@command.command()
@with_output
def verify(out: Out) -> None:
    """Fold all messages of the journal anew, and compare the result with what is shown of simulations.

    The hub goes on as usual meanwhile. Exits with 1 if anything differs.
    """
    if _compare(out, correct=False):
        sys.exit(FAILED)


@command.command()
@with_output
def rebuild(out: Out) -> None:
    """Do the same, and put right what differs: in place, while messages go on coming.

    Each simulation that was corrected leaves an event, projection.corrected, and a line in the audit.
    """
    _compare(out, correct=True)


def _compare(out: Out, correct: bool) -> int:
    """Do so; how many simulations differed."""
    simulations = messages = unreadable = 0
    differing = []
    with out.client() as client:
        for piece in client.messages.compare(correct=correct):
            simulations += piece.simulations
            messages += piece.messages
            unreadable += piece.unreadable
            for one in piece.differing:
                differing.append(one)
                out.say(f"{one.simulation}: {', '.join(one.what)}", style="bold red")
    end = "corrected" if correct else "differing"
    done = {
        "simulations": simulations,
        "messages": messages,
        "unreadable": unreadable,
        end: differing,
    }
    words = f"{messages} messages of {simulations} simulations: {len(differing)} {end}"
    out.one(done, out.say, f"{words}; {unreadable} messages unreadable" if unreadable else words)
    return len(differing)
