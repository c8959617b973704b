"""`chappe completion`: what a shell needs to complete commands, sites, apps and job ids."""

from __future__ import annotations

import click

from chappe.cli.output import Out, with_output

SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@with_output
def command(out: Out, shell: str) -> None:
    """Print the completion of SHELL; it completes commands, options, sites, apps and job ids.

    \b
    bash  add to ~/.bashrc:                  eval "$(chappe completion bash)"
    zsh   add to ~/.zshrc (after compinit):  eval "$(chappe completion zsh)"
    fish  run once:  chappe completion fish > ~/.config/fish/completions/chappe.fish
    """
    from click.shell_completion import get_completion_class

    from chappe.cli.main import root

    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click knows all of SHELLS
    script = kind(root, {}, "chappe", "_CHAPPE_COMPLETE").source()
    out.one({"shell": shell, "script": script}, click.echo, script)
