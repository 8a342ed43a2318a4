"""Where the command writes: tables for people, JSON for machines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
from rich.console import Console
from rich.errors import MarkupError
from rich.markup import escape
from rich.text import Text
from transformers.utils import logging as transformers_logging

from hf_mamba_prune import progress
from hf_mamba_prune.hub_answers import bound_waiting
from hf_mamba_prune.publish.escapes import for_terminal

_TAG = re.compile(r"\\*\[[a-z#/@][^\[\]]*\]")
_STYLES = ("[bold]", "[bold red]", "[dim]", "[/]")
"""Markup that the command itself writes; anything else in brackets is part of a name."""


class SafeConsole(Console):
    """A console that shows names as they are: their control characters are spelled, their brackets are no markup."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Every text that is printed, and every cell of a table, comes through here."""
        shown = for_terminal(text)
        own = _TAG.sub(lambda tag: tag[0] if tag[0] in _STYLES else escape(tag[0]), shown)
        try:
            return super().render_str(own, **options)
        except MarkupError:  # a name that ends a style that nobody began
            return super().render_str(shown, **options | {"markup": False})


@contextmanager
def open_console(quiet: bool, as_json: bool) -> Iterator[Console]:
    """Where people's output goes; other libraries are silenced, and the Hub is not waited for without end."""
    progress.silence(quiet)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    bound_waiting()
    yield SafeConsole(quiet=quiet or as_json, soft_wrap=False, emoji=False)


def print_json(values: object) -> None:
    """For machines, on standard output."""
    print(json.dumps(values, indent=2))
