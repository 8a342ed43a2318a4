"""The commands that publish a result: push and card."""

from __future__ import annotations

from pathlib import Path

from hf_mamba_prune import options as o
from hf_mamba_prune.console import open_console, print_json
from hf_mamba_prune.hub import PushChoice, push_folder, write_card


def card(folder: o.Result, repo_id: o.RepoId = None, debug: o.Debug = False) -> None:
    """Write the model card of a result folder, README.md, from its report."""
    with open_console(False, False) as console:
        console.print(f"Saved [bold]{write_card(folder, repo_id)}[/].", soft_wrap=True)


def push(
    folder: o.Result,
    repo_id: o.RepoId = None,
    private: o.Private = False,
    create_pr: o.CreatePr = False,
    branch: o.Branch = None,
    overwrite: o.OverwriteRepo = False,
    force: o.Force = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Push a result folder to the Hub: weights, packed form, card, report and figures in one commit."""
    with open_console(quiet, as_json) as console:
        address = push_folder(folder, PushChoice(repo_id, private, create_pr, branch, overwrite, force))
        print_json({"url": address}) if as_json else console.print(f"Pushed: {address}", soft_wrap=True)


def repeat_command(folder: Path, choice: PushChoice) -> str:
    """The command that pushes a finished result later."""
    values = {"--repo-id": choice.repo, "--branch": choice.revision}
    flags = {"--private": choice.private, "--create-pr": choice.create_pr, "--force": choice.force}
    flags["--overwrite"] = choice.overwrite
    parts = ["hf-mamba-prune push", str(folder), *(f"{name} {value}" for name, value in values.items() if value)]
    return " ".join([*parts, *(name for name, on in flags.items() if on)])
