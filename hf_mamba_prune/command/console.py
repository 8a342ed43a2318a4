"""Where the command writes: tables for people, JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
from rich.console import Console
from transformers.utils import logging as transformers_logging

from hf_mamba_prune import progress


@contextmanager
def open_console(quiet: bool, as_json: bool) -> Iterator[Console]:
    """Where people's output goes; other libraries' bars and remarks are silenced."""
    progress.silence(quiet)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    yield Console(quiet=quiet or as_json, soft_wrap=False)


def print_json(values: object) -> None:
    """For machines, on standard output."""
    print(json.dumps(values, indent=2))
