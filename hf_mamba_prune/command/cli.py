"""The command: parse, call, print. `hf-mamba-prune MODEL` prunes; the other commands stand beside it."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
import typer
from rich.console import Console

from hf_mamba_prune import native
from hf_mamba_prune.command import hub, packed, reproduce, tables
from hf_mamba_prune.command import option_groups as g
from hf_mamba_prune.command import options as o
from hf_mamba_prune.command.console import open_console, print_json
from hf_mamba_prune.command.hub import repeat_command
from hf_mamba_prune.command.option_groups import flattened
from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.files.loading import load_skeleton
from hf_mamba_prune.files.saving import check_output
from hf_mamba_prune.job import TRAINING_LENGTH, AnalysisJob, PruningJob, RecoveryChoice, demo_job
from hf_mamba_prune.measure.environment import hardware, versions
from hf_mamba_prune.plan import make_plan
from hf_mamba_prune.publish.cloud import HubJob, refuse_local, without_option
from hf_mamba_prune.publish.hub import push_folder

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
COMMANDS = (
    "prune", "evaluate", "analyze", "info", "demo", "pack", "unpack", "generate", "bench", "push", "card", "reproduce"
)  # fmt: skip
DEFAULT = o.DEFAULT


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit code 0, 1 for a failure, 2 for a wrong request."""
    given = sys.argv[1:] if arguments is None else arguments
    arguments = with_default_command(given)
    try:
        app(arguments, prog_name="hf-mamba-prune", obj=shlex.join(["hf-mamba-prune", *given]))
    except (ValueError, RuntimeError, OSError) as error:
        if "--debug" in arguments:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"hf-mamba-prune: error: {message}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)


def with_default_command(arguments: list[str]) -> list[str]:
    """`MODEL --sparsity 0.7` means `prune MODEL --sparsity 0.7`."""
    if not arguments or arguments[0] in (*COMMANDS, "--help", "--version"):
        return arguments
    return ["prune", *arguments]


@app.callback()
def _root(version: o.Version = False) -> None:
    """Prune Mamba language models: sparse, smaller, faster, with proof. `hf-mamba-prune MODEL` prunes."""


@app.command()
@flattened
def prune(
    context: typer.Context,
    pruning: g.PruningOptions,
    training: g.RecoveryOptions,
    data: g.CalibrationOptions,
    texts: g.TextOptions,
    tasks: g.TaskOptions,
    model: g.ModelOptions,
    hub: g.PushOptions,
    shown: g.OutputOptions,
    no_evaluation: o.NoEvaluation = False,
    max_hours: o.MaxHours = 4.0,
    output: o.Output = None,
    overwrite: o.Overwrite = False,
    pack: o.Pack = False,
    values: o.Values = "auto",
    push: o.Push = False,
    push_revision: o.PushBranch = None,
    on_hub: o.OnHub = None,
    dry_run: o.DryRun = False,
) -> None:
    """Prune a Mamba language model into a folder (the default command)."""
    config = pruning.config(data)
    recovery = training.choice(pruning.recipe, texts.column)
    _refuse_idle(recovery is not None, "--recipe standard or paper", training.given())
    _refuse_idle(tasks.tasks is not None, "--tasks", {"--max-examples": tasks.max_examples})
    _refuse_idle(push or on_hub is not None, "--push", hub.given() | {"--push-revision": push_revision})
    _refuse_idle(pack, "--pack", {"--values": values != "auto"})
    job = PruningJob(
        model.choice(),
        config,
        output or default_output(model.model, config),
        data.calibration,
        texts.column,
        texts.choice(no_evaluation, tasks.choice()),
        overwrite,
        context.obj,
        recovery,
        values if pack else None,
        hub.choice(push_revision, overwrite) if push else None,
    )
    if on_hub is None or dry_run:
        _run(job, dry_run, shown, max_hours)
    else:
        _run_on_hub(job, on_hub, max_hours, shown)


