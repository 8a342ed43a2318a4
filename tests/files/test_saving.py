"""A result appears whole or not at all, and loads in plain transformers as what it was."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import mask_only
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny_models import ARCHITECTURE_CASES, VOCABULARY, build_model, build_tokenizer
from transformers import AutoModelForCausalLM

from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.files.saving import check_output, round_to, whole_folder, write_checkpoint
from hf_mamba_prune.masks.scores import build_score
from hf_mamba_prune.models.targets import find_targets
from hf_mamba_prune.packed.checkpoint import write_packed_model
from hf_mamba_prune.report import REPORT_NAME

CONFIG = PruningConfig(sparsity=0.5, score="magnitude")
IDS = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))

PLAIN = """
import json, sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
ids, found = load_file(sys.argv[1])["ids"], {}
for folder in sys.argv[3:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    facts = {kind: sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    text = AutoTokenizer.from_pretrained(folder)("the thing").input_ids
    found[folder] = facts | {"tied": tied, "dtype": str(model.dtype), "text": text}
    with torch.no_grad():
        save_file({"logits": model.eval()(input_ids=ids, use_cache=False).logits}, folder + "/logits.safetensors")
assert not [name for name in sys.modules if name.startswith("hf_mamba_prune")]
json.dump(found, open(sys.argv[2], "w"))
"""


def pruned(model):
    """The model with half of its default weights set to zero by magnitude."""
    mask_only(model, find_targets(model), build_score(CONFIG), {}, CONFIG, CONFIG.sparsity)
    return model


def test_stock_transformers_loads_the_same_model_in_another_process(tmp_path, tokenizer):
    made = {}
    for case in ARCHITECTURE_CASES:
        for dtype in (torch.float32, torch.bfloat16):
            folder = tmp_path / f"{case}-{str(dtype).removeprefix('torch.')}"
            folder.mkdir()
            model = pruned(build_model(case))
            round_to(model, dtype)
            write_checkpoint(folder, model, tokenizer, CONFIG, dtype)
            made[str(folder)] = (model.to(dtype), str(dtype))
    save_file({"ids": IDS}, tmp_path / "ids.safetensors")
    arguments = [str(tmp_path / "ids.safetensors"), str(tmp_path / "found.json"), *made]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, *arguments], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    for folder, (model, dtype) in made.items():
        facts = found[folder]
        assert facts["missing_keys"] == facts["unexpected_keys"] == facts["mismatched_keys"] == []
        assert facts["tied"] is model.config.tie_word_embeddings and facts["dtype"] == dtype
        assert facts["text"] == tokenizer("the thing").input_ids
        with torch.no_grad():
            here = model(input_ids=IDS, use_cache=False).logits
        assert torch.equal(load_file(folder + "/logits.safetensors")["logits"], here)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_lies_in_a_folder(model, tmp_path, tokenizer, dtype):
    pruned(model)
    round_to(model, dtype)
    write_checkpoint(tmp_path, model, tokenizer, CONFIG, dtype)
    state = load_file(tmp_path / "model.safetensors")
    named = dict(model.named_parameters())
    assert set(state) == set(named)  # tied ones once, no masks, the usual names
    for name, tensor in state.items():
        assert tensor.dtype == dtype and torch.equal(tensor.float(), named[name].detach().float())
        assert not torch.signbit(tensor[tensor == 0]).any()  # +0.0 and nothing like it
    for target in find_targets(model):
        assert (state[target.name] == 0).any()
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["dtype"] == str(dtype).removeprefix("torch.") and "sparsity_config" not in values
    assert PruningConfig.from_pretrained(tmp_path) == CONFIG
    assert not list(tmp_path.glob("*.bin"))


def test_a_bf16_model_keeps_its_dtype_and_what_is_measured_is_what_is_saved(mamba, tmp_path, tokenizer):
    before = {name: weight.clone() for name, weight in mamba.named_parameters()}
    round_to(mamba, torch.float32)
    assert all(torch.equal(before[name], weight) for name, weight in mamba.named_parameters())
    round_to(mamba, torch.bfloat16)
    assert mamba.dtype == torch.float32  # still computed in float32
    assert all(torch.equal(before[n].bfloat16().float(), weight) for n, weight in mamba.named_parameters())
    write_checkpoint(tmp_path, mamba, tokenizer, CONFIG, torch.bfloat16)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    assert all(torch.equal(w.float(), mamba.get_parameter(n)) for n, w in again.named_parameters())


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def result(folder, text="old"):
    folder.mkdir()
    (folder / REPORT_NAME).write_text(text)
    (folder / "model.safetensors").write_text(text)
    return folder


def test_a_folder_appears_when_the_block_ends(tmp_path):
    goal = tmp_path / "deep" / "out"
    with whole_folder(goal) as folder:
        (folder / "a").write_text("1")
        assert not goal.exists() and folder.parent == goal.parent
    assert entries(goal) == ["a"] and entries(goal.parent) == ["out"]
    mask = os.umask(0)
    os.umask(mask)
    assert goal.stat().st_mode & 0o777 == 0o777 & ~mask and (goal / "a").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_nothing_new_and_the_old_result_as_it_was(tmp_path, error):
    old = result(tmp_path / "out")
    for overwrite in (True, False):
        with pytest.raises(error), whole_folder(old, overwrite) as folder:
            (folder / "model.safetensors").write_text("half")
            raise error
        assert entries(tmp_path) == ["out"] and (old / "model.safetensors").read_text() == "old"


def test_overwriting_replaces_all_of_the_old_result(tmp_path):
    old = result(tmp_path / "out")
    with whole_folder(old, overwrite=True) as folder:
        (folder / REPORT_NAME).write_text("new")
        assert (old / "model.safetensors").read_text() == "old"
    assert entries(tmp_path) == ["out"] and entries(old) == [REPORT_NAME]
    assert (old / REPORT_NAME).read_text() == "new"


def test_of_two_writers_the_second_finds_the_folder_taken(tmp_path):
    goal = tmp_path / "out"
    with pytest.raises(ValueError, match="was filled by somebody else meanwhile: the result is in ") as refused:
        with whole_folder(goal) as second:
            with whole_folder(goal) as first:
                (first / "a").write_text("first")
            (second / "a").write_text("second")
    kept = Path(str(refused.value).split("the result is in ")[1].rstrip("."))
    assert (goal / "a").read_text() == "first" and (kept / "a").read_text() == "second"
    assert entries(tmp_path) == sorted(["out", kept.name])


def test_an_old_result_comes_back_when_the_new_one_cannot_take_its_name(tmp_path, monkeypatch):
    old, rename = result(tmp_path / "out"), Path.rename

    def refuse_the_new_one(path, goal):
        if not path.name.endswith(".old") and goal == old:
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(path, goal)

    monkeypatch.setattr(Path, "rename", refuse_the_new_one)
    message = r"out cannot be replaced \(Device or resource busy\): the result is in .*/out\."
    with pytest.raises(RuntimeError, match=message), whole_folder(old, overwrite=True) as folder:
        (folder / "model.safetensors").write_text("new")
    (kept,) = set(entries(tmp_path)) - {"out"}
    assert (old / "model.safetensors").read_text() == "old" and (
        tmp_path / kept / "model.safetensors"
    ).read_text() == "new"


def test_a_mount_point_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "out")
    with pytest.raises(
        ValueError, match="out is a mount point, .* write into a folder inside it, such as .*/out/model"
    ):
        check_output(tmp_path / "out", overwrite=False)
    check_output(tmp_path / "out" / "model", overwrite=False)


def test_a_full_disk_is_a_sentence(tmp_path, mamba, tokenizer, monkeypatch):
    def full(*arguments, **options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(mamba, "save_pretrained", full)
    with pytest.raises(RuntimeError, match="the weights cannot be written: .*No space left on device"):
        write_checkpoint(tmp_path, mamba, tokenizer, CONFIG, torch.float32)


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "out").mkdir()
    check_output(tmp_path / "out", overwrite=False)
    with whole_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    assert entries(tmp_path / "out") == ["a"]


def test_outputs_that_would_be_lost_are_refused_early(tmp_path):
    ours = result(tmp_path / "ours")
    check_output(ours, overwrite=True)
    check_output(tmp_path / "new" / "deep", overwrite=False)
    with pytest.raises(ValueError, match="ours is not empty: choose another one, or pass --overwrite"):
        check_output(ours, overwrite=False)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    with pytest.raises(
        ValueError, match=f"holds no {REPORT_NAME}, so it is not a result of this tool: not overwritten"
    ):
        check_output(foreign, overwrite=True)
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(ours)
    for name in ("file", "link"):
        with pytest.raises(ValueError, match="exists and is not a folder"):
            check_output(tmp_path / name, overwrite=True)
    assert entries(tmp_path) == ["file", "foreign", "link", "ours"]


FOREIGN = ("thesis.tex", "figures/photo.png", "packed/notes.txt", "model-old.safetensors", "runs", ".git/config")


@pytest.mark.parametrize("name", FOREIGN)
def test_files_that_are_not_ours_are_refused_by_name_early_and_late(tmp_path, name):
    old = result(tmp_path / "out")
    goal = old / name
    message = rf"holds what this tool did not write \({name}\), and overwriting would delete it"

    def add():
        goal.parent.mkdir(exist_ok=True)
        goal.write_text("years of work") if goal.suffix or goal.name == "config" else goal.mkdir()

    with pytest.raises(ValueError, match=rf"filled by somebody else meanwhile \({name}\): the result is in") as late:
        with whole_folder(old, overwrite=True) as folder:
            (folder / REPORT_NAME).write_text("new")
            add()  # after the check at the start
    kept = Path(str(late.value).split("the result is in ")[1].rstrip("."))
    assert (old / REPORT_NAME).read_text() == "old" and (kept / REPORT_NAME).read_text() == "new" and goal.exists()
    with pytest.raises(ValueError, match=message):
        check_output(old, overwrite=True)
    assert entries(tmp_path) == sorted(["out", kept.name])


def test_everything_that_a_result_holds_may_be_replaced(mamba, tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    write_checkpoint(tmp_path, mamba, tokenizer, CONFIG, torch.float32)
    (tmp_path / "packed").mkdir()
    write_packed_model(tmp_path / "packed", mamba, tokenizer, torch.float32)
    result_files = (REPORT_NAME, "README.md", "figures/sparsity.png", "figures/quality.png")
    (tmp_path / "figures").mkdir()
    for name in result_files:
        (tmp_path / name).write_text("")
    check_output(tmp_path, overwrite=True)


def test_a_folder_that_cannot_be_written_is_refused_early(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write everywhere
    with pytest.raises(RuntimeError, match="cannot be written: no permission in"):
        check_output(tmp_path / "new" / "out", overwrite=False)
