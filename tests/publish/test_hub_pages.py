"""A page of a proxy, or JSON of another shape, in place of an answer: wherever the Hub is asked, one sentence."""

from __future__ import annotations

import itertools

import local_hub as hubs
import pushing
import pytest
from conftest import run
from local_hub import ALICE

from hf_mamba_prune.training.record import _repository

local_hub = hubs.local_hub
SHAPES = (b"<html>Please log in</html>", b"{}", b"[1]", b"null")
INFO = ("info", "alice/tiny")
OWN_TOKENIZER = ("evaluate", "model", "--tokenizer", "alice/tiny", "--eval", "text.txt", "--window", "32")
TEXTS = ("evaluate", "model", "--eval", "alice/texts:default:train", "--window", "32")
ASKED = {
    "model": (INFO, "/api/models/alice/tiny(/revision/|$)"),
    "listing": (INFO, "/api/models/alice/tiny/tree/"),
    "file": (INFO, "/resolve/"),
    "tokenizer": (OWN_TOKENIZER, "/api/models/alice/tiny(/revision/|$)"),
    "data set": (TEXTS, "/api/datasets/alice/texts$"),
    "its listing": (TEXTS, "/api/datasets/alice/texts/tree/"),
    "its file": (TEXTS, "/resolve/"),
}
EMPTY = {("listing", b"{}"), ("its listing", b"{}")}
"""Read as a listing of nothing: a model or data set without files."""


@pytest.fixture
def place(tmp_path, monkeypatch, local_hub):
    """A folder in which the command runs as alice, whose Hub has a model and a data set."""
    local_hub.attach(monkeypatch, tmp_path / "home", ALICE.token)
    monkeypatch.chdir(tmp_path)
    pushing.make_place()
    local_hub.add_model("alice/tiny", tmp_path / "model")
    local_hub.add_dataset("alice/texts", {"train.txt": pushing.TEXT.encode()})
    return tmp_path


@pytest.mark.parametrize(("name", "body"), [*itertools.product(ASKED, SHAPES)])
def test_it_is_one_sentence(place, local_hub, capsys, name, body):
    command, path = ASKED[name]
    failure = local_hub.fail(".*", path, body=body, times=None)
    assert run(*command) == (2 if (name, body) in EMPTY else 1)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert failure.hits and error.startswith("hf-mamba-prune: error: ") and "alice/" in error
    if "file" not in name and (name, body) not in EMPTY:
        assert "is not what the Hub sends" in error


@pytest.mark.parametrize("body", SHAPES)
def test_a_training_ends_without_the_license_of_its_parent(place, local_hub, body):
    local_hub.fail("GET", "/api/models/alice/tiny$", body=body, times=None)
    assert _repository("alice/tiny") == (False, None)
