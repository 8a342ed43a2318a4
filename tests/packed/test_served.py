"""Packed models where others use them too: threads, copies, other kinds of ids, padded turns; damaged indexes."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from packed_cases import CASES, load, needs_kernels, save, sparse_model, token_by_token, tokens
from tiny_models import build_model, build_tokenizer

from hf_mamba_prune import native
from hf_mamba_prune.packed.checkpoint import write_packed_model

pytestmark = needs_kernels


def told(model, seed: int) -> torch.Tensor:
    return model.generate(tokens(7, seed=seed), max_new_tokens=24, min_new_tokens=24, do_sample=False)


def test_threads_may_share_a_model(tmp_path):
    save(tmp_path / "p")
    model = load(tmp_path / "p")
    alone = [told(model, seed) for seed in range(4)]
    found = [[] for _ in alone]
    threads = [
        threading.Thread(target=lambda seed=seed: found[seed].extend(told(model, seed) for _ in range(4)))
        for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(out, alone[seed]) for seed in range(4) for out in found[seed])


def is_tied(model) -> bool:
    return model.lm_head.weight is model.get_input_embeddings().weight


@CASES
@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), "torch.save"])
def test_a_copy_lives_on_its_own(tmp_path, case, way):
    save(tmp_path / "p", case)
    model = load(tmp_path / "p")
    wanted, tied = told(model, 1), is_tied(model)
    if way == "torch.save":
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = way(model)
    assert torch.equal(told(model, 1), wanted)
    del model
    assert torch.equal(told(other, 1), wanted) and is_tied(other) == tied
    assert native.plugged(other)
    del other
    gc.collect()
    assert not native.plugged(build_model(case))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8], ids=str)
def test_ids_of_any_kind(tmp_path, dtype):
    save(tmp_path / "p")
    model, ids = load(tmp_path / "p"), tokens(9, 2) % 200
    assert torch.equal(token_by_token(model, ids.to(dtype), 5), token_by_token(model, ids, 5))


@pytest.mark.parametrize("case", ["mamba", "mamba2", "falcon_mamba"])
def test_another_activation_is_not_taken_for_silu(tmp_path, case):
    dense = sparse_model(case)
    other = copy.deepcopy(dense.config)
    other.hidden_act = "gelu"
    changed = type(dense)(other)
    changed.load_state_dict(dense.state_dict())
    write_packed_model(tmp_path / "p", changed, build_tokenizer(), torch.float32)
    unpacked, model, ids = load(tmp_path / "p", unpack=True), load(tmp_path / "p"), tokens(9, 2)
    wanted = token_by_token(unpacked, ids, 5)
    torch.testing.assert_close(token_by_token(model, ids, 5), wanted, rtol=1e-4, atol=1e-4)
    assert (token_by_token(dense.eval(), ids, 5) - wanted).abs().max() > 1e-2  # the activation matters here


def padded_turn(model, padding: int):
    """The last logits of a turn of three tokens after a cache, the first of them padding in the first sequence."""
    ids, mask = tokens(8, 2), torch.ones(2, 8, dtype=torch.long)
    mask[0, 5 : 5 + padding] = 0
    cache = model(ids[:, :5], use_cache=True).cache_params
    return model(ids[:, 5:], cache_params=cache, use_cache=True, attention_mask=mask).logits[:, -1]


def test_padding_among_tokens_after_a_cache_is_not_read(tmp_path):
    dense = save(tmp_path / "p", "mamba2").eval()
    model = load(tmp_path / "p")
    for padding in (0, 1):
        with torch.no_grad():
            wanted = padded_turn(dense, padding)
        torch.testing.assert_close(padded_turn(model, padding), wanted, rtol=1e-4, atol=1e-4)


def test_padding_there_is_refused_where_stock_gets_it_wrong(tmp_path):
    save(tmp_path / "p")
    padded_turn(load(tmp_path / "p"), 0)
    with pytest.raises(ValueError, match="tokens after a cache are padded"):
        padded_turn(load(tmp_path / "p"), 1)


NO_MEMORY = """
import resource, sys, torch
from hf_mamba_prune import native
torch.set_num_threads(2)
values = torch.rand(1 << 21)
native.range_histogram(values, 0, 20, 1024)
held = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (held + (5 << 28),) * 2)
try:
    native.range_histogram(values, 0, 4, 1 << 27)  # each task wants half a gigabyte of its own
except MemoryError:
    native.range_histogram(values, 0, 20, 1024)
    print("went on")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
def test_what_a_task_throws_comes_out_and_the_threads_live_on():
    done = subprocess.run([sys.executable, "-c", NO_MEMORY], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "went on"), done.stderr
