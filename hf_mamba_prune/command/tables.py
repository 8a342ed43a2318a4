"""What the command prints at the end: tables for people. Machines read `--json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from hf_mamba_prune.measure.analysis import Analysis, Curve
from hf_mamba_prune.measure.expectation import REFERENCE, REFERENCE_TOKENS, Expectation
from hf_mamba_prune.models.model_config import ModelConfig
from hf_mamba_prune.models.targets import components_of, find_targets
from hf_mamba_prune.plan import Plan
from hf_mamba_prune.publish.hub import POOR_RATIO
from hf_mamba_prune.report import Count, LanguageMetrics, PruningReport, RoundingFacts, SpeedFacts, TaskMetrics
from hf_mamba_prune.reproduce.tasks.results import Result


def show_report(console: Console, report: PruningReport, output: Path) -> None:
    """The result of a run, and what to do next."""
    _show(console, report.model.id, _quality_table(report))
    if report.zeros_asked:
        _show(console, "Where the zeros are", _component_table(report))
    if report.rounding is not None:
        _show(console, "Where the bits are", _width_table(report.rounding))
    if report.sparsity.at_ceiling:
        names = report.sparsity.at_ceiling
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        console.print(f"\nHeld at the ceiling of {report.config['ceiling']:.0%}: {', '.join(names[:3])}{more}.")
    if report.recovery is not None:
        facts = report.recovery
        how = f"distilled from the {report.parent} model" if facts.distilled else "by cross-entropy"
        how += " and by cross-entropy" if facts.distilled and report.config.get("ce_weight") else ""
        done = "Pruned while it was trained" if facts.gradual else "Trained"
        console.print(
            f"\n{done} for {facts.steps:,} steps ({facts.tokens:,} tokens of {facts.text}), {how}: "
            f"loss {facts.first_loss:.3f} to {facts.last_loss:.3f}."
        )
    if report.speeds:
        show_speeds(console, report.speeds, report.hardware, report.model.dtype)
    costs = ", ".join(f"{cost.step} {cost.seconds:.1f} s" for cost in report.costs)
    peak = max(cost.peak_bytes for cost in report.costs)
    console.print(f"\nTime: {costs}; peak memory {peak / 1e9:.2f} GB.")
    for line in report.warnings:
        console.print(f"\n{line}", soft_wrap=True)
    _show_next(console, report, output)


def _show_next(console: Console, report: PruningReport, output: Path) -> None:
    ratio = report.perplexity_ratio()
    if ratio is not None and not ratio <= POOR_RATIO:  # NaN is above, too
        console.print(
            f"\n[bold red]The perplexity rose to {ratio:.2f} x {report.parent}: this model is badly hurt.[/] Try "
            "a lower --sparsity or more --calibration-samples; leave score, allocation and reconstruction at their "
            "defaults."
        )
    packed = {f"hf-mamba-prune generate {output} PROMPT": "run the packed weights"} if report.speeds else {}
    steps = {
        f'AutoModelForCausalLM.from_pretrained("{output}")': "use it, in plain transformers",
        f"hf-mamba-prune evaluate {output} --eval TEXT": "measure it on another text",
        f"{output / 'report.json'} and {output / 'figures'}": "all that is known of this run",
    }
    console.print(f"\nSaved in [bold]{output}[/], an ordinary transformers checkpoint. Next:")
    for what, why in (steps | packed).items():
        console.print(f"  {what:<58}  [dim]{why}[/]", highlight=False, soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(header_style="dim", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def _show(console: Console, title: str, table: Table) -> None:
    console.print(f"\n[bold]{title}[/]")
    console.print(table)


def _quality_table(report: PruningReport) -> Table:
    table = _table("", report.parent, report.made, "")
    for before, after in zip(report.before, report.after, strict=True):
        ratio = f"{after.perplexity / before.perplexity:.3f} x"
        table.add_row(f"perplexity, {before.text}", f"{before.perplexity:.2f}", f"{after.perplexity:.2f}", ratio)
        table.add_row("  bits per byte", f"{before.bits_per_byte:.4f}", f"{after.bits_per_byte:.4f}", "")
    for asked, again in zip(report.tasks_before, report.tasks_after, strict=True):
        kept = f"{again.value / asked.value:.3f} x" if asked.value else ""
        table.add_row(f"{again.metric}, {again.task}", f"{asked.value:.4f}", f"{again.value:.4f}", kept)
    if report.zeros_asked:
        _add_sizes(table, report)
    return table


def _add_sizes(table: Table, report: PruningReport) -> None:
    for count in (report.sparsity.prunable, report.sparsity.model):
        before, after = count.weights - count.zeros_before, count.weights - count.zeros
        table.add_row(f"non-zero, {count.name}", f"{before:,}", f"{after:,}", f"{count.sparsity:.2%} zero")


def _component_table(report: PruningReport) -> Table:
    table = _table("component", "weights", "zeros", "sparsity")
    for count in report.sparsity.components:
        table.add_row(_indented(count), f"{count.weights:,}", f"{count.zeros:,}", f"{count.sparsity:.1%}")
    return table


def _width_table(rounding: RoundingFacts) -> Table:
    """Bits of each component, zeros under masks, and how many of its rows have codes of which width."""
    widths = (f"{width}" for width in range(len(rounding.components[0].rows)))
    table = _table("component", "weights", "bits", "zeros", *widths)
    for own in rounding.components:
        rows = (f"{count / sum(own.rows):.0%}" if count else "" for count in own.rows)
        table.add_row(own.name, f"{own.weights:,}", f"{own.bits:.3f}", f"{own.zeros:.0%}", *rows)
    table.add_row("all of them", f"{sum(own.weights for own in rounding.components):,}", f"{rounding.bits:.3f}")
    if rounding.memory_bits is not None:
        table.add_row("in memory", "", f"{rounding.memory_bits:.3f}")
    if rounding.embedding_bits is not None:
        table.add_row("embeddings, head", "", f"{rounding.embedding_bits:.3f}")
    return table


def _indented(count: Count | Curve) -> str:
    return f"  {count.name}" if "." in count.name else count.name


def show_metrics(
    console: Console, metrics: tuple[LanguageMetrics, ...], tasks: tuple[TaskMetrics, ...], zeros: float
) -> None:
    """The result of `evaluate`."""
    for m in metrics:
        facts = {
            "perplexity": f"{m.perplexity:.3f}",
            "bits per byte": f"{m.bits_per_byte:.4f}",
            "word perplexity": f"{m.word_perplexity:,.1f}",
            "tokens": f"{m.tokens:,}",
            "window, stride": f"{m.window}, {m.stride}",
            "dtype": m.dtype,
            "tokens a second": f"{m.tokens_per_second:,.0f}",
        }
        show_facts(console, m.text, facts)
    if tasks:
        table = _table("", "metric", "value", "standard error", "examples")
        for task in tasks:
            error = "" if task.standard_error is None else f"{task.standard_error:.4f}"
            table.add_row(task.task, task.metric, f"{task.value:,.4f}", error, f"{task.examples:,}")
        _show(console, "Zero-shot tasks", table)
    console.print(f"\nZeros in the model: {zeros:.2%}.")


def show_analysis(console: Console, analysis: Analysis, output: Path) -> None:
    """The result of `analyze`: loss per token above dense, in nats."""
    for title, curves in (("Component, all blocks", analysis.components), ("Block, alone", analysis.blocks)):
        table = _table("", "weights", *[f"{level:.0%}" for level in analysis.levels])
        for curve in curves:
            table.add_row(_indented(curve), f"{curve.weights:,}", *[f"{rise:+.3f}" for rise in curve.rises])
        _show(console, title, table)
    table = _table("", *[f"{case.level:.0%}" for case in analysis.together])
    table.add_row("loss above dense", *[f"{case.rise:+.3f}" for case in analysis.together])
    for layer in range(len(analysis.together[0].decays)):
        table.add_row(f"  block {layer}", *[f"{case.decays[layer].largest:.6f}" for case in analysis.together])
    _show(console, "All at once, uniformly; below it the recurrence's largest |exp(dt A)|, which stays under 1", table)
    console.print(f"\nLoss per token above dense ({analysis.dense_loss:.3f} nats on {analysis.text}), masks only.")
    console.print(f"Saved in [bold]{output}[/]: analysis.json and analysis.png.")


def show_plan(console: Console, plan: Plan, output: Path) -> None:
    """The result of `--dry-run`."""
    table = _table("", "")
    table.add_row("weights of the model", f"{plan.weights:,}")
    for name, weights in plan.components.items():
        table.add_row(f"  {name}", f"{weights:,}")
    table.add_row("prunable", f"{plan.prunable:,} ({plan.prunable / plan.weights:.1%} of the model)")
    if plan.bits is not None or plan.file_bytes is not None:
        table.add_row("will be rounded to", _budget(plan))
    else:
        table.add_row("will be zero", f"{plan.zeros:,} ({plan.zeros / plan.weights:.1%} of the model)")
    if plan.code_bits is not None:
        table.add_row("the others rounded to", f"{plan.code_bits} bits each, masks and scales aside")
    table.add_row("memory, about", f"{plan.memory_bytes / 1e9:.1f} GB")
    table.add_row("all but evaluation, about", f"{plan.seconds:,.0f} s")
    table.add_row("output", str(output))
    _show(console, "Plan (nothing was changed)", table)
    show_expectation(console, plan.expectation)


def show_cost(console: Console, plan: Plan) -> None:
    """Before a run starts: what it will take."""
    what = f"remove {plan.zeros:,} of {plan.prunable:,} prunable weights"
    what += "" if plan.code_bits is None else f" and round the others to {plan.code_bits} bits"
    if plan.bits is not None or plan.file_bytes is not None:
        what = f"round {plan.prunable:,} projection weights to {_budget(plan)}"
    console.print(
        f"About to {what}: about {plan.seconds:,.0f} s on this CPU besides evaluation, and "
        f"{plan.memory_bytes / 1e9:.1f} GB of memory."
    )
    show_expectation(console, plan.expectation)


def show_expectation(console: Console, expected: Expectation) -> None:
    """What another model lost, and why this one may lose more."""
    reference = f"{REFERENCE}, trained on {REFERENCE_TOKENS:.0f} tokens a weight"
    if expected.ratio is not None:
        told = f"At this size {reference}, came to {expected.ratio:.2f} x the perplexity of its dense self, one-shot."
    elif expected.longer:
        told = f"Figures are known of {reference}."
    else:
        return
    if expected.longer:
        told += (
            f" This model has seen about {expected.tokens:,.0f}, and what is lost grows with them: under 5 % is what "
            "the reference loses at --sparsity 0.5 or --bits 2.75."
        )
    elif expected.tokens is None:
        told += " A model that has seen more loses more."
    console.print(f"\n{told}", soft_wrap=True)


def _budget(plan: Plan) -> str:
    """What it is rounded to, in words."""
    if plan.file_bytes is not None:
        small = plan.file_bytes < 1e6
        return f"a file of {plan.file_bytes / 1e3:,.1f} kB" if small else f"a file of {plan.file_bytes / 1e6:,.1f} MB"
    return f"{plan.bits:g} bits each"


def show_packed(console: Console, output: Path, dense: int, packed: int) -> None:
    """The result of `pack`: bytes of the weights before and after."""
    console.print(
        f"Packed {dense / 1e6:,.1f} MB of weights into {packed / 1e6:,.1f} MB ({packed / dense:.2f} x) in "
        f"[bold]{output}[/].",
        soft_wrap=True,
    )


_WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def show_speeds(
    console: Console, speeds: Sequence[SpeedFacts], facts: Mapping[str, object], saved: str | None = None
) -> None:
    """The result of `bench`, and of a pruning that packs.

    Args:
        console: prints it.
        speeds: of each model.
        facts: of the hardware.
        saved: type of the dense file. Where it was run as another, its size is that of this other type: beside packed
            weights it would look larger by what the type alone makes.
    """
    columns = ("tokens a second", "run as", "file, MB", "memory, MB", "prefill", "decode")
    table = _table(*columns)
    for speed in speeds:
        cells = (
            speed.name,
            speed.values,
            f"{speed.file_bytes * _scale(speed, saved) / 1e6:,.1f}",
            f"{speed.memory_bytes / 1e6:,.0f}",
            f"{speed.prefill_tokens_per_second:,.0f}",
            f"{speed.decode_tokens_per_second:,.1f}",
        )
        table.add_row(*cells)
    threads = speeds[-1].threads
    _show(console, f"{facts['processor']}, {threads} threads, {facts['kernels']} kernels", table)
    dense = speeds[0]
    if _scale(dense, saved) != 1:
        console.print(
            f"The dense file as {dense.values}; as {saved}, as it is saved, {dense.file_bytes / 1e6:,.1f} MB."
        )


def _scale(speed: SpeedFacts, saved: str | None) -> float:
    """Of a file's size, from the type that it is saved in to the one that it is run as; 1 for what is packed."""
    if saved is None or not speed.name.startswith("dense") or speed.values not in _WIDTHS:
        return 1
    return _WIDTHS[speed.values] / _WIDTHS.get(saved, _WIDTHS[speed.values])


