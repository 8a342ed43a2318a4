"""Freed memory stays with the process while somebody trains on the kernels, and no longer."""

from __future__ import annotations

import pytest
import torch

from hf_mamba_prune import native
from hf_mamba_prune.native import memory, plug

IDS = torch.arange(1, 9)[None]


@pytest.fixture
def told(monkeypatch) -> list[bool]:
    """What the C library was told."""
    calls: list[bool] = []

    class Library:
        @staticmethod
        def keep_freed_memory(*, keep: bool) -> None:
            calls.append(keep)

    for name in memory.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(memory, "kernels", lambda: Library)
    monkeypatch.setattr(memory, "_kept", False)
    monkeypatch.setattr(plug, "_users", {})  # models of other tests may still hold the kernels
    monkeypatch.setattr(plug, "_stock", {})
    return calls


def test_it_is_kept_from_the_first_training_step_until_the_last_handle_closes(model, told):
    with native.use_native(model):
        with torch.no_grad():
            model(IDS)
        assert told == []
        with native.use_native(model):
            model(IDS)
            model(IDS)
        assert told == [True]
    assert told == [True, False]


def test_the_environments_own_thresholds_stay(mamba, told, monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "100000")
    with native.use_native(mamba):
        mamba(IDS)
    assert told == []


def test_the_library_takes_both(mamba):
    with native.use_native(mamba):
        mamba(IDS, labels=IDS).loss.backward()
        assert memory._kept or any(name in memory.os.environ for name in memory.VARIABLES)
    assert not memory._kept
