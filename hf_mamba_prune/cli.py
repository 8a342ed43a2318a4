"""The command: parse, call, print. `hf-mamba-prune MODEL` prunes; the other commands stand beside it."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
import typer
from rich.console import Console

from hf_mamba_prune import demo as bundled
from hf_mamba_prune import hub_commands, native, packed_commands, summary
from hf_mamba_prune import options as o
from hf_mamba_prune.checkpoint import check_output
from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.console import open_console, print_json
from hf_mamba_prune.environment import hardware, versions
from hf_mamba_prune.hub import PushChoice, push_folder
from hf_mamba_prune.hub_commands import repeat_command
from hf_mamba_prune.job import TRAINING_LENGTH, AnalysisJob, EvaluationChoice, ModelChoice, PruningJob, RecoveryChoice
from hf_mamba_prune.loading import load_skeleton
from hf_mamba_prune.plan import make_plan

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
COMMANDS = ("prune", "evaluate", "analyze", "info", "demo", "pack", "unpack", "generate", "bench", "push", "card")
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
def prune(
    context: typer.Context,
    model: o.Model,
    sparsity: o.Sparsity = None,
    recipe: o.Recipe = "quick",
    pattern: o.Pattern = DEFAULT.pattern,
    score: o.RecipeScore = None,
    allocation: o.Allocation = None,
    alpha: o.Alpha = DEFAULT.alpha,
    gradient: o.Gradient = DEFAULT.gradient,
    ceiling: o.Ceiling = None,
    components: o.Components = None,
    component_sparsity: o.ComponentSparsity = None,
    schedule: o.Schedule = DEFAULT.schedule,
    steps: o.Steps = None,
    no_reconstruct: o.NoReconstruct = False,
    damping: o.Damping = DEFAULT.damping,
    recover_steps: o.RecoverSteps = None,
    recover_lr: o.RecoverRate = 1e-3,
    recover_batch: o.RecoverBatch = 8,
    recover_dataset: o.RecoverText = None,
    max_hours: o.MaxHours = 4.0,
    seed: o.Seed = DEFAULT.seed,
    calibration: o.Calibration = "wikitext",
    calibration_samples: o.Samples = DEFAULT.calibration_samples,
    calibration_length: o.Length = DEFAULT.calibration_length,
    batch_size: o.BatchSize = DEFAULT.batch_size,
    column: o.Column = None,
    evaluation: o.Texts = None,
    no_evaluation: o.NoEvaluation = False,
    window: o.Window = 2048,
    stride: o.Stride = None,
    max_windows: o.MaxWindows = None,
    revision: o.Revision = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    tokenizer: o.Tokenizer = None,
    no_native: o.NoNative = False,
    output: o.Output = None,
    overwrite: o.Overwrite = False,
    pack: o.Pack = False,
    values: o.Values = "auto",
    push: o.Push = False,
    repo_id: o.RepoId = None,
    private: o.Private = False,
    create_pr: o.CreatePr = False,
    push_revision: o.PushBranch = None,
    force: o.Force = False,
    dry_run: o.DryRun = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Prune a Mamba language model into a folder (the default command)."""
    training = o.parse_recipe(recipe, recover_steps)
    score = score or ("gradient-magnitude" if recipe == "paper" else DEFAULT.score)
    config = PruningConfig(
        sparsity, pattern, score, allocation, alpha, gradient, ceiling, o.parse_names(components),
        o.parse_shares(component_sparsity), schedule, steps, recipe != "paper" and not no_reconstruct, damping,
        calibration_samples, calibration_length, batch_size, seed=seed,
    )  # fmt: skip
    recovery = training and RecoveryChoice(
        text=recover_dataset, column=column, learning_rate=recover_lr, batch_size=recover_batch, **training
    )
    output = output or default_output(model, config)
    texts = () if no_evaluation else tuple(evaluation or ["wikitext"])
    job = PruningJob(
        ModelChoice(model, revision, dtype, device, tokenizer, not no_native),
        config,
        output,
        calibration,
        column,
        EvaluationChoice(texts, column, window, stride, max_windows),
        overwrite,
        context.obj,
        recovery,
        values if pack else None,
        PushChoice(repo_id, private, create_pr, push_revision, overwrite, force) if push else None,
    )
    _run(job, dry_run, as_json, quiet, max_hours)


