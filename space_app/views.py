"""HTML of the page's parts. Every text that is not written here is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from charts import line_chart
from inspection import Facts
from jobs import RUNNING, WAITING, Job
from timeline import LABELS, read_timeline

from hf_mamba_prune import PruningReport


def notice(text: str, kind: str = "") -> str:
    """One sentence in a box; `kind` is empty, `bad` or `good`."""
    return f'<div class="notice {kind}" role="status">{escape(text)}</div>' if text else ""


def facts(found: Facts) -> str:
    """What a model is, and what an order would cost here."""
    bars = "".join(
        f'<li><span class="name">{escape(name)}</span><span class="count">{weights:,}</span>'
        f'<span class="bar" style="--share:{weights / found.prunable:.4f}"></span></li>'
        for name, weights in sorted(found.components.items(), key=lambda item: -item[1])
    )
    download = f", {_size(found.download_bytes)} to download" if found.download_bytes else ""
    cost = f"about {_duration(found.seconds)} and {_size(found.memory_bytes)} of memory on this machine{download}"
    tiles = _tiles(
        ("weights", _count(found.weights)),
        ("prunable", f"{found.prunable / found.weights:.0%}"),
        ("will be zero", _count(found.zeros)),
        ("blocks", f"{found.layers} x {found.hidden}"),
    )
    refused = ""
    if found.too_big:
        refused = notice(
            f"This one does not fit here: {found.too_big}. Run it as a Hugging Face Job on your own account below, "
            "take a smaller model, or make the order cheaper.",
            "bad",
        )
    return (
        f'<section class="card" aria-label="The model"><h3>{escape(found.order.model)}</h3>'
        f'<p class="quiet">{escape(found.kind)}, {cost}</p>{tiles}<ul class="bars">{bars}</ul>{refused}</section>'
    )


def progress(job: Job, position: int) -> str:
    """Where a job is."""
    if job.state == WAITING:
        ahead = f"{position - 1} before you" if position > 1 else "you are next"
        return f'<section class="card" role="status"><h3>In the queue: {ahead}</h3><div class="track"></div></section>'
    timeline = read_timeline(job.arguments[0], job.messages)
    over = timeline.stages.index(timeline.stage)
    rows = []
    for i, stage in enumerate(timeline.stages):
        state = "done" if i < over else "now" if i == over else "later"
        detail = f" <span>{escape(timeline.detail)}</span>" if state == "now" and timeline.detail else ""
        rows.append(f'<li class="{state}">{LABELS[stage]}{detail}</li>')
    until = job.seconds
    charts = line_chart("zeros", timeline.sparsity, ".0%", 0, timeline.order.sparsity, until)
    charts += line_chart("loss, nats a token", timeline.loss, ".2f", *_range(timeline.loss), until)
    share = timeline.share if job.state == RUNNING else 1.0
    return (
        f'<section class="card"><h3>{share:.0%} of {escape(timeline.order.name)} <span class="quiet">'
        f'{_duration(until)}</span></h3><div class="track" role="progressbar" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{share * 100:.0f}" aria-label="Pruning"><div style="width:{share:.1%}"></div></div>'
        f'<ol class="stages">{"".join(rows)}</ol><div class="charts">{charts}</div></section>'
    )


def _range(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    values = [y for _, y in points] or [0.0, 1.0]
    return min(values) - 0.05, max(values) + 0.05


def result(report: PruningReport, job: Job) -> str:
    """Dense against pruned, and where the zeros are."""
    before, after = report.before[0], report.after[0]
    stock, native, packed = report.speeds
    ratio = after.perplexity / before.perplexity
    nonzero = report.sparsity.model.weights - report.sparsity.model.zeros
    rows = (
        ("perplexity", f"{before.perplexity:,.1f}", f"{after.perplexity:,.1f}", f"{ratio:.3f} x"),
        ("bits per byte", f"{before.bits_per_byte:.3f}", f"{after.bits_per_byte:.3f}",
         f"{after.bits_per_byte / before.bits_per_byte:.3f} x"),
        ("weights that are not zero", _count(report.sparsity.model.weights), _count(nonzero),
         f"{nonzero / report.sparsity.model.weights:.2f} x"),
        ("file", _size(stock.file_bytes), _size(packed.file_bytes), f"{packed.file_bytes / stock.file_bytes:.2f} x"),
        ("tokens a second, writing", f"{stock.decode_tokens_per_second:,.0f}",
         f"{packed.decode_tokens_per_second:,.0f}",
         f"{packed.decode_tokens_per_second / stock.decode_tokens_per_second:.1f} x"),
        ("tokens a second, reading", f"{stock.prefill_tokens_per_second:,.0f}",
         f"{packed.prefill_tokens_per_second:,.0f}",
         f"{packed.prefill_tokens_per_second / stock.prefill_tokens_per_second:.1f} x"),
    )  # fmt: skip
    body = "".join(
        f'<tr><th scope="row">{name}</th><td>{dense}</td><td>{pruned}</td><td>{change}</td></tr>'
        for name, dense, pruned, change in rows
    )
    kernels = f"{escape(packed.values)} with the {escape(packed.kernels)} kernels"
    poor = notice("This model is badly hurt: take a lower sparsity, more samples, or training.", "bad")
    return (
        f'<section class="card result"><h3>{report.sparsity.prunable.sparsity:.1%} of the prunable weights are zero '
        f'<span class="quiet">in {_duration(job.seconds)}</span></h3>{poor if ratio > 1.5 else ""}'
        '<div class="scroll"><table><caption class="hidden">Dense against pruned</caption><thead><tr><td></td>'
        f'<th scope="col">dense</th><th scope="col">pruned and packed</th><th scope="col">change</th></tr></thead>'
        f'<tbody>{body}</tbody></table></div><p class="quiet">Measured on {escape(after.text)} ({after.tokens:,} '
        f"tokens) and on {escape(str(report.hardware['processor']))}, threads: {report.hardware['threads']}. Dense is "
        f"stock transformers; packed is {kernels}.</p></section>"
    )


def heat_map(report: PruningReport) -> str:
    """Zeros of each weight, block by block, as a table whose cells are coloured."""
    targets = report.sparsity.targets
    names = list(dict.fromkeys(_component(t.name) for t in targets))
    layers = list(dict.fromkeys(t.layer for t in targets))
    found = {(t.layer, _component(t.name)): t.sparsity for t in targets}
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = []
    for layer in layers:
        label = "outside" if layer is None else f"block {layer}"
        cells = "".join(_cell(found.get((layer, name))) for name in names)
        rows.append(f'<tr><th scope="row">{label}</th>{cells}</tr>')
    return (
        '<section class="card"><h3>Where the zeros are</h3><div class="scroll"><table class="heat"><caption '
        f'class="hidden">Share of zeros by block and component</caption><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _cell(share: float | None) -> str:
    if share is None:
        return "<td></td>"
    return f'<td class="cell" style="--share:{share:.3f}">{share:.0%}</td>'


def _component(name: str) -> str:
    return name.removesuffix(".weight").rsplit(".", 1)[-1]


def download(job: Job) -> str:
    """The link to the result, which only its owner has."""
    size = _size((job.folder / "model.zip").stat().st_size)
    name = escape(job.arguments[0].name)
    return f'<a class="button" href="result/{job.id}.zip" download="{name}.zip">Download {name}.zip ({size})</a>'


def link(text: str, address: str) -> str:
    """A link that opens beside the page."""
    if not address.startswith(("https://", "http://")):
        return notice(text, "good")
    where = escape(address, quote=True)
    return (
        f'<div class="notice good" role="status">{escape(text)} <a href="{where}" target="_blank" rel="noopener">'
        f"{escape(address)}</a></div>"
    )


def written(name: str, text: str, rate: float) -> tuple[str, str]:
    """A generated text, and the line below it."""
    return text, f"{rate:,.0f} tokens a second" if rate else name


def _tiles(*facts: tuple[str, str]) -> str:
    return f'<dl class="tiles">{"".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)}</dl>'


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.0f} h"


def _count(weights: float) -> str:
    return f"{weights / 1e9:,.2f} B" if weights >= 1e9 else f"{weights / 1e6:,.2f} M"
