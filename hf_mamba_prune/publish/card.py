"""The model card: a pure function of the report. What the report does not hold is not said."""

from __future__ import annotations

import json
import math
import re
from importlib import resources

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from hf_mamba_prune.publish.escapes import Plain, for_address, for_code, for_markdown, for_string, in_line
from hf_mamba_prune.reading import is_word
from hf_mamba_prune.report import PruningReport, RoundingFacts, SpeedFacts, TaskMetrics
from hf_mamba_prune.texts.sources import hub_dataset

CARD_NAME = "README.md"
KEYS = {
    "library_name",
    "base_model",
    "base_model_relation",
    "pipeline_tag",
    "license",
    "language",
    "datasets",
    "tags",
    "model-index",
}
"""Keys of the front matter: the Hub publishes a mistyped one without a word."""


def render_card(report: PruningReport, repo: str | None = None) -> str:
    """The whole card, front matter and text.

    Args:
        report: of the run.
        repo: Hub id that the examples name; default: the folder's name that the report suggests.
    """
    repo = repo or default_name(report)
    front = card_data(report, repo)
    unknown = front.to_dict().keys() - KEYS
    if unknown:
        raise ValueError(f"keys of the card's front matter that are not known: {', '.join(sorted(unknown))}.")
    template = _environment().from_string(resources.files(__package__).joinpath("card_template.md").read_text("utf-8"))
    body = re.sub(r"\n+(?=## )", "\n\n", re.sub(r"\n{3,}", "\n\n", template.render(_values(report, repo)))).strip()
    return f"---\n{front.to_yaml()}\n---\n\n{body}\n"


def default_name(report: PruningReport) -> str:
    """`state-spaces/mamba-370m` at 0.7 -> `mamba-370m-pruned-70`; at what came of it where that is more.
    Rounded to 2.5 bits, `mamba-370m-2.5-bits`."""
    found = max(report.sparsity.asked, report.sparsity.prunable.sparsity)
    name = report.model.id.split("/")[-1]
    if report.config.get("bits") or report.config.get("size"):
        return f"{name}-{report.rounding.bits:.3g}-bits" if report.rounding else name
    return f"{name}-pruned-{round(100 * found)}"


def base_model(report: PruningReport) -> str | None:
    """The Hub id of the dense model; None for one from a folder."""
    return report.model.id if report.model.from_hub or report.model.revision is not None else None


def card_data(report: PruningReport, repo: str) -> ModelCardData:
    """The front matter, with every metric as an evaluation result."""
    base = base_model(report)
    sources = [report.calibration.source] if report.calibration else []
    sources += report.recovery.text.split(", ") if report.recovery else []
    datasets = dict.fromkeys(found[0] for found in map(hub_dataset, sources) if found)
    results = _results(report)
    return ModelCardData(
        library_name="transformers",
        base_model=base,
        base_model_relation=("quantized" if report.rounding else "finetune") if base else None,
        pipeline_tag=report.model.pipeline,
        license=report.model.license if is_word(report.model.license) else None,
        language=[word for word in report.model.language if is_word(word)] or None,
        datasets=list(datasets) or None,
        tags=_tags(report),
        model_name=in_line(repo.split("/")[-1]) if results else None,
        eval_results=results or None,
    )


def _tags(report: PruningReport) -> list[str]:
    zeros = ["pruned", "sparsity"] if report.zeros_asked else []
    return ["mamba", *zeros, "hf-mamba-prune", *(["quantized"] if report.rounding else [])]


def _results(report: PruningReport) -> list[EvalResult]:
    results = []
    for dense, pruned in zip(report.before, report.after, strict=True):
        dataset, config, split = hub_dataset(pruned.text) or (None, None, None)
        for metric in ("perplexity", "bits_per_byte", "word_perplexity"):
            if not math.isfinite(getattr(pruned, metric)):
                continue  # the front matter has no such number
            results.append(
                EvalResult(
                    task_type=report.model.pipeline,
                    dataset_type=dataset or _slug(pruned.text),
                    dataset_name=in_line(pruned.text),
                    dataset_config=config,
                    dataset_split=split or ("test" if dataset else None),
                    metric_type=metric,
                    metric_value=getattr(pruned, metric),
                    metric_name=f"{metric.replace('_', ' ')} ({report.parent}: {getattr(dense, metric):.4f})",
                )
            )
    earlier = {(found.task, found.metric): found.value for found in report.tasks_before}
    for found in report.tasks_after:
        before = earlier.get((found.task, found.metric))
        note = "" if before is None else f", zero-shot ({report.parent}: {before:.4f})"
        results.append(
            EvalResult(
                task_type=report.model.pipeline,
                dataset_type=_slug(found.task),
                dataset_name=in_line(found.task),
                metric_type=in_line(found.metric),
                metric_value=found.value,
                metric_name=f"{in_line(found.metric)}{note}",
            )
        )
    return results


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        finalize=for_markdown,  # whatever the template writes, unless a filter made it fit for code
    )
    environment.filters |= {"code": for_code, "string": for_string, "address": for_address}
    return environment


