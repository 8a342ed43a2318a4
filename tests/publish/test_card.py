"""The card is a pure function of the report: every number in it is the report's, and the Hub reads it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_mamba_prune import PruningReport
from hf_mamba_prune.publish.card import KEYS, render_card
from hf_mamba_prune.report.facts import RoundingFacts, WidthFacts

CARDS = sorted((Path(__file__).resolve().parents[2] / "model_cards").glob("*/report.json"))


def numbers(values: object) -> list[float]:
    """Every number of a report, also those inside its texts."""
    if isinstance(values, dict):
        return [x for value in values.values() for x in numbers(value)]
    if isinstance(values, list | tuple):
        return [x for value in values for x in numbers(value)]
    if isinstance(values, str):
        return [float(x) for x in re.findall(r"\d+(?:\.\d+)?", values)]
    return [float(values)] if isinstance(values, int | float) and not isinstance(values, bool) else []


def derived(report: PruningReport) -> list[float]:
    """What the card works out: shares in percent, of zeros and of rows of each width, and dense by pruned."""
    facts = report.sparsity
    counts = (facts.prunable, facts.model, *facts.components)
    pairs = list(zip(report.before, report.after, strict=True))
    rounded = report.rounding.components if report.rounding else ()
    return [
        *(100 * own.zeros for own in rounded),
        *(100 * count / max(1, sum(own.rows)) for own in rounded for count in own.rows),
        *(100 * count.sparsity for count in counts),
        *(100 * dense.perplexity / pruned.perplexity for dense, pruned in pairs),
        *(100 * dense.bits_per_byte / pruned.bits_per_byte for dense, pruned in pairs),
        *(size / 1e6 for speed in report.speeds for size in (speed.file_bytes, speed.memory_bytes)),
    ]


def body(card: str) -> str:
    """The text without front matter, code, citation and what hashes spell."""
    text = card.split("\n---\n", 1)[1]
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.sub(r"`[0-9a-f]{12,16}`|sha256|arxiv\.org/abs/\d+\.\d+", "", text)


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_a_committed_card_is_what_its_report_renders(path):
    card = (path.parent / "README.md").read_text(encoding="utf-8")
    assert render_card(PruningReport.load(path.parent)) == card


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_every_number_of_a_card_is_in_its_report(path):
    report = PruningReport.load(path.parent)
    known = numbers(report.to_dict()) + derived(report)
    for shown in re.findall(r"\d[\d,]*(?:\.\d+)?", body(render_card(report))):
        digits = len(shown.partition(".")[2])
        value = float(shown.replace(",", ""))
        assert any(round(number, digits) == value for number in known), shown


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_the_front_matter_gives_the_numbers_back(path):
    report = PruningReport.load(path.parent)
    card = ModelCard(render_card(report))
    assert set(card.data.to_dict()) <= KEYS
    found = {(result.dataset_name, result.metric_type): result.metric_value for result in card.data.eval_results}
    for metrics in report.after:
        for metric in ("perplexity", "bits_per_byte", "word_perplexity"):
            assert found[metrics.text, metric] == getattr(metrics, metric)
    assert card.data.library_name == "transformers"
    made = {"quantized"} if report.rounding else {"pruned", "sparsity"}
    assert {"mamba", "hf-mamba-prune"} | made <= set(card.data.tags)


def test_there_are_cards_to_test():
    assert len(CARDS) >= 2


def test_what_is_not_known_is_left_out():
    report = PruningReport.load(CARDS[0].parent)
    bare = replace(report, before=(), after=(), tasks_before=(), tasks_after=(), speeds=(), calibration=None)
    bare = replace(bare, recovery=None, command=None)
    card = render_card(bare)
    for word in ("Perplexity on", "Size and speed", "Calibrated", "Trained on", "None", "packed/"):
        assert word not in card
    assert "Its quality was not measured." in card
    assert "model-index" not in card


def test_a_hub_data_set_and_a_base_model_are_named():
    report = PruningReport.load(CARDS[0].parent)
    model = replace(report.model, id="someone/mamba", revision="a" * 40, license="mit", language=("en",))
    metrics = tuple(replace(m, text="wikitext") for m in report.after)
    calibration = replace(report.calibration, source="allenai/c4:en:train")
    known = replace(report, model=model, before=metrics, after=metrics, calibration=calibration)
    data = ModelCard(render_card(known, "me/mine")).data
    assert (data.base_model, data.base_model_relation) == ("someone/mamba", "finetune")
    assert (data.license, data.language) == ("mit", ["en"])
    assert data.datasets[0] == "allenai/c4"
    result = data.eval_results[0]
    assert (result.dataset_type, result.dataset_config) == ("Salesforce/wikitext", "wikitext-103-raw-v1")
    assert f"dense: {metrics[0].perplexity:.4f}" in result.metric_name


def test_a_card_says_that_what_is_kept_was_tuned():
    report = PruningReport.load(CARDS[0].parent)
    words = "learned to predict what the dense model predicts"
    assert words not in render_card(replace(report, costs=tuple(c for c in report.costs if c.step != "tune")))
    tuned = replace(report.costs[0], step="tune")
    assert f"all that is kept, but embeddings, {words}" in render_card(replace(report, costs=(tuned,)))


@pytest.mark.parametrize(
    ("gradual", "distilled", "teacher"),
    [(False, False, "the dense model"), (True, True, "the dense model"), (True, False, "the trained model before")],
)
def test_a_card_names_the_teacher_of_a_rounding(gradual, distilled, teacher):
    report = next(own for own in map(PruningReport.load, (path.parent for path in CARDS)) if own.recovery is not None)
    widths = WidthFacts(name="in_proj", weights=8, bits=2.5, rows=(8,))
    rounding = RoundingFacts(bits=2.5, embedding_bits=6, expected_rise=None, components=(widths,))
    recovery = replace(report.recovery, gradual=gradual, distilled=distilled)
    card = render_card(replace(report, costs=(), rounding=rounding, recovery=recovery))
    assert f"scales, norms, convolutions and the recurrence learned to predict what {teacher}" in card
