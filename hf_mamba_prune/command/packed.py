"""The commands around packed checkpoints: pack, unpack, generate, bench."""

from __future__ import annotations

import sys
import tempfile
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, TextStreamer

from hf_mamba_prune import native
from hf_mamba_prune.command import options as o
from hf_mamba_prune.command import tables
from hf_mamba_prune.command.console import open_console, print_json
from hf_mamba_prune.command.option_groups import OutputOptions, flattened
from hf_mamba_prune.files.loading import fetch, load_model, load_tokenizer
from hf_mamba_prune.files.saving import check_output, whole_folder
from hf_mamba_prune.measure.environment import hardware
from hf_mamba_prune.measure.speed import TokenClock, compare_speeds, file_bytes
from hf_mamba_prune.packed import INDEX_NAME, is_packed, write_packed_model


@flattened
def pack(
    model: o.Model,
    shown: OutputOptions,
    values: o.Values = "auto",
    revision: o.Revision = None,
    dtype: o.Dtype = "auto",
    tokenizer: o.Tokenizer = None,
    output: o.PackedOutput = None,
    overwrite: o.Overwrite = False,
) -> None:
    """Write a model in packed form: a bitmask and the kept values, a third of the size at 70 % zeros."""
    folder = output or (Path(model) / "packed" if Path(model).is_dir() else Path(f"{Path(model).name}-packed"))
    check_output(folder, overwrite, INDEX_NAME)
    with open_console(shown.quiet, shown.as_json) as console:
        loaded = load_model(model, revision, dtype, "cpu", tokenizer)
        with whole_folder(folder, overwrite) as temporary:
            write_packed_model(temporary, loaded.model, loaded.tokenizer, loaded.saved_dtype, values)
        dense = sum(p.numel() for p in loaded.model.parameters()) * loaded.saved_dtype.itemsize
        sizes = {"dense_bytes": dense, "packed_bytes": file_bytes(folder), "output": str(folder)}
        print_json(sizes) if shown.as_json else tables.show_packed(console, sizes)


def unpack(
    model: o.Model,
    output: o.DenseOutput,
    revision: o.Revision = None,
    debug: o.Debug = False,
) -> None:
    """Write a packed checkpoint as an ordinary transformers one, bit for bit what was packed."""
    check_output(output, overwrite=False)
    with open_console(False, False) as console:
        folder, _ = fetch(model, revision, "own")
        if not is_packed(folder):
            raise ValueError(f"{model} is not a packed checkpoint: nothing to unpack.")
        found = AutoModelForCausalLM.from_pretrained(folder, unpack=True)
        with whole_folder(output) as temporary:
            found.save_pretrained(temporary)
            load_tokenizer(str(folder)).save_pretrained(temporary)
        console.print(f"Saved in [bold]{output}[/], an ordinary transformers checkpoint.")


class _SpeedStreamer(TextStreamer):
    """Text as it comes, and when each token came."""

    def __init__(self, tokenizer) -> None:
        super().__init__(tokenizer, skip_prompt=False, skip_special_tokens=True)
        self.clock = TokenClock()

    def put(self, value: torch.Tensor) -> None:
        self.clock.put(value)
        super().put(value)


def generate(
    model: o.Model,
    prompt: o.Prompt,
    max_new_tokens: o.NewTokens = 100,
    temperature: o.Temperature = 0.0,
    top_k: o.TopK = 50,
    seed: o.Seed = 0,
    threads: o.Threads = None,
    revision: o.Revision = None,
    dense: o.Dense = False,
    no_native: o.NoNative = False,
    debug: o.Debug = False,
) -> None:
    """Write text with a dense, pruned or packed model, and say how fast that was."""
    with open_console(False, False):
        _set_threads(threads)
        folder, commit = fetch(model, revision)
        beside = not dense and not is_packed(folder) and is_packed(folder / "packed")
        fetch(model, commit, "packed" if beside else "own")
        folder = folder / "packed" if beside else folder
        if is_packed(folder):
            found, tokenizer = AutoModelForCausalLM.from_pretrained(folder), load_tokenizer(str(folder))
        else:
            loaded = load_model(model, revision)
            found, tokenizer = loaded.model, loaded.tokenizer
        inputs = tokenizer(prompt, return_tensors="pt").to(found.device)
        if inputs.input_ids.shape[1] == 0:
            raise ValueError("the prompt is empty: give at least one word.")
        streamer = _SpeedStreamer(tokenizer)
        torch.manual_seed(seed)
        sampling = (
            dict(do_sample=True, temperature=temperature, top_k=top_k) if temperature > 0 else {"do_sample": False}
        )
        with native.use_native(found) if not no_native else nullcontext():
            found.generate(**inputs, max_new_tokens=max_new_tokens, streamer=streamer, **sampling)
        if len(streamer.clock.times) > 2:
            kind = "packed" if is_packed(folder) and hasattr(found, "engine") else "dense"
            rate = f"{streamer.clock.rate:.1f} tokens a second ({kind}, {torch.get_num_threads()} threads)"
            print(f"\n{rate}", file=sys.stderr)


@flattened
def bench(
    model: o.Model,
    shown: OutputOptions,
    values: o.Values = "auto",
    new_tokens: o.NewTokens = 64,
    threads: o.Threads = None,
    revision: o.Revision = None,
    no_stock: o.NoStock = False,
) -> None:
    """Measure size, memory, prefill and decode of a model, dense and packed side by side, on this CPU."""
    with open_console(shown.quiet, shown.as_json) as console, tempfile.TemporaryDirectory() as temporary:
        _set_threads(threads)
        dense, _ = fetch(model, revision, "own", "packed")
        packed = dense / "packed"
        if not is_packed(packed):
            loaded = load_model(model, revision, device="cpu")
            dense, packed = Path(temporary) / "dense", Path(temporary) / "packed"
            dense.mkdir()
            packed.mkdir()
            loaded.model.to(loaded.saved_dtype).save_pretrained(dense)
            write_packed_model(packed, loaded.model, loaded.tokenizer, loaded.saved_dtype, values)
            del loaded
        speeds = list(compare_speeds(dense, packed, new_tokens, not no_stock))
        facts = hardware(torch.device("cpu"))
        if shown.as_json:
            print_json({"hardware": facts, "speeds": [asdict(speed) for speed in speeds]})
        else:
            tables.show_speeds(console, speeds, facts)


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads is {threads}; expected 1 or more.")
        torch.set_num_threads(threads)