def _values(report: PruningReport, repo: str) -> dict[str, object]:
    """What the template shows, as text already."""
    facts = report.sparsity
    speeds = [_speed(speed, report.model.dtype) for speed in report.speeds]
    return {
        "title": repo.split("/")[-1],
        "repo": repo,
        "base_model": base_model(report),
        "model": report.model,
        "parent": report.parent,
        "made": report.made,
        "zeros_asked": report.zeros_asked,
        "parent_sparsity": f"{facts.prunable.zeros_before / max(1, facts.prunable.weights):.2%}",
        "quality": [_quality(*pair) for pair in zip(report.before, report.after, strict=True)],
        "tasks": _tasks(report),
        "harness": report.versions.get("lm-eval") if report.tasks_before else None,
        "measured": ", ".join(dict.fromkeys([m.text for m in report.after] + [m.task for m in report.tasks_after])),
        "speeds": speeds,
        "dense": speeds[0] if speeds else None,
        "packed": speeds[-1] if speeds else None,
        "prunable_sparsity": f"{facts.prunable.sparsity:.2%}",
        "model_sparsity": f"{facts.model.sparsity:.2%}",
        "zeros": f"{facts.prunable.zeros:,}",
        "prunable": f"{facts.prunable.weights:,}",
        "all_weights": f"{facts.model.weights:,}",
        "components": [
            {
                "name": count.name,
                "weights": f"{count.weights:,}",
                "zeros": f"{count.zeros:,}",
                "sparsity": f"{count.sparsity:.2%}",
            }
            for count in facts.components
        ],
        "rounding": None if report.rounding is None else _rounding(report.rounding),
        "command": report.command,
        "config": Plain(json.dumps(report.config, indent=2)),
        "calibration": report.calibration,
        "recovery": report.recovery,
        "cross_entropy": bool(report.config.get("ce_weight")),
        "tuned": _tuned(report),
        "teacher": _teacher(report),
        "versions": {name: found for name, found in report.versions.items() if found[:1].isdigit()},
        "hardware": report.hardware,
    }


def _rounding(facts: RoundingFacts) -> dict[str, object]:
    rows = [
        {
            "name": own.name,
            "weights": f"{own.weights:,}",
            "bits": f"{own.bits:.3f}",
            "zeros": f"{own.zeros:.1%}",
            "rows": [f"{count / max(1, sum(own.rows)):.1%}" for count in own.rows],
        }
        for own in facts.components
    ]
    embeddings = None if facts.embedding_bits is None else f"{round(facts.embedding_bits, 2):g}"
    memory = None if facts.memory_bits is None else f"{facts.memory_bits:.3f}"
    return {"bits": f"{facts.bits:.3f}", "memory": memory, "embeddings": embeddings, "components": rows}


def _quality(dense, pruned) -> dict[str, object]:
    return {
        "text": pruned.text,
        "dense": f"{dense.perplexity:.3f}",
        "pruned": f"{pruned.perplexity:.3f}",
        "kept": f"{dense.perplexity / pruned.perplexity:.1%}",
        "dense_bits": f"{dense.bits_per_byte:.4f}",
        "pruned_bits": f"{pruned.bits_per_byte:.4f}",
        "kept_bits": f"{dense.bits_per_byte / pruned.bits_per_byte:.1%}",
        "window": pruned.window,
        "stride": pruned.stride,
        "tokens": f"{pruned.tokens:,}",
        "dtype": pruned.dtype,
    }


def _tasks(report: PruningReport) -> list[dict[str, str]]:
    dense = {(found.task, found.metric): found for found in report.tasks_before}
    return [
        {
            "task": found.task,
            "metric": found.metric,
            "dense": _value(dense.get((found.task, found.metric))),
            "pruned": _value(found),
            "examples": f"{found.examples:,}",
        }
        for found in report.tasks_after
    ]


def _value(found: TaskMetrics | None) -> str:
    if found is None:
        return ""
    return f"{found.value:.4f}" + (f" +- {found.standard_error:.4f}" if found.standard_error is not None else "")


def _speed(speed: SpeedFacts, saved: str) -> dict[str, object]:
    """One row; a dense model may run in another type than it is saved in."""
    held = saved if speed.name.startswith("dense") else speed.values
    return {
        "name": speed.name,
        "kind": speed.values,
        "threads": speed.threads,
        "file": f"{speed.file_bytes / 1e6:,.1f} MB as {held}",
        "memory": f"{speed.memory_bytes / 1e6:,.0f} MB",
        "prefill": f"{speed.prefill_tokens_per_second:,.0f}",
        "decode": f"{speed.decode_tokens_per_second:,.1f}",
    }


def _tuned(report: PruningReport) -> list[str]:
    """What learned from the calibration text, one after the other."""
    kept = ["all that is kept, but embeddings,"] if any(cost.step == "tune" for cost in report.costs) else []
    rounded = ["scales, norms, convolutions and the recurrence"] if report.rounding is not None else []
    return kept + rounded


def _teacher(report: PruningReport) -> str:
    """From whose predictions it learned: what was pruned by cross-entropy alone was rounded without a dense model."""
    alone = report.recovery is not None and report.recovery.gradual and not report.recovery.distilled
    return "the trained model before it was rounded" if alone else f"the {report.parent} model"