def _refuse_idle(on: bool, needed: str, given: dict[str, object]) -> None:
    """Refuse options that would do nothing.

    Raises:
        ValueError: something is given, and what it belongs to is off.
    """
    idle = [name for name, value in given.items() if value]
    if idle and not on:
        raise ValueError(f"{', '.join(idle)} does nothing without {needed}: add that, or leave it out.")


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


@app.command()
@flattened
def evaluate(model: g.ModelOptions, texts: g.TextOptions, tasks: g.TaskOptions, shown: g.OutputOptions) -> None:
    """Measure perplexity, bits per byte and speed of a model, pruned or not; or zero-shot tasks, or both."""
    with open_console(shown.quiet, shown.as_json) as console:
        choice = model.choice()
        choice.check()
        only_tasks = tasks.tasks is not None and not texts.evaluation
        evaluation = texts.choice(only_tasks, tasks.choice()).read()
        with choice.open() as loaded:
            metrics = evaluation.run(loaded.model, loaded.tokenizer)
            asked = evaluation.tasks.run(loaded.model, loaded.tokenizer)
        weights = [p for p in loaded.model.parameters()]
        zeros = sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights)
        if shown.as_json:
            found = {"metrics": [asdict(m) for m in metrics], "tasks": [asdict(task) for task in asked]}
            print_json({"model": model.model, "sparsity": zeros} | found)
        else:
            tables.show_metrics(console, metrics, asked, zeros)


@app.command()
@flattened
def analyze(
    model: g.ModelOptions,
    data: g.CalibrationOptions,
    texts: g.FewTextOptions,
    shown: g.OutputOptions,
    levels: o.Levels = "0.1,0.3,0.5,0.7,0.9",
    score: o.ScoreName = DEFAULT.score,
    output: o.AnalysisOutput = None,
) -> None:
    """Measure what each component and each block costs when it is pruned alone; the model is not changed."""
    job = AnalysisJob(
        model.choice(),
        g.PruningOptions(score=score).config(data),
        output or Path(f"{Path(model.model).name or 'model'}-analysis"),
        data.calibration,
        texts.column,
        texts.choice(),
        o.parse_numbers("--levels", levels),
    )
    with open_console(shown.quiet, shown.as_json) as console:
        found = job.run()
        print_json(asdict(found)) if shown.as_json else tables.show_analysis(console, found, job.output)


@app.command()
def info(model: o.OptionalModel = None, revision: o.Revision = None, as_json: o.Json = False, debug: o.Debug = False):
    """Say what can be pruned in a model, or what this machine and installation have."""
    with open_console(False, as_json) as console:
        if model is None:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            facts = {"versions": versions(), "hardware": hardware(device), "native kernels": native.info()}
            if as_json:
                print_json(facts)
            for title, values in {} if as_json else facts.items():
                tables.show_facts(console, title, values)
            return
        skeleton = load_skeleton(model, revision)
        records = tables.describe_model(skeleton)
        print_json(records) if as_json else tables.show_model(console, model, skeleton, records)


@app.command()
@flattened
def demo(shown: g.OutputOptions, output: o.Output = Path("hf-mamba-prune-demo"), sparsity: o.Sparsity = 0.7) -> None:
    """Run the whole job offline on the bundled small model; repeat it as often as you like."""
    job = demo_job(output, sparsity)
    if not (shown.quiet or shown.as_json):
        print(f"Pruning the bundled Mamba of 2.8 million weights to {sparsity:.0%}, offline.")
    _run(job, False, shown)


for _command in (
    packed.pack, packed.unpack, packed.generate, packed.bench,
    hub.push, hub.card, reproduce.reproduce,
):  # fmt: skip
    app.command()(_command)


def default_output(model: str, config: PruningConfig) -> Path:
    """`state-spaces/mamba-370m` at 0.7 -> `mamba-370m-pruned-70` in the current folder."""
    return Path(f"{Path(model).name or 'model'}-pruned-{round(100 * config.sparsity)}")


if __name__ == "__main__":
    main()