def _run(job: PruningJob, dry_run: bool, as_json: bool, quiet: bool, max_hours: float | None = None) -> None:
    with open_console(quiet, as_json) as console:
        check_output(job.output, job.overwrite)
        plan = make_plan(load_skeleton(job.model.source, job.model.revision), job.config, *_training(job.recovery))
        if dry_run:
            print_json(asdict(plan)) if as_json else summary.show_plan(console, plan, job.output)
        else:
            summary.show_cost(console, plan)
            on_cpu = job.model.device == "cpu" or not torch.cuda.is_available()
            if max_hours is not None and on_cpu:
                _check_cost(plan.seconds / 3600, max_hours, job)
            if job.push is not None:
                job = replace(job, push=job.push.resolve(default_output(job.model.source, job.config).name))
                job.push.held()  # what the Hub will refuse is said before the work
            report = job.run()
            print_json(report.to_dict()) if as_json else summary.show_report(console, report, job.output)
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
def evaluate(
    model: o.Model,
    evaluation: o.Texts = None,
    column: o.Column = None,
    window: o.Window = 2048,
    stride: o.Stride = None,
    max_windows: o.MaxWindows = None,
    revision: o.Revision = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    tokenizer: o.Tokenizer = None,
    no_native: o.NoNative = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Measure perplexity, bits per byte and speed of a model, pruned or not."""
    with open_console(quiet, as_json) as console:
        choice = ModelChoice(model, revision, dtype, device, tokenizer, not no_native)
        choice.check()
        texts = EvaluationChoice(tuple(evaluation or ["wikitext"]), column, window, stride, max_windows).read()
        with choice.open() as loaded:
            metrics = texts.run(loaded.model, loaded.tokenizer)
        weights = [p for p in loaded.model.parameters()]
        zeros = sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights)
        if as_json:
            print_json({"model": model, "sparsity": zeros, "metrics": [asdict(m) for m in metrics]})
        else:
            summary.show_metrics(console, metrics, zeros)


@app.command()
def analyze(
    model: o.Model,
    levels: o.Levels = "0.1,0.3,0.5,0.7,0.9",
    score: o.ScoreName = DEFAULT.score,
    seed: o.Seed = DEFAULT.seed,
    calibration: o.Calibration = "wikitext",
    calibration_samples: o.Samples = DEFAULT.calibration_samples,
    calibration_length: o.Length = DEFAULT.calibration_length,
    column: o.Column = None,
    evaluation: o.Texts = None,
    window: o.Window = 2048,
    max_windows: o.MaxWindows = 4,
    revision: o.Revision = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    tokenizer: o.Tokenizer = None,
    no_native: o.NoNative = False,
    output: o.AnalysisOutput = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Measure what each component and each block costs when it is pruned alone; the model is not changed."""
    config = PruningConfig(
        score=score, seed=seed, calibration_samples=calibration_samples, calibration_length=calibration_length
    )
    job = AnalysisJob(
        ModelChoice(model, revision, dtype, device, tokenizer, not no_native),
        config,
        output or Path(f"{Path(model).name or 'model'}-analysis"),
        calibration,
        column,
        EvaluationChoice(tuple(evaluation or ["wikitext"]), column, window, None, max_windows),
        o.parse_levels(levels),
    )
    with open_console(quiet, as_json) as console:
        found = job.run()
        print_json(asdict(found)) if as_json else summary.show_analysis(console, found, job.output)


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
                summary.show_facts(console, title, values)
            return
        skeleton = load_skeleton(model, revision)
        records = summary.describe_model(skeleton)
        print_json(records) if as_json else summary.show_model(console, model, skeleton, records)


@app.command()
def demo(
    output: o.Output = Path("hf-mamba-prune-demo"),
    sparsity: o.Sparsity = 0.7,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Run the whole job offline on the bundled small model; repeat it as often as you like."""
    if not (quiet or as_json):
        print(f"Pruning the bundled Mamba of 2.8 million weights to {sparsity:.0%}, offline.")
    _run(bundled.demo_job(output, sparsity), False, as_json, quiet)


for _command in (
    packed_commands.pack, packed_commands.unpack, packed_commands.generate, packed_commands.bench,
    hub_commands.push, hub_commands.card,
):  # fmt: skip
    app.command()(_command)


def default_output(model: str, config: PruningConfig) -> Path:
    """`state-spaces/mamba-370m` at 0.7 -> `mamba-370m-pruned-70` in the current folder."""
    return Path(f"{Path(model).name or 'model'}-pruned-{round(100 * config.sparsity)}")


if __name__ == "__main__":
    main()
