"""The commands that publish a result: push and card."""

from __future__ import annotations

import shlex
from pathlib import Path

from hf_mamba_prune.command import options as o
from hf_mamba_prune.command.console import open_console, print_json
from hf_mamba_prune.command.option_groups import OutputOptions, PushOptions, flattened
from hf_mamba_prune.publish.hub import PushChoice, push_folder, write_card


def card(folder: o.Result, repo_id: o.RepoId = None, debug: o.Debug = False) -> None:
    """Write the model card of a result folder, README.md, from its report."""
    with open_console(False, False) as console:
        console.print(f"Saved [bold]{write_card(folder, repo_id)}[/].", soft_wrap=True)


@flattened
def push(
    folder: o.Result,
    hub: PushOptions,
    shown: OutputOptions,
    revision: o.Branch = None,
    overwrite: o.OverwriteRepo = False,
) -> None:
    """Push a result folder to the Hub: weights, packed form, card, report and figures in one commit."""
    with open_console(shown.quiet, shown.as_json) as console:
        address = push_folder(folder, hub.choice(revision, overwrite))
        print_json({"url": address}) if shown.as_json else console.print(f"Pushed: {address}", soft_wrap=True)


def repeat_command(folder: Path, choice: PushChoice) -> str:
    """The command that pushes a finished result later."""
    values = {"--repo-id": choice.repo, "--revision": choice.revision}
    flags = {"--private": choice.private, "--create-pr": choice.create_pr, "--force": choice.force}
    flags["--overwrite"] = choice.overwrite
    parts = ["hf-mamba-prune", "push", str(folder)]
    parts += [part for name, value in values.items() if value for part in (name, value)]
    return shlex.join([*parts, *(name for name, on in flags.items() if on)])
