"""The command: parse, call, print. `hf-mamba-prune MODEL` prunes; the other commands stand beside it.

What a command does is imported when it runs: help and wrong options are answered without torch.
"""

from __future__ import annotations

import difflib
import shlex
import sys
from pathlib import Path

import typer

from hf_mamba_prune.command import option_groups as g
from hf_mamba_prune.command import options as o
from hf_mamba_prune.command.flattened import flattened
from hf_mamba_prune.command.signals import ending_cleanly
from hf_mamba_prune.publish.escapes import for_terminal
from hf_mamba_prune.recipes import find_recipe

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
COMMANDS = (
    "prune", "evaluate", "analyze", "info", "demo", "pack", "unpack", "generate", "bench", "push", "card", "reproduce"
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit code 0, 1 for a failure, 2 for a wrong request, above 128 where a signal ended it."""
    given = sys.argv[1:] if arguments is None else arguments
    arguments = given
    try:
        arguments = with_default_command(given)
        with ending_cleanly():
            app(arguments, prog_name="hf-mamba-prune", obj=shlex.join(["hf-mamba-prune", *given]))
    except (ValueError, RuntimeError, OSError) as error:
        if "--debug" in arguments:
            raise
        message = for_terminal(" ".join(str(error).split())) or type(error).__name__
        print(f"hf-mamba-prune: error: {message}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)


def with_default_command(arguments: list[str]) -> list[str]:
    """`MODEL --sparsity 0.7` means `prune MODEL --sparsity 0.7`, and `help` means `--help`.

    Raises:
        ValueError: the first word is nearly a command, and another one follows it.
    """
    if not arguments or arguments[0] in (*COMMANDS, "--help", "--version"):
        return arguments
    first, *rest = arguments
    if Path(first).is_dir():
        return ["prune", *arguments]
    if first == "help":
        return [*rest[:1], "--help"]
    near = difflib.get_close_matches(first, COMMANDS, n=1)
    if near and rest and not rest[0].startswith("-"):
        raise ValueError(
            f"there is no command {first!r}: did you mean `{near[0]}`? A model is pruned by "
            "`hf-mamba-prune MODEL`, with nothing but options after it."
        )
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
    run: g.RunOptions,
) -> None:
    """Prune a Mamba language model into a folder (the default command)."""
    config = run.rounded(pruning.config(data))
    trained = find_recipe(pruning.recipe).trained(training.recover_steps)
    _refuse_idle(trained is not None, "--recipe standard or paper", training.given())
    _refuse_idle(tasks.tasks is not None, "--tasks", {"--max-examples": tasks.max_examples})
    pushed = run.push or run.on_hub is not None
    _refuse_idle(pushed, "--push", hub.given() | {"--push-revision": run.push_revision})
    _refuse_idle(run.pack or config.rounds, "--pack", {"--values": run.values != "auto"})
    from hf_mamba_prune.command import prune as command

    job = command.requested(
        config=config,
        calibration=data.calibration,
        training=training,
        trained=trained,
        texts=texts,
        tasks=tasks,
        model=model,
        hub=hub,
        run=run,
        line=context.obj,
    )
    if run.on_hub is None:
        command.run_here(job, shown, run.dry_run, run.max_hours)
    else:
        command.run_on_hub(job, run, run.on_hub, shown)


def _refuse_idle(on: bool, needed: str, given: dict[str, object]) -> None:
    """Refuse options that would do nothing.

    Raises:
        ValueError: something is given, and what it belongs to is off.
    """
    idle = [name for name, value in given.items() if value]
    if idle and not on:
        raise ValueError(f"{', '.join(idle)} does nothing without {needed}: add that, or leave it out.")


@app.command()
@flattened
def evaluate(model: g.ModelOptions, texts: g.TextOptions, tasks: g.TaskOptions, shown: g.OutputOptions) -> None:
    """Measure perplexity, bits per byte and speed of a model, pruned or not; or zero-shot tasks, or both."""
    from hf_mamba_prune.command import measure

    measure.evaluate(model, texts, tasks, shown)


@app.command()
@flattened
def analyze(
    model: g.ModelOptions,
    data: g.CalibrationOptions,
    texts: g.FewTextOptions,
    shown: g.OutputOptions,
    analysis: g.AnalysisOptions,
) -> None:
    """Measure what each component and each block costs when it is pruned alone; the model is not changed."""
    config = g.PruningOptions(score=analysis.score).config(data)
    levels = o.parse_numbers("--levels", analysis.levels)
    from hf_mamba_prune.command import measure

    measure.analyze(
        model=model,
        config=config,
        calibration=data.calibration,
        texts=texts,
        levels=levels,
        output=analysis.output,
        shown=shown,
    )


@app.command()
def info(
    model: o.OptionalModel = None, revision: o.Revision = None, as_json: o.Json = False, debug: o.Debug = False
) -> None:
    """Say what can be pruned in a model, or what this machine and installation have."""
    from hf_mamba_prune.command import measure

    measure.info(model, revision, as_json)


@app.command()
@flattened
def demo(
    shown: g.OutputOptions, output: o.DemoOutput = Path("hf-mamba-prune-demo"), sparsity: o.DemoSparsity = 0.7
) -> None:
    """Run the whole job offline on the bundled small model; repeat it as often as you like."""
    from hf_mamba_prune.command import prune as command

    command.demo(output, sparsity, shown)


@app.command()
@flattened
def pack(shown: g.OutputOptions, wanted: g.PackOptions) -> None:
    """Write a model in packed form: a bitmask and the kept values, a third of the size at 70 % zeros."""
    o.check_packed_values(wanted.values)
    from hf_mamba_prune.command import packed

    packed.pack(wanted, shown)


@app.command()
def unpack(model: o.Model, output: o.DenseOutput, revision: o.Revision = None, debug: o.Debug = False) -> None:
    """Write a packed checkpoint as an ordinary transformers one, bit for bit what was packed."""
    from hf_mamba_prune.command import packed

    packed.unpack(model, output, revision)


@app.command()
@flattened
def generate(wanted: g.GenerateOptions) -> None:
    """Write text with a dense, pruned or packed model, and say how fast that was."""
    from hf_mamba_prune.command import packed

    packed.generate(wanted)


@app.command()
@flattened
def bench(shown: g.OutputOptions, wanted: g.BenchOptions) -> None:
    """Measure size, memory, prefill and decode of a model, dense and packed side by side, on this CPU."""
    o.check_packed_values(wanted.values)
    from hf_mamba_prune.command import packed

    packed.bench(wanted, shown)


@app.command()
@flattened
def push(
    folder: o.Result,
    hub: g.PushOptions,
    shown: g.OutputOptions,
    revision: o.Branch = None,
    overwrite: o.OverwriteRepo = False,
) -> None:
    """Push a result folder to the Hub: weights, packed form, card, report and figures in one commit."""
    from hf_mamba_prune.command import hub as command

    command.push(folder, hub, revision, overwrite, shown)


@app.command()
def card(folder: o.Result, repo_id: o.RepoId = None, debug: o.Debug = False) -> None:
    """Write the model card of a result folder, README.md, from its report."""
    from hf_mamba_prune.command import hub

    hub.card(folder, repo_id)


@app.command()
@flattened
def reproduce(shown: g.OutputOptions, wanted: g.ReproduceOptions) -> None:
    """Train a dense model on one of the paper's benchmarks, prune it by several methods, and write the table."""
    sparsities = o.parse_numbers("--sparsities", wanted.sparsities)
    from hf_mamba_prune.command import reproduce as command

    command.reproduce(wanted, sparsities, shown)


if __name__ == "__main__":
    main()
