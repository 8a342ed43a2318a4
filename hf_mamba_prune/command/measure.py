"""What the commands do that measure and change nothing: evaluate, analyze, info."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from hf_mamba_prune import native
from hf_mamba_prune.command import choices, tables
from hf_mamba_prune.command.console import open_console, print_json
from hf_mamba_prune.command.option_groups import ModelOptions, OutputOptions, TaskOptions, TextOptions
from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.files.loading import load_skeleton
from hf_mamba_prune.job import AnalysisJob
from hf_mamba_prune.measure.environment import hardware
from hf_mamba_prune.measure.versions import versions


def evaluate(model: ModelOptions, texts: TextOptions, tasks: TaskOptions, shown: OutputOptions) -> None:
    """Measure texts, or zero-shot tasks, or both."""
    with open_console(shown.quiet, shown.as_json) as console:
        choice = choices.model(model)
        choice.check()
        only_tasks = tasks.tasks is not None and not texts.evaluation
        evaluation = choices.evaluation(texts, tasks, skip=only_tasks).read()
        tokenizer = choice.read_tokenizer()
        evaluation.check(tokenizer)
        with choice.open(tokenizer) as loaded:
            metrics = evaluation.run(loaded.model, loaded.tokenizer)
            asked = evaluation.tasks.run(loaded.model, loaded.tokenizer)
        weights = list(loaded.model.parameters())
        zeros = sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights)
        if shown.as_json:
            found = {"metrics": [asdict(m) for m in metrics], "tasks": [asdict(task) for task in asked]}
            print_json({"model": model.model, "sparsity": zeros} | found)
        else:
            tables.show_metrics(console, metrics, asked, zeros)


def analyze(
    *,
    model: ModelOptions,
    config: PruningConfig,
    calibration: str,
    texts: TextOptions,
    levels: tuple[float, ...],
    output: Path | None,
    shown: OutputOptions,
) -> None:
    """Measure what each component and each block costs when it is pruned alone."""
    job = AnalysisJob(
        model=choices.model(model),
        config=config,
        output=output or Path(f"{Path(model.model).name or 'model'}-analysis"),
        calibration=calibration,
        column=texts.column,
        evaluation=choices.evaluation(texts, TaskOptions()),
        levels=levels,
    )
    with open_console(shown.quiet, shown.as_json) as console:
        found = job.run()
        print_json(asdict(found)) if shown.as_json else tables.show_analysis(console, found, job.output)


def info(model: str | None, revision: str | None, as_json: bool) -> None:
    """Say what can be pruned in a model, or what this machine and installation have."""
    with open_console(False, as_json) as console:
        if model is None:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            facts: dict[str, Mapping[str, object]] = {"versions": versions(), "hardware": hardware(device)}
            facts["native kernels"] = native.info()
            if as_json:
                print_json(facts)
            for title, values in {} if as_json else facts.items():
                tables.show_facts(console, title, values)
            return
        skeleton = load_skeleton(model, revision)
        records = tables.describe_model(skeleton)
        print_json(records) if as_json else tables.show_model(console, model, skeleton, records)
