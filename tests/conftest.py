"""Fixtures: tiny models of every supported architecture, a tokenizer, and no way to the network."""

from __future__ import annotations

import socket

import pytest
import torch
from local_hub import local_hub  # noqa: F401
from tiny_models import ARCHITECTURE_CASES, build_model, build_tokenizer
from token_watch import capsys, no_token_in_files, pytest_runtest_makereport  # noqa: F401
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hf_mamba_prune.command import cli
from hf_mamba_prune.masks.budget import Budget, allocate
from hf_mamba_prune.masks.model import apply_masks, masks_within, scores_of_model
from hf_mamba_prune.measure import speed


def run(*arguments: str) -> int:
    """The exit code of the command."""
    with pytest.raises(SystemExit) as end:
        cli.main([*arguments])
    return end.value.code or 0


def mask_only(model, targets, score, statistics, config, sparsity) -> Budget:
    """Score, allocate and mask, without reconstruction."""
    curves = {target.name: ((0.5, 0.01), (0.9, 1.0)) for target in targets}
    scores_of = scores_of_model(model, score, statistics)
    budget = allocate(targets, scores_of, config, sparsity, curves)
    apply_masks(model, targets, masks_within(budget, scores_of, config))
    return budget


@pytest.fixture(params=list(ARCHITECTURE_CASES))
def case(request) -> str:
    """The name of each architecture's case, one after the other."""
    return request.param


@pytest.fixture
def model(case) -> PreTrainedModel:
    """A model of each architecture."""
    return build_model(case)


@pytest.fixture
def mamba() -> PreTrainedModel:
    """A Mamba-1 model, where one architecture is enough."""
    return build_model("mamba")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """See `build_tokenizer`; no test changes it."""
    return build_tokenizer()


@pytest.fixture
def speeds_here(monkeypatch) -> None:
    """Speeds are measured in this process, over a few tokens: a process for each is a matter of other tests."""
    monkeypatch.setattr(speed, "measure_apart", lambda name, folder, _: speed.measure(name, folder, 4, 1))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Sums of the same numbers in the same order, on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def offline(request, monkeypatch):
    """Only this machine can be reached, except by tests that say that they need the network."""
    if request.node.get_closest_marker("network"):
        return
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def connect_here(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise ConnectionRefusedError(f"the tests are offline, but {address} was called")
        return connect(self, address)

    def look_up_here(host, *args, **options):
        if host not in ("127.0.0.1", "::1", "localhost", None):
            raise socket.gaierror(f"the tests are offline, but the address of {host!r} was asked for")
        return lookup(host, *args, **options)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    monkeypatch.setattr(socket, "getaddrinfo", look_up_here)
