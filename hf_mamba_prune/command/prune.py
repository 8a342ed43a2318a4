"""What the commands do that prune: here, on the Hub, or the bundled demo."""

from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from hf_mamba_prune.command import choices, tables
from hf_mamba_prune.command import option_groups as g
from hf_mamba_prune.command.console import open_console, print_json
from hf_mamba_prune.command.hub import repeat_command
from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.files.loading import load_skeleton
from hf_mamba_prune.files.saving import check_output
from hf_mamba_prune.job import TRAINING_LENGTH, PruningJob, RecoveryChoice, demo_job
from hf_mamba_prune.plan import make_plan
from hf_mamba_prune.publish.cloud import HubJob, refuse_local, without_option
from hf_mamba_prune.publish.hub import push_folder


def prune(
    *,
    config: PruningConfig,
    calibration: str,
    training: g.RecoveryOptions,
    trained: dict[str, Any] | None,
    texts: g.TextOptions,
    tasks: g.TaskOptions,
    model: g.ModelOptions,
    hub: g.PushOptions,
    shown: g.OutputOptions,
    run: g.RunOptions,
    line: str,
) -> None:
    """Prune a model into a folder; `trained` is what the recipe says of a training, `line` the command as given."""
    job = PruningJob(
        model=choices.model(model),
        config=config,
        output=run.output or default_output(model.model, config),
        calibration=calibration,
        column=texts.column,
        evaluation=choices.evaluation(texts, tasks, skip=run.no_evaluation),
        overwrite=run.overwrite,
        command=line,
        recovery=choices.recovery(training, trained, texts.column),
        pack=run.values if run.pack else None,
        push=choices.push(hub, run.push_revision, run.overwrite) if run.push else None,
    )
    if run.on_hub is None or run.dry_run:
        _run(job, run.dry_run, shown, run.max_hours)
    else:
        _run_on_hub(job, run.on_hub, run.max_hours, shown)


def demo(output: Path, sparsity: float, shown: g.OutputOptions) -> None:
    """Prune the bundled model."""
    job = demo_job(output, sparsity)
    if not (shown.quiet or shown.as_json):
        print(f"Pruning the bundled Mamba of 2.8 million weights to {sparsity:.0%}, offline.")
    _run(job, False, shown)


def _run_on_hub(job: PruningJob, flavor: str, hours: float, shown: g.OutputOptions) -> None:
    """Start the same command as a Hub Job and follow it; what it would stumble over is said before."""
    if job.push is None:
        raise ValueError("a job on the Hub keeps nothing but what it pushes: add --push.")
    refuse_local(job.sources())
    _, *arguments = shlex.split(job.command)
    extras = ("eval",) if job.evaluation.tasks.tasks else ()
    with open_console(shown.quiet, shown.as_json) as console:
        make_plan(load_skeleton(job.model.source, job.model.revision), job.config, *_training(job.recovery))
        push = job.push.resolve(default_output(job.model.source, job.config).name)
        push.held()
        done = HubJob(without_option(arguments, "--on-hub"), flavor, hours, extras).run(
            lambda line: console.print(line, soft_wrap=True, markup=False, highlight=False)
        )
        print_json({"job": done.url, "repo": push.repo}) if shown.as_json else console.print(f"\nPushed: {push.repo}")


def _run(job: PruningJob, dry_run: bool, shown: g.OutputOptions, max_hours: float | None = None) -> None:
    with open_console(shown.quiet, shown.as_json) as console:
        check_output(job.output, job.overwrite)
        plan = make_plan(load_skeleton(job.model.source, job.model.revision), job.config, *_training(job.recovery))
        if dry_run:
            print_json(asdict(plan)) if shown.as_json else tables.show_plan(console, plan, job.output)
        else:
            tables.show_cost(console, plan)
            on_cpu = job.model.device == "cpu" or not torch.cuda.is_available()
            if max_hours is not None and on_cpu:
                _check_cost(plan.seconds / 3600, max_hours, job)
            if job.push is not None:
                job = replace(job, push=job.push.resolve(default_output(job.model.source, job.config).name))
                job.push.held()  # what the Hub will refuse is said before the work
            report = job.run()
            print_json(report.to_dict()) if shown.as_json else tables.show_report(console, report, job.output)
            if job.push is not None:
                _push(console, job)


def _push(console: Console, job: PruningJob) -> None:
    """Push what is finished.

    Raises:
        RuntimeError: it could not be pushed; says where it is and how to go on.
    """
    try:
        console.print(f"\nPushed: {push_folder(job.output, job.push)}", soft_wrap=True)
    except RuntimeError as error:
        repeat = repeat_command(job.output, job.push)
        raise RuntimeError(f"{error} The result is in {job.output}; push it with: {repeat}") from error


def _check_cost(hours: float, limit: float, job: PruningJob) -> None:
    """Stop what takes too long, with the flag that makes it cheaper.

    Raises:
        ValueError: it would take longer than the limit.
    """
    if hours <= limit:
        return
    cheaper = "fewer --recover-steps" if job.recovery else "fewer --steps or --calibration-samples"
    raise ValueError(
        f"this would take about {hours:,.1f} hours on this CPU, more than the limit of {limit:g}: choose {cheaper}, "
        "use a GPU, or raise --max-hours."
    )


def _training(recovery: RecoveryChoice | None) -> tuple[int, int, bool]:
    """What a plan must know of it: tokens in all, tokens of a step, whether there is a teacher."""
    if recovery is None:
        return 0, 0, False
    tokens = recovery.batch_size * TRAINING_LENGTH
    return recovery.steps * tokens, tokens, recovery.distill


def default_output(model: str, config: PruningConfig) -> Path:
    """`state-spaces/mamba-370m` at 0.7 -> `mamba-370m-pruned-70` in the current folder."""
    return Path(f"{Path(model).name or 'model'}-pruned-{round(100 * config.sparsity)}")
