"""What a visitor of the Space may ask for, and what is refused before anything else sees it."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from limits import Limits
from orders import BUNDLED, KNOWN, STEPS, Order, Refusal, refuse_tokens, sentence, source_of

from hf_mamba_prune import demo

TOKEN = "hf_" + "a" * 34


@pytest.mark.parametrize("model", KNOWN)
def test_known_models_are_orders(model):
    assert Order(model).model == model


def test_spaces_around_an_id_are_dropped():
    assert Order("  state-spaces/mamba-130m-hf\n").model == "state-spaces/mamba-130m-hf"


@given(st.text(max_size=80))
@example("name")
@example("../../etc/passwd")
@example("/etc/passwd")
@example("tests/data")
@example("space_app/gallery")
@example("file:///etc/passwd")
@example("https://huggingface.co/a/b")
@example("a/b/../c")
@example("<script>alert(1)</script>/x")
@example("a/<img src=x onerror=alert(1)>")
@example("ａ/ｂ")
@example("a/b\u202egnp")
@example("a/b\x00c")
@example("-a/--trust-remote-code")
@example("a" * 5000 + "/b")
@example(TOKEN)
@example(f"alice/{TOKEN}")
def test_an_id_is_two_plain_names_or_it_is_refused_without_being_repeated(text):
    try:
        model = Order(text).model
    except Refusal as refusal:
        own, said = text.strip(), str(refusal).replace("user/name, like state-spaces/mamba-130m-hf", "")
        assert len(own) < 4 or own not in said or own in "That is no model's id. Expected"
        return
    assert model == BUNDLED or re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", model, re.ASCII)
    assert ".." not in model and source_of(model) == model or model == BUNDLED


@pytest.mark.parametrize("model", [None, 7, ["a/b"], {"id": "a/b"}])
def test_an_id_must_be_text(model):
    with pytest.raises(Refusal, match="Expected a model's id"):
        Order(model)


@pytest.mark.parametrize(
    "values",
    [
        dict(sparsity=0), dict(sparsity=1), dict(sparsity=-0.5), dict(sparsity=1e308), dict(sparsity=float("nan")),
        dict(sparsity=float("inf")), dict(sparsity="0.5"), dict(sparsity=None), dict(sparsity=True),
        dict(samples=0), dict(samples=10**9), dict(samples=[8]), dict(seed=-1), dict(seed=2**31),
        dict(recipe="../quick"), dict(recipe=None), dict(text="/etc/passwd"), dict(text=3),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(values):
    with pytest.raises(Refusal, match=f"The {next(iter(values))} must be"):
        Order(**values)


def test_a_token_in_a_text_is_refused_and_not_repeated():
    with pytest.raises(Refusal, match="sign in instead") as refusal:
        refuse_tokens("fine", f"my token is {TOKEN}.")
    assert TOKEN not in str(refusal.value)


@pytest.mark.parametrize(
    "said, shown",
    [
        ("the weights in /tmp/x-1/hub/snap are cut", "The weights in its folder are cut"),
        (f"{demo.MODEL} is odd", "mamba-wiki-3m is odd"),
        ("alice/small is odd", "alice/small is odd"),
        ("see https://huggingface.co/docs/hub/a and 3/4", "See https://huggingface.co/docs/hub/a and 3/4"),
        ("", "ValueError"),
        ("x" * 9999, "X" + "x" * 599),
    ],
)
def test_errors_are_shown_without_folders_of_the_machine(said, shown):
    assert sentence(ValueError(said), "mamba-wiki-3m" if str(demo.MODEL) in said else "alice/small") == shown


@pytest.mark.parametrize("recipe, steps", [("quick", None), ("standard", STEPS), ("paper", STEPS)])
def test_an_order_trains_as_its_recipe_says(recipe, steps):
    recovery = Order(recipe=recipe).recovery()
    assert (recovery and recovery.steps) == steps


def test_the_command_of_an_order_is_the_same_job(tmp_path):
    order = Order("alice/small", 0.6, samples=16, seed=3)
    job = order.job(tmp_path)
    assert job.command == "hf-mamba-prune " + " ".join(order.arguments())
    assert (job.model.source, job.config.sparsity, job.config.calibration_samples) == ("alice/small", 0.6, 16)
    assert order.name == "small-pruned-60"


def test_limits_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("SPACE_PER_VISITOR", "3")
    monkeypatch.setenv("SPACE_MINUTES", "2.5")
    assert Limits.from_environment() == Limits(per_visitor=3, minutes=2.5)


@pytest.mark.parametrize("value", ["-1", "many"])
def test_a_wrong_limit_stops_the_start(monkeypatch, value):
    monkeypatch.setenv("SPACE_WAITING", value)
    with pytest.raises(ValueError, match="SPACE_WAITING|many"):
        Limits.from_environment()
