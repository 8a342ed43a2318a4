"""The commands that publish a result: push and card."""

from __future__ import annotations

import shlex
from pathlib import Path

from hf_mamba_prune.command import choices
from hf_mamba_prune.command.console import open_console, print_json
from hf_mamba_prune.command.option_groups import OutputOptions, PushOptions
from hf_mamba_prune.publish.hub import HalfDone, PushChoice, Pushed, push_result, write_card


def card(folder: Path, repo_id: str | None) -> None:
    """Write the model card of a result folder."""
    with open_console(False, False) as console:
        console.print(f"Saved [bold]{write_card(folder, repo_id)}[/].", soft_wrap=True)


def push(folder: Path, hub: PushOptions, revision: str | None, overwrite: bool, shown: OutputOptions) -> None:
    """Push a result folder to the Hub."""
    with open_console(shown.quiet, shown.as_json) as console:
        choice = choices.push(hub, revision, overwrite)
        try:
            done = push_result(folder, choice)
        except (RuntimeError, OSError) as error:
            refused = error.__cause__ is None and isinstance(error, RuntimeError) and not isinstance(error, HalfDone)
            if refused:  # which says what to do
                raise
            raise kept(folder, choice, error) from error
        if shown.as_json:
            print_json({"url": done.address, "already": done.already})
        else:
            console.print(said(done), soft_wrap=True)


def said(done: Pushed) -> str:
    """What became of a push, for people."""
    return f"The Hub holds this already: {done.address}" if done.already else f"Pushed: {done.address}"


def kept(folder: Path, choice: PushChoice, error: Exception) -> RuntimeError:
    """The error of a push, with where the result is and how to go on."""
    reason = str(error).rstrip(".")
    return RuntimeError(f"{reason}. The result is in {folder}; push it with: {repeat_command(folder, choice)}")


def repeat_command(folder: Path, choice: PushChoice) -> str:
    """The command that pushes a finished result later."""
    values = {"--repo-id": choice.repo, "--revision": choice.revision}
    flags = {"--private": choice.private, "--create-pr": choice.create_pr, "--force": choice.force}
    flags["--overwrite"] = choice.overwrite
    parts = ["hf-mamba-prune", "push", str(folder)]
    parts += [part for name, value in values.items() if value for part in (name, value)]
    return shlex.join([*parts, *(name for name, on in flags.items() if on)])
