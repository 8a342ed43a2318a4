"""The commands around packed checkpoints: pack, unpack, generate, bench."""

from __future__ import annotations

import sys
import tempfile
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, TextStreamer

from hf_mamba_prune import native
from hf_mamba_prune.command import tables
from hf_mamba_prune.command.console import open_console, print_json
from hf_mamba_prune.command.option_groups import BenchOptions, GenerateOptions, OutputOptions, PackOptions
from hf_mamba_prune.files.loading import fetch, load_model, load_tokenizer
from hf_mamba_prune.files.saving import check_output, whole_folder
from hf_mamba_prune.files.version_1 import convert_version_1, is_version_1
from hf_mamba_prune.files.weights import weight_files
from hf_mamba_prune.measure.environment import hardware
from hf_mamba_prune.measure.speed import TokenClock, compare_speeds, file_bytes
from hf_mamba_prune.packed.checkpoint import is_packed, load_packed, write_packed_model
from hf_mamba_prune.packed.modules import packed_modules
from hf_mamba_prune.publish.escapes import for_terminal
from hf_mamba_prune.report import REPORT_NAME
from hf_mamba_prune.texts.sequences import check_ids


def pack(wanted: PackOptions, shown: OutputOptions) -> None:
    """Write a model in packed form."""
    model = wanted.model
    folder = wanted.output or _default_output(Path(model))
    check_output(folder, wanted.overwrite, "config.json")
    if folder.is_dir() and any(folder.iterdir()) and not is_packed(folder):
        raise ValueError(f"{folder} holds a model that is not packed: not overwritten.")
    with open_console(shown.quiet, shown.as_json) as console:
        source, _ = fetch(model, wanted.revision, "own")
        if is_version_1(source):
            with whole_folder(folder, wanted.overwrite) as temporary:
                convert_version_1(source, temporary)
                load_tokenizer(str(wanted.tokenizer or source)).save_pretrained(temporary)
            console.print(f"Converted into [bold]{folder}[/], in today's packed format.")
            return
        loaded = load_model(model, wanted.revision, wanted.dtype, "cpu", wanted.tokenizer)
        with whole_folder(folder, wanted.overwrite) as temporary:
            write_packed_model(temporary, loaded.model, loaded.tokenizer, loaded.saved_dtype, wanted.values)
        dense = sum(p.numel() for p in loaded.model.parameters()) * loaded.saved_dtype.itemsize
        zeros = sum(int((p == 0).sum()) for p in loaded.model.parameters())
        packed = file_bytes(folder)
        if shown.as_json:
            print_json({"dense_bytes": dense, "packed_bytes": packed, "zeros": zeros, "output": str(folder)})
        else:
            tables.show_packed(console, folder, dense, packed)
            if zeros == 0:
                console.print(
                    "No weight of this model is zero, so that packing has nothing to leave out: prune first."
                )


def _default_output(model: Path) -> Path:
    """Beside the weights in a result of this tool, which has a place for it; never in another's folder."""
    return model / "packed" if (model / REPORT_NAME).is_file() else Path(f"{model.name or 'model'}-packed")


def unpack(model: str, output: Path, revision: str | None) -> None:
    """Write a packed checkpoint as an ordinary transformers one."""
    check_output(output, overwrite=False)
    with open_console(False, False) as console:
        folder, _ = fetch(model, revision, "own")
        if not is_packed(folder):
            raise ValueError(f"{model} is not a packed checkpoint: nothing to unpack.")
        weight_files(folder)  # refuses an index that names files elsewhere
        found = load_packed(folder, unpack=True)
        with whole_folder(output) as temporary:
            found.save_pretrained(temporary)
            load_tokenizer(str(folder)).save_pretrained(temporary)
        console.print(f"Saved in [bold]{output}[/], an ordinary transformers checkpoint.")


class _SpeedStreamer(TextStreamer):
    """Text as it comes, and when each token came."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer, skip_prompt=False, skip_special_tokens=True)
        self.clock = TokenClock()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        super().on_finalized_text(for_terminal(text), stream_end)

    def put(self, value: torch.Tensor) -> None:
        self.clock.put(value)
        super().put(value)


def generate(wanted: GenerateOptions) -> None:
    """Write text, and say how fast that was."""
    with open_console(False, False):
        _set_threads(wanted.threads)
        found, tokenizer = _writer(wanted.model, wanted.revision, wanted.dense)
        inputs = tokenizer(wanted.prompt, return_tensors="pt").to(found.device)
        if inputs.input_ids.shape[1] == 0:
            raise ValueError("the prompt is empty: give at least one word.")
        check_ids(inputs.input_ids, found, "the prompt")
        streamer = _SpeedStreamer(tokenizer)
        torch.manual_seed(wanted.seed)
        sampling: dict[str, Any] = {"do_sample": False}
        if wanted.temperature > 0:
            sampling = dict(do_sample=True, temperature=wanted.temperature, top_k=wanted.top_k)
        with native.use_native(found) if not wanted.no_native else nullcontext():
            found.generate(**inputs, max_new_tokens=wanted.max_new_tokens, streamer=streamer, **sampling)
        if len(streamer.clock.times) > 2:
            kind = "packed" if packed_modules(found) else "dense"
            rate = f"{streamer.clock.rate:.1f} tokens a second ({kind}, {torch.get_num_threads()} threads)"
            print(f"\n{rate}", file=sys.stderr)


def _writer(model: str, revision: str | None, dense: bool) -> tuple[Any, PreTrainedTokenizerBase]:
    """The packed model where there is one and it is not the dense one that is wanted, and its tokenizer."""
    folder, commit = fetch(model, revision)
    beside = not dense and not is_packed(folder) and is_packed(folder / "packed")
    fetch(model, commit, "packed" if beside else "own")
    folder = folder / "packed" if beside else folder
    if is_packed(folder):
        weight_files(folder)  # refuses an index that names files elsewhere
        return load_packed(folder), load_tokenizer(str(folder))
    loaded = load_model(model, revision)
    return loaded.model, loaded.tokenizer


def bench(wanted: BenchOptions, shown: OutputOptions) -> None:
    """Measure size, memory, prefill and decode, dense and packed side by side."""
    with open_console(shown.quiet, shown.as_json) as console, tempfile.TemporaryDirectory() as temporary:
        _set_threads(wanted.threads)
        dense, _ = fetch(wanted.model, wanted.revision, "own", "packed")
        packed = dense / "packed"
        if not is_packed(packed):
            loaded = load_model(wanted.model, wanted.revision, device="cpu")
            dense, packed = Path(temporary) / "dense", Path(temporary) / "packed"
            dense.mkdir()
            nn.Module.to(loaded.model, loaded.saved_dtype)
            loaded.model.save_pretrained(dense)
            write_packed_model(packed, loaded.model, loaded.tokenizer, loaded.saved_dtype, wanted.values)
            del loaded
        speeds = list(compare_speeds(dense, packed, wanted.new_tokens, not wanted.no_stock))
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
