"""What the Space says of a model before it loads one weight of it."""

from __future__ import annotations

import json
from collections.abc import Callable

import local_hub as hubs
import pytest
from inspection import inspect
from limits import Limits
from local_hub import LocalHub
from orders import Order, Refusal
from tiny_models import build_model, build_tokenizer

local_hub = hubs.local_hub


@pytest.fixture
def hub(local_hub, monkeypatch, tmp_path) -> LocalHub:
    """With a small model in `alice/small`, and nobody signed in."""
    local_hub.attach(monkeypatch, tmp_path / "home", None)
    build_model("mamba").save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    local_hub.add_model("alice/small", tmp_path / "model")
    return local_hub


def edit(hub: LocalHub, **values: object) -> None:
    config = json.loads(hub.files("alice/small")["config.json"]) | values
    hub.add_model("alice/small", {"config.json": json.dumps(config).encode()})


def test_the_bundled_model_fits_and_needs_no_hub():
    found = inspect(Order(sparsity=0.5), Limits())
    assert (found.kind, found.layers, found.hidden, found.download_bytes) == ("mamba", 8, 192, 0)
    assert found.too_big is None
    assert sum(found.components.values()) == found.prunable
    assert found.zeros == pytest.approx(found.prunable / 2, abs=1)


def test_a_model_on_the_hub_is_read_without_its_weights(hub):
    found = inspect(Order("alice/small"), Limits())
    assert found.weights == build_model("mamba").num_parameters()
    assert found.download_bytes == len(hub.files("alice/small")["model.safetensors"])
    assert not [seen for seen in hub.requests if "safetensors" in seen.path and seen.method == "GET"]


@pytest.mark.parametrize(
    "limits, reason",
    [
        (Limits(memory_gb=0.001), "of memory"),
        (Limits(minutes=1e-6), "it would take about"),
        (Limits(download_gb=1e-6), "its weights are"),
    ],
)
def test_what_does_not_fit_is_said_beside_the_facts(hub, limits, reason):
    found = inspect(Order("alice/small"), limits)
    assert found.weights > 0
    assert reason in found.too_big


def test_training_costs_more_than_none():
    quick, standard = (inspect(Order(recipe=recipe), Limits()).seconds for recipe in ("quick", "standard"))
    assert standard > 2 * quick


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
def test_a_hub_that_refuses_gives_a_sentence(hub, status):
    hub.fail("GET", "/api/models/alice/small", status, times=None)
    with pytest.raises(Refusal, match="no such public model|too many requests|The Hub answered") as refusal:
        inspect(Order("alice/small"), Limits())
    assert "alice" not in str(refusal.value)


@pytest.mark.parametrize(
    "values",
    [
        dict(hidden_size=10**9), dict(num_hidden_layers=-1), dict(state_size="many"), dict(vocab_size=10**12),
        dict(expand=True), dict(conv_kernel=[4]), dict(num_hidden_layers=float("inf")),
    ],
)  # fmt: skip
def test_a_config_that_asks_for_too_much_is_never_built(hub, values):
    edit(hub, **values)
    with pytest.raises(Refusal, match=next(iter(values))):
        inspect(Order("alice/small"), Limits())


def _remote_code(hub: LocalHub) -> None:
    hub.add_model("alice/small", {"evil.py": b"raise SystemExit('executed')"})
    edit(hub, model_type="evil", auto_map={"AutoConfig": "evil.Evil"})


def _other_kind(hub: LocalHub) -> None:
    edit(hub, model_type="bert")


def _broken(hub: LocalHub) -> None:
    hub.add_model("alice/small", {"config.json": b'{"model_type": "mam'})


def _list(hub: LocalHub) -> None:
    hub.add_model("alice/small", {"config.json": b"[]"})


def _deep(hub: LocalHub) -> None:
    hub.add_model("alice/small", {"config.json": b"[" * 100_000})


def _huge_tokenizer(hub: LocalHub) -> None:
    hub.add_model("alice/small", {"tokenizer.json": b" " * 33_000_000})


@pytest.mark.parametrize("harm", [_remote_code, _other_kind, _broken, _list, _deep, _huge_tokenizer])
def test_what_is_no_mamba_is_refused(hub, harm: Callable[[LocalHub], None]):
    harm(hub)
    with pytest.raises(Refusal) as refusal:
        inspect(Order("alice/small"), Limits())
    assert "/" not in str(refusal.value).replace("alice/small", "")


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[1]", b"null"], ids=bytes.decode)
def test_a_page_in_place_of_an_answer_is_a_sentence(hub, body):
    hub.fail("GET", "/api/models/", body=body)
    with pytest.raises(Refusal, match="The Hub cannot be reached"):
        inspect(Order("alice/small"), Limits())


def test_a_private_model_looks_as_if_it_were_not_there(hub):
    hub.add_model("alice/secret", {"config.json": b"{}"}, private=True)
    answers = set()
    for name in ("alice/secret", "alice/missing"):
        with pytest.raises(Refusal) as refusal:
            inspect(Order(name), Limits())
        answers.add(str(refusal.value))
    assert len(answers) == 1
    assert not [seen for seen in hub.requests if seen.with_token]


def test_a_repository_without_config_is_no_model(hub):
    hub.add_model("alice/empty", {"README.md": b"nothing"})
    with pytest.raises(Refusal, match=r"no config\.json"):
        inspect(Order("alice/empty"), Limits())
