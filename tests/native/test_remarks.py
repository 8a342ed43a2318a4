"""What is said of the kernels: nothing where they run, one line where they are missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_mamba_prune import native
from hf_mamba_prune.native import plug

TAKE = {plug._conv: 2, plug._scan: 5, plug._chunk_scan: 6, plug._fused: 5}
"""What a sequence goes through as a whole, and how many tensors each takes."""

TESTS = Path(__file__).parents[1]

USED = """
import contextlib, sys, torch
from tiny_models import build_model
from hf_mamba_prune import native
ids = torch.arange(1, 9)[None]
model = build_model(sys.argv[1])
with native.use_native(model) if sys.argv[2] == "native" else contextlib.nullcontext():
    with torch.no_grad():
        cache = model(ids, use_cache=True).cache_params
        model(ids[:, :1], cache_params=cache, use_cache=True)
        model.generate(ids, max_new_tokens=3, do_sample=False)
    model.train()(ids, labels=ids).loss.backward()
"""


def said(code: str, *arguments: str) -> str:
    """What a process of its own writes, on both outputs: transformers says things once in a process."""
    path = f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
    run = subprocess.run([sys.executable, "-c", path + code, *arguments], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr


@pytest.mark.parametrize("case", ["mamba", "falcon_mamba", "mamba2"])
def test_transformers_does_not_advise_other_kernels_where_these_run(case):
    found = said(USED, case, "native")
    assert "falling back" not in found and "is not installed" not in found, found


def test_transformers_still_says_it_of_stock():
    found = said(USED, "mamba", "stock")
    assert "`selective_scan_fn` is falling back to its reference PyTorch implementation" in found
    assert "`mamba_inner_fn` is falling back" in found


def test_a_fused_mixer_that_is_there_serves_other_devices(model, monkeypatch):
    module = sys.modules[type(model).__module__]
    name = "mamba2_split_conv1d_scan_combined" if model.config.model_type == "mamba2" else "mamba_inner_fn"
    monkeypatch.setattr(module, name, lambda projected, *_, **named: "of a GPU")
    with native.use_native(model):
        function = getattr(module, name)
        assert function(torch.zeros(1, 4, 5), torch.zeros(2)) is None
        assert function(torch.empty(1, 4, 5, device="meta")) == "of a GPU"


def test_a_fused_mixer_that_is_gone_is_not_missed(model, monkeypatch):
    module = sys.modules[type(model).__module__]
    name = "mamba2_split_conv1d_scan_combined" if model.config.model_type == "mamba2" else "mamba_inner_fn"
    monkeypatch.delattr(module, name)
    with native.use_native(model) as handle:
        assert handle.active and not hasattr(module, name)
    assert not hasattr(module, name)


def test_sequences_that_must_be_kept_apart_are_refused_as_by_stock(model):
    """They lie in one row, and only the kernels of GPUs do not mix them."""
    module = sys.modules[type(model).__module__]
    apart = {"seq_idx": torch.zeros(1, 5, dtype=torch.int32)}
    names = [name for name, make in plug.EXCHANGED[module.__name__].items() if make in TAKE]
    assert len(names) == 3
    with native.use_native(model):
        for name in names:
            inputs = [torch.zeros(1, 4, 5)] * TAKE[plug.EXCHANGED[module.__name__][name]]
            with pytest.raises(ValueError, match="can't keep packed sequences apart"):
                getattr(module, name)(*inputs, **apart)
