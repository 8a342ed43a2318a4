"""The metric modules give the right numbers, directly and through `evaluate.load`, without a network."""

from __future__ import annotations

import math
import sys
from importlib import import_module
from pathlib import Path

import evaluate
import pytest

from hf_mamba_prune.measure.metrics import METRICS

CASES = {
    "perplexity": ([6.0, 2.0], [3, 1], math.exp(2.0)),
    "bits_per_byte": ([math.log(2) * 6, 0.0], [2, 1], 2.0),
    "accuracy": ([1, 0, 2, 2], [1, 1, 2, 0], 0.5),
    "mse": ([1.0, 2.0, 4.0], [1.0, 4.0, 1.0], 13 / 3),
    "mae": ([1.0, 2.0, 4.0], [1.0, 4.0, 1.0], 5 / 3),
}


def path_of(name):
    return Path(import_module(f"hf_mamba_prune.measure.metrics.{name}").__file__)


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory):
    """`evaluate` copies a module into a package of its own and imports that: here, and not in the user's cache."""
    folder = tmp_path_factory.mktemp("modules")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", folder)
        patch.syspath_prepend(folder)
        yield
    for name in [name for name in sys.modules if name.startswith("evaluate_modules")]:
        del sys.modules[name]


def test_every_metric_has_a_case():
    assert set(METRICS) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_directly(name, tmp_path):
    predictions, references, expected = CASES[name]
    found = METRICS[name](cache_dir=str(tmp_path)).compute(predictions=predictions, references=references)
    assert set(found) == {name} and found[name] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_through_evaluate_in_pieces(name, tmp_path, module_cache):
    predictions, references, expected = CASES[name]
    metric = evaluate.load(str(path_of(name)), cache_dir=str(tmp_path))
    for prediction, reference in zip(predictions, references, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute()[name] == pytest.approx(expected, rel=1e-12)
    assert metric.info.description and metric.info.inputs_description


def test_a_hopeless_model_has_an_infinite_perplexity(tmp_path):
    metric = METRICS["perplexity"](cache_dir=str(tmp_path))
    assert metric.compute(predictions=[8000.0], references=[1]) == {"perplexity": math.inf}


@pytest.mark.parametrize("name", CASES)
def test_a_metric_module_stands_alone(name):
    assert "hf_mamba_prune" not in path_of(name).read_text()
