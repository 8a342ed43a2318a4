"""What a model costs to run: size, memory, prefill and decode, each model in a fresh process of its own."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from multiprocessing.connection import wait
from pathlib import Path

import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging as transformers_logging

from hf_mamba_prune.native import active_instruction_set, use_native
from hf_mamba_prune.packed.checkpoint import load_packed
from hf_mamba_prune.packed.modules import packed_modules
from hf_mamba_prune.report import SpeedFacts

STOCK, NATIVE, PACKED = "dense, transformers", "dense, native kernels", "packed"
PROMPT_TOKENS = 512
STOCK_PROMPT_TOKENS = 64
"""Stock's loop takes as long for each token of a longer prompt."""


class TokenClock(BaseStreamer):
    """Notes when each token comes out of `generate`."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """The prompt, then each token."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to do."""

    @property
    def rate(self) -> float:
        """Tokens a second after the first one."""
        first, last = self.times[1], self.times[-1]
        return (len(self.times) - 2) / (last - first)


def compare_speeds(dense: Path, packed: Path, new_tokens: int = 64, stock: bool = True) -> Iterator[SpeedFacts]:
    """Measure a dense and a packed checkpoint one after the other, in as many threads as torch has here.

    Args:
        dense: folder of an ordinary checkpoint.
        packed: folder of a packed one.
        new_tokens: how many to generate, at least 3.
        stock: whether transformers without the native kernels is measured too.

    Raises:
        ValueError: too few tokens.
        RuntimeError: a measuring process died, for want of memory most likely.
    """
    if new_tokens < 3:
        raise ValueError(f"{new_tokens} tokens are too few to measure a speed: at least 3")
    cases = [(STOCK, dense)] * stock + [(NATIVE, dense), (PACKED, packed)]
    for name, folder in cases:
        yield measure_apart(name, folder, new_tokens)


def measure_apart(name: str, folder: Path, new_tokens: int) -> SpeedFacts:
    """`measure` in a process of its own: memory that is given back is not always seen to be.

    Raises:
        RuntimeError: the process died.
    """
    spawned = multiprocessing.get_context("spawn")  # in a forked process the kernels could not use torch's threads
    with ProcessPoolExecutor(1, mp_context=spawned, initializer=_end_with_parent) as pool:
        try:
            return pool.submit(measure, name, folder, new_tokens, torch.get_num_threads()).result()
        except BrokenProcessPool as error:
            raise RuntimeError(f"the process that measured {folder} ({name}) died: is there enough memory?") from error


def _end_with_parent() -> None:
    """Let this process end when the one that asked for it is killed: it would hold its memory for ever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@torch.no_grad()
def measure(name: str, folder: Path, new_tokens: int, threads: int) -> SpeedFacts:
    """Load a model, give it a prompt of random tokens and let it write; in this process.

    Args:
        name: `STOCK`, `NATIVE` or `PACKED`.
        folder: of its checkpoint. A dense one is run as bfloat16, on a CPU stock's faster type.
        new_tokens: how many to generate.
        threads: of torch and of the kernels.
    """
    torch.set_num_threads(threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    process = psutil.Process()
    before = process.memory_info().rss
    model = _load(name, folder)
    prompt = STOCK_PROMPT_TOKENS if name == STOCK else PROMPT_TOKENS
    ids = torch.randint(model.config.vocab_size, (1, prompt), generator=torch.Generator().manual_seed(0))
    with use_native(model) if name == NATIVE else nullcontext():
        clock = TokenClock()
        never = model.config.vocab_size  # as the end of a text; a least length would cost time with each token
        model.generate(  # type: ignore[operator]  # transformers types it as a tensor
            ids[:, :8], max_new_tokens=new_tokens, eos_token_id=never, do_sample=False, streamer=clock
        )
        memory = process.memory_info().rss - before
        prefill = min(_seconds_of_prefill(model, ids) for _ in range(1 if name == STOCK else 3))
    return SpeedFacts(
        name=name,
        values=_values_of(model),
        kernels=active_instruction_set() if name != STOCK else "none",
        threads=threads,
        file_bytes=file_bytes(folder),
        memory_bytes=memory,
        prompt_tokens=prompt,
        prefill_tokens_per_second=prompt / prefill,
        new_tokens=new_tokens,
        decode_tokens_per_second=clock.rate,
    )


def _load(name: str, folder: Path) -> PreTrainedModel:
    if name == PACKED:
        return load_packed(folder, unpack=False)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()


def _values_of(model: PreTrainedModel) -> str:
    """The dtype of the weights, where they are packed that of most of them, or `codes`."""
    held = [module.weight.matrix for module in packed_modules(model).values()]
    kinds = ["codes" if matrix.grid else matrix.coding for matrix in held] or [str(model.dtype).removeprefix("torch.")]
    return max(set(kinds), key=kinds.count)


def _seconds_of_prefill(model: PreTrainedModel, ids: torch.Tensor) -> float:
    started = time.perf_counter()
    model(ids, logits_to_keep=1)
    return time.perf_counter() - started


def file_bytes(folder: Path) -> int:
    """Size of the weights in a folder, those in its sub-folders not counted."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