def describe_model(model: PreTrainedModel) -> list[dict[str, Any]]:
    """One record a component: weights, share of the model, pruned by default, what switches it off."""
    total = sum(p.numel() for p in model.parameters())
    config = cast(ModelConfig, model.config)
    records = []
    for component in components_of(model):
        if component.kind == "state":
            weights = sum(p.numel() for name, p in model.named_parameters() if name.endswith(component.weight))
        else:
            weights = sum(target.size for target in find_targets(model, (component.name,)))
        records.append(
            {
                "component": component.name,
                "weights": weights,
                "share": weights / total,
                "pruned": "by default" if component.default else "never" if component.kind == "state" else "by choice",
                "off": component.off,
                "parts": list(component.parts(config)) if component.parts else [],
            }
        )
    return records


def result_line(result: Result) -> str:
    """One measured model of `reproduce`."""
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
    what = f"{result.method} at {result.sparsity:.0%}" if result.sparsity else result.method
    return f"{result.task}, {what}, seed {result.seed}: {metrics} ({result.train_seconds:,.0f} s of training)"


def show_model(console: Console, source: str, model: PreTrainedModel, records: list[dict[str, Any]]) -> None:
    """The result of `info MODEL`."""
    total = sum(p.numel() for p in model.parameters())
    table = _table("component", "weights", "share", "pruned", "parts")
    for record in records:
        table.add_row(
            str(record["component"]),
            f"{record['weights']:,}",
            f"{record['share']:.1%}",
            str(record["pruned"]),
            ", ".join(record["parts"]),
        )
    layers = model.config.num_hidden_layers
    _show(console, f"{source}: {model.config.model_type}, {layers} blocks, {total:,} weights", table)
    for record in records:
        if record["pruned"] == "never":
            console.print(f"{record['component']} is switched off {record['off']}.", highlight=False)


def show_facts(console: Console, title: str, facts: Mapping[str, object]) -> None:
    """Two columns of names and values."""
    table = _table("", "")
    table.show_header = False
    table.columns[1].justify = "left"
    for name, value in facts.items():
        table.add_row(f"  {name}", str(value))
    _show(console, title, table)
