"""What is said of the kernels: nothing where they run, one line where they are missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packed_cases import save
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from hf_mamba_prune import native
from hf_mamba_prune.command.cli import app
from hf_mamba_prune.native import library, plug

TAKE = {plug._conv: 2, plug._scan: 5, plug._chunk_scan: 6, plug._fused: 5}
"""What a sequence goes through as a whole, and how many tensors each takes."""

TESTS = Path(__file__).parents[1]

USED = """
import contextlib, sys, torch
from tiny_models import build_model
from hf_mamba_prune import native
ids = torch.arange(1, 9)[None]
for kernels in (native.use_native, contextlib.nullcontext):
    model = build_model(sys.argv[1])
    with kernels(model):
        with torch.no_grad():
            cache = model(ids, use_cache=True).cache_params
            model(ids[:, :1], cache_params=cache, use_cache=True)
            model.generate(ids, max_new_tokens=3, do_sample=False)
        model.train()(ids, labels=ids).loss.backward()
    print("stock" * (kernels is native.use_native), file=sys.stderr)
"""


def said(code: str, *arguments: str) -> str:
    """What a process of its own writes, on both outputs: transformers says things once in a process."""
    path = f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
    run = subprocess.run([sys.executable, "-c", path + code, *arguments], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr


@pytest.mark.parametrize(
    "case", ["mamba", *(pytest.param(case, marks=pytest.mark.slow) for case in ("falcon_mamba", "mamba2"))]
)
def test_transformers_advises_other_kernels_where_it_runs_stock_and_not_where_these_run(case):
    here, stock = said(USED, case).split("stock\n")
    assert "falling back" not in here and "is not installed" not in here, here
    if case != "mamba2":
        assert "`selective_scan_fn` is falling back to its reference PyTorch implementation" in stock
        assert "`mamba_inner_fn` is falling back" in stock


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


MISSING = """
import json, sys, torch

class Nothing:  # as where no compiler was: the module is not there
    def find_spec(self, name, path=None, target=None):
        if name == "hf_mamba_prune.native._kernels":
            raise ImportError("libstdc++.so.6: version `GLIBCXX_9' not found")

sys.meta_path.insert(0, Nothing())
from hf_mamba_prune import native
from hf_mamba_prune.native import library
from tiny_models import build_model
from pathlib import Path
library._HERE = Path(sys.argv[1])
for _ in range(2):
    with native.use_native(torch.nn.Linear(2, 2)), native.use_native(build_model("mamba", 0).to("meta")):
        pass
assert not library._told
for case in ("mamba", "mamba", "mamba2"):
    with native.use_native(build_model(case)) as handle:
        print(handle.active)
print(json.dumps(native.info()))
"""


def missing(tmp_path: Path, *files: str) -> tuple[list[str], dict]:
    """What is logged by uses of the kernels, and `info`, where the package's folder holds those files."""
    for name in files:
        (tmp_path / name).touch()
    lines = said(MISSING, str(tmp_path)).splitlines()
    (info,) = (json.loads(line) for line in lines if line.startswith("{"))
    return [line for line in lines if "kernels are missing" in line and not line.startswith("{")], info


REASONS = {
    "not built": ((), "they were not built when hf-mamba-prune was installed"),
    "another Python": (
        ("_kernels.cpython-39-x86_64-linux-gnu.so",),
        "_kernels.cpython-39-x86_64-linux-gnu.so was built for another Python than this, cpython-3",
    ),
    "cannot be loaded": (("_kernels.abi3.so",), "_kernels.abi3.so cannot be loaded: libstdc++.so.6: version"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("files", "reason"), REASONS.values(), ids=REASONS)
def test_kernels_that_are_missing_are_said_once_with_the_reason_and_what_to_do(tmp_path, files, reason):
    logged, info = missing(tmp_path, *files)
    assert len(logged) == 1 and reason in logged[0]
    assert "`pip install" in logged[0] and "`make setup`" in logged[0]
    assert info["missing"] == logged[0] and not info["built"]


def test_nothing_is_said_where_they_are_switched_off(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MAMBA_PRUNE_NATIVE", "0")
    logged, info = missing(tmp_path)
    assert not logged and "were not built" in info["missing"]


def test_loading_packed_weights_says_it_too(tmp_path, monkeypatch, caplog):
    save(tmp_path / "p")
    monkeypatch.setattr(library, "_kernels", None)
    monkeypatch.setattr(library, "_told", [])
    for _ in range(2):
        AutoModelForCausalLM.from_pretrained(tmp_path / "p")
    assert caplog.text.count("the native kernels are missing") == 1


def test_info_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "_kernels", None)
    monkeypatch.setattr(library, "_HERE", tmp_path)
    shown = " ".join(CliRunner().invoke(app, ["info"], catch_exceptions=False).stdout.split())
    assert "the native kernels are missing" in shown and "they were not built" in shown


@pytest.mark.skipif(not native.available(), reason="the kernels are not built or switched off")
def test_info_says_nothing_of_it_where_they_are_built():
    assert "missing" not in native.info()
