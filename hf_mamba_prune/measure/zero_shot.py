"""Zero-shot tasks through EleutherAI's lm-evaluation-harness (the `eval` extra): its own tasks, or files, offline."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mamba_prune.config import closest
from hf_mamba_prune.masks.calibration import evaluation_mode
from hf_mamba_prune.progress import is_silent
from hf_mamba_prune.reading import parse_json
from hf_mamba_prune.report import TaskMetrics
from hf_mamba_prune.texts.sequences import check_ids

METRICS = ("acc", "acc_norm", "exact_match", "f1", "perplexity", "word_perplexity", "bits_per_byte")
"""Those that are taken over from what the harness measures."""
_SHARES = ("acc", "acc_norm", "exact_match")

_LAST_WORD = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
    "doc_to_target": "{{' '+text.split(' ')[-1]}}",
    "metric_list": [
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
    ],
}
_CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{query.rstrip()}}{% if 'Question:' in query and not query.rstrip().endswith('Answer:') %}"
    "\nAnswer:{% endif %}",
    "doc_to_target": "gold",
    "doc_to_choice": "choices",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
}


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """What a model is asked without examples.

    Args:
        tasks: names that lm-eval knows (`piqa`, `lambada_openai`), which it fetches from the Hub, or jsonl files. The
            rows of a file hold `query`, `choices` and `gold` (the index of the right one), scored as lm-eval scores
            PIQA, or `text`, whose last word is to be guessed, as in LAMBADA.
        limit: only so many examples of each task.
        batch_size: sequences of one forward pass.
    """

    tasks: tuple[str, ...] = ()
    limit: int | None = None
    batch_size: int = 8

    def check(self) -> None:
        """Refuse what cannot be run, before any work.

        Raises:
            ValueError: an unknown task, a file with other rows, or a limit below 1.
            RuntimeError: lm-eval is not installed.
        """
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"the limit of examples is {self.limit}; expected 1 or more.")
        if not self.tasks:
            return
        if importlib.util.find_spec("lm_eval") is None:
            raise RuntimeError("tasks need lm-eval: pip install 'hf-mamba-prune[eval]'.")
        named = [task for task in self.tasks if not _is_file(task)]
        files = [Path(task) for task in self.tasks if _is_file(task)]
        if len({path.stem for path in files}) < len(files):
            raise ValueError("two task files have the same name: their results could not be told apart.")
        for path in files:
            _read_rows(path)
        if named:
            known = _manager(defaults=True).all_tasks
            for task in named:
                if task not in known:
                    raise ValueError(closest("task", task, tuple(known)))

    def run(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[TaskMetrics, ...]:
        """Measure a causal language model, in its own dtype.

        Raises:
            ValueError, RuntimeError: as in `check`.
        """
        if not self.tasks:
            return ()
        self.check()
        from lm_eval import evaluator  # an extra, and slow to import
        from lm_eval.models.huggingface import HFLM

        quiet = is_silent() or not sys.stderr.isatty()
        silence = contextlib.redirect_stderr(io.StringIO()) if quiet else contextlib.nullcontext()
        with evaluation_mode(model), silence, _only_known_tokens(model):
            manager = _manager(defaults=not all(map(_is_file, self.tasks)))
            loaded = manager.load([_file_task(Path(task)) if _is_file(task) else task for task in self.tasks])
            asked = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self.batch_size)
            for task in loaded["tasks"].values():
                task.set_config(key="num_fewshot", value=0)
            found = evaluator.evaluate(asked, loaded, limit=self.limit, bootstrap_iters=0, log_samples=False)
        return tuple(
            _metrics(task, name, value, found)
            for task in _shown(found, self.tasks)
            for name, value in found["results"][task].items()
            if name.split(",")[0] in METRICS and isinstance(value, int | float)
        )


@contextlib.contextmanager
def _only_known_tokens(model: PreTrainedModel) -> Iterator[None]:
    """Refuse a token without an embedding when it comes: the harness tokenizes on its own."""

    def check(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        check_ids(given[0], model, "a task")

    handle = model.get_input_embeddings().register_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()


def _is_file(task: str) -> bool:
    return task.endswith((".jsonl", ".json")) or os.sep in task


def _manager(defaults: bool):
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return TaskManager(include_defaults=defaults)


def _read_rows(path: Path) -> list[dict]:
    """The rows of a task's file.

    Raises:
        ValueError: no such file, or rows of another kind.
    """
    if not path.is_file():
        raise ValueError(f"there is no task file {path}.")
    rows: list[dict] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        row = parse_json(line, f"{path}, line {number},")
        kept = {"text": row["text"].strip()} if _is_words(row) else row
        if _is_choice(row):
            kept = {name: row[name] for name in ("query", "choices", "gold")}
        if not (_is_words(row) or _is_choice(row)) or rows and kept.keys() != rows[0].keys():
            raise ValueError(
                f"{path}, line {number}: expected 'text', or 'query', 'choices' (two strings or more) and 'gold' (an "
                "index of choices), in every row alike."
            )
        rows.append(kept)
    if not rows:
        raise ValueError(f"{path} has no rows.")
    return rows


def _is_words(row: object) -> bool:
    return isinstance(row, dict) and isinstance(row.get("text"), str) and " " in row["text"].strip()


def _is_choice(row: object) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("query"), str):
        return False
    choices, gold = row.get("choices"), row.get("gold")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(choice, str) for choice in choices):
        return False
    return isinstance(gold, int) and not isinstance(gold, bool) and 0 <= gold < len(choices)


def _file_task(path: Path) -> dict[str, object]:
    """A file as lm-eval describes a task."""
    rows = _read_rows(path)
    split = datasets.Dataset.from_list(rows)
    kind = _LAST_WORD if _is_words(rows[0]) else _CHOICE
    return kind | {"task": path.stem, "test_split": "test", "custom_dataset": lambda **_: {"test": split}}


def _shown(found: dict, asked: tuple[str, ...]) -> list[str]:
    """What is reported: tasks and groups that were asked for, and tasks that a tag or pattern stands for."""
    groups = [name for name in found["results"] if name in asked and name not in found["n-samples"]]
    within = {leaf for group in groups for leaf in _leaves(group, found)}
    return [*groups, *(name for name in found["n-samples"] if name not in within)]


def _leaves(name: str, found: dict) -> set[str]:
    """The tasks of a group, of its groups too."""
    if name in found["n-samples"]:
        return {name}
    return {leaf for part in found["group_subtasks"].get(name, ()) for leaf in _leaves(part, found)}


def _metrics(task: str, name: str, value: float, found: dict) -> TaskMetrics:
    metric, _, way = name.partition(",")  # and how an answer is cut out of what was written
    examples = sum(found["n-samples"][leaf]["effective"] for leaf in _leaves(task, found))
    error = math.sqrt(value * (1 - value) / (examples - 1)) if metric in _SHARES and examples > 1 else None
    upwards = found["higher_is_better"].get(task, {}).get(metric, True)
    shown = metric if way in ("", "none") else f"{metric} ({way})"
    return TaskMetrics(
        task=task,
        metric=shown,
        value=float(value),
        standard_error=error,
        examples=examples,
        higher_is_better=bool(upwards),
    )
