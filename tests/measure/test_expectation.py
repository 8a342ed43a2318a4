"""What is said before the work is what was measured, and a model that was trained longer is told so."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from rich.console import Console

from hf_mamba_prune import PruningConfig
from hf_mamba_prune.command.tables import show_expectation
from hf_mamba_prune.measure.expectation import BITS, REFERENCE, ZEROS, expect, trained_tokens

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def lines_of(name):
    return [json.loads(line) for line in (RESULTS / name).read_text().splitlines()]


def test_the_losses_by_zeros_are_those_of_the_benchmark():
    for zeros, ratio in ZEROS.items():
        found = [
            line["x"]["wiki.test.raw"]
            for line in lines_of("one_shot.jsonl")
            if line["model"] == REFERENCE and line["row"] == "ours" and float(line["sparsity"]) == zeros
        ]
        assert ratio == pytest.approx(statistics.mean(found), abs=0.002), zeros


def test_the_losses_by_bits_are_those_of_the_benchmark():
    lines = lines_of("few_bits.jsonl")
    for bits, ratio in BITS.items():
        found = [
            line["x"]["wiki.test.raw"]
            for line in lines
            if line["model"] == REFERENCE and line.get("bits") == bits and line["zeros"] and line["windows"] is None
        ]
        assert ratio == pytest.approx(statistics.mean(found), abs=0.002), bits


def test_between_two_sizes_the_loss_lies_between_theirs():
    at = {bits: expect("me/own", 1, PruningConfig(bits=bits)).ratio for bits in (2.5, 2.6, 2.75)}
    assert at[2.75] < at[2.6] < at[2.5]


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 0.95},
        {"bits": 6.0},
        {"bits": 2.1, "zeros": False},
        {"size": 10**6},
        {"sparsity": 0.5, "code_bits": 2},
        {"sparsity": 0.5, "score": "magnitude"},
        {"sparsity": 0.5, "reconstruct": False},
        {"sparsity": 0.5, "components": ("out_proj",)},
    ],
)
def test_of_what_was_not_measured_nothing_is_said(options):
    assert expect("me/own", 1, PruningConfig(**options)).ratio is None


def test_of_a_pruning_in_training_nothing_is_said():
    assert expect("me/own", 1, PruningConfig(sparsity=0.5), gradual=True).ratio is None


@pytest.mark.parametrize(
    ("source", "config", "said"),
    [
        (
            "me/own",
            {"bits": 2.5},
            ["mamba-wiki-4m", f"{BITS[2.5]:.2f} x the perplexity of its dense self", "seen more loses more"],
        ),
        ("state-spaces/mamba-370m", {"bits": 2.5}, [f"{BITS[2.5]:.2f} x", "seen about 80"]),
        ("state-spaces/mamba-370m", {"size": 10**6}, ["Figures are known of mamba-wiki-4m", "--bits 2.75"]),
        ("me/own", {"size": 10**6}, []),
    ],
)
def test_a_plan_tells_what_to_expect(source, config, said, capsys):
    show_expectation(Console(width=500), expect(source, 371_516_416, PruningConfig(**config)))
    shown = capsys.readouterr().out
    assert bool(shown) == bool(said) and all(words in shown for words in said)


@pytest.mark.parametrize(
    ("source", "weights", "tokens"),
    [
        ("state-spaces/mamba-370m", 371_516_416, 807),
        ("state-spaces/mamba-2.8b-slimpj", 2_768_345_600, 217),
        ("some/where/mamba-wiki-4m/", 1, 15.6),
        ("me/own", 1, None),
    ],
)
def test_how_long_published_models_were_trained(source, weights, tokens):
    assert trained_tokens(source, weights) == (tokens if tokens is None else pytest.approx(tokens, rel=0.01))


def test_only_a_model_that_was_trained_longer_is_called_so():
    assert expect("state-spaces/mamba-130m", 129_135_360, PruningConfig(sparsity=0.5)).longer
    assert not expect("mamba-wiki-4m", 1, PruningConfig(sparsity=0.5)).longer
    assert not expect("me/own", 1, PruningConfig(sparsity=0.5)).longer
