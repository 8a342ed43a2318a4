"""What the commands do that prune: here, on the Hub, or the bundled demo."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from hf_mamba_prune.command import choices, hub, tables
from hf_mamba_prune.command import option_groups as g
from hf_mamba_prune.command.console import open_console, print_json
from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.job import PruningJob, default_output, demo_job
from hf_mamba_prune.plan import Plan
from hf_mamba_prune.publish.cloud import HubJob, refuse_local, without_option
from hf_mamba_prune.publish.hub import PushChoice, push_result


def requested(
    *,
    config: PruningConfig,
    calibration: str,
    training: g.RecoveryOptions,
    trained: dict[str, Any] | None,
    texts: g.TextOptions,
    tasks: g.TaskOptions,
    model: g.ModelOptions,
    hub: g.PushOptions,
    run: g.RunOptions,
    line: str,
) -> PruningJob:
    """The job that options ask for; `trained` is what the recipe says of a training, `line` the command as given."""
    return PruningJob(
        model=choices.model(model),
        config=config,
        output=run.output or default_output(model.model, config),
        calibration=calibration,
        column=texts.column,
        evaluation=choices.evaluation(texts, tasks, skip=run.no_evaluation),
        overwrite=run.overwrite,
        command=line,
        recovery=choices.recovery(training, trained, texts.column),
        pack="rounded" if config.rounds else run.values if run.pack else None,
        push=choices.push(hub, run.push_revision, run.overwrite) if run.push else None,
    )


def demo(output: Path, sparsity: float, shown: g.OutputOptions) -> None:
    """Prune the bundled model."""
    job = demo_job(output, sparsity)
    if not (shown.quiet or shown.as_json):
        print(f"Pruning the bundled Mamba of 2.8 million weights to {sparsity:.0%}, offline.")
    run_here(job, shown)


def run_on_hub(job: PruningJob, run: g.RunOptions, flavor: str, shown: g.OutputOptions) -> None:
    """Start the same command as a Hub Job and follow it; what it would stumble over is said before."""
    if job.push is None:
        raise ValueError("a job on the Hub keeps nothing but what it pushes: add --push.")
    refuse_local(job.sources())
    _, *arguments = shlex.split(job.command or "")
    extras = ("eval",) if job.evaluation.tasks.tasks else ()
    remote = HubJob(arguments=without_option(arguments, "--on-hub"), flavor=flavor, hours=run.max_hours, extras=extras)
    with open_console(shown.quiet, shown.as_json) as console:

        def show(line: str) -> None:
            console.print(line, soft_wrap=True, markup=False, highlight=False)

        plan = job.plan()
        push = job.push.addressed(default_output(job.model.source, job.config).name)
        if run.dry_run:
            show(remote.price())
            _show_plan(console, plan, job, shown)
            return
        done = remote.run(show)
        print_json({"job": done.url, "repo": push.repo}) if shown.as_json else console.print(f"\nPushed: {push.repo}")


def run_here(job: PruningJob, shown: g.OutputOptions, dry_run: bool = False, max_hours: float | None = None) -> None:
    """Prune here; all that can be refused is refused before anything is announced."""
    with open_console(shown.quiet, shown.as_json) as console:
        plan = job.plan()
        if not dry_run:
            _check_cost(plan, max_hours, job)
        prepared = job.prepare(plan)
        if dry_run:
            _show_plan(console, plan, job, shown)
            _check_cost(plan, max_hours, job)
            return
        report = prepared.run(begin=lambda: tables.show_cost(console, plan))
        print_json(report.to_dict()) if shown.as_json else tables.show_report(console, report, job.output)
        if prepared.job.push is not None:
            _push(console, job.output, prepared.job.push)


def _show_plan(console: Console, plan: Plan, job: PruningJob, shown: g.OutputOptions) -> None:
    print_json(asdict(plan)) if shown.as_json else tables.show_plan(console, plan, job.output)


def _push(console: Console, output: Path, choice: PushChoice) -> None:
    """Push what is finished.

    Raises:
        RuntimeError: it could not be pushed; says where it is and how to go on.
    """
    try:
        console.print(f"\n{hub.said(push_result(output, choice))}", soft_wrap=True)
    except (RuntimeError, OSError) as error:
        raise hub.kept(output, choice, error) from error


def _check_cost(plan: Plan, limit: float | None, job: PruningJob) -> None:
    """Stop what takes too long, with the flag that makes it cheaper.

    Raises:
        ValueError: it would take longer than the limit, in hours, on a CPU; or that is no length of time.
    """
    if limit is not None and not limit > 0:
        raise ValueError(f"--max-hours is {limit:g}; expected hours above 0, such as 0.5.")
    hours = plan.seconds / 3600
    if limit is None or hours <= limit or not job.model.on_cpu():
        return
    cheaper = "fewer --recover-steps" if job.recovery else "fewer --steps or --calibration-samples"
    raise ValueError(
        f"this would take about {_duration(plan.seconds)} on this CPU, more than the limit of "
        f"{_duration(3600 * limit)}: choose {cheaper}, use a GPU, or raise --max-hours (now {limit:g})."
    )


def _duration(seconds: float) -> str:
    """In the unit that shows it best."""
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} hours"
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.2g} seconds"
