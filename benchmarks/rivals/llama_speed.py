"""Speeds of llama.cpp at its own quantized types, each measurement in a process of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from llama_steps import PROMPT_TOKENS, run_step
from mamba_gguf import write_gguf

KINDS = ("F16", "Q8_0", "Q4_K_M", "Q3_K_M", "Q2_K")


@dataclass(frozen=True, kw_only=True)
class LlamaSpeed:
    """One measurement.

    Args:
        kind: llama.cpp's file type.
        prefill: tokens a second of a prompt of `PROMPT_TOKENS`.
        decode: tokens a second, one by one.
        load: how many processes wanted to run on the machine just before.
        file_bytes: of the GGUF file, which has no vocabulary.
        processor: what llama.cpp says of its backend.
    """

    kind: str
    prefill: float
    decode: float
    load: float
    file_bytes: int
    processor: str


def write_files(folder: Path, library: Path, work: Path, kinds: tuple[str, ...] = KINDS) -> dict[str, Path]:
    """A checkpoint of MambaForCausalLM in each type, once: kind -> GGUF file in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    files = {kind: work / f"{kind}.gguf" for kind in ("F16", *kinds)}
    if not files["F16"].exists():
        write_gguf(folder, files["F16"], library, half=True)
    for kind, path in files.items():
        if not path.exists():
            unfinished = path.with_suffix(".part")  # what is there counts as whole
            run_step("quantize", library, files["F16"], unfinished, kind)
            unfinished.rename(path)
    return {kind: files[kind] for kind in kinds}


def measure_speed(kind: str, path: Path, library: Path, threads: int, tokens: int) -> LlamaSpeed:
    """Prefill and decode of one file, the best of the rounds of one process."""
    load = os.getloadavg()[0]
    found = run_step("speed", library, path, threads, tokens)
    return LlamaSpeed(
        kind=kind,
        prefill=found["prefill"],
        decode=found["decode"],
        load=load,
        file_bytes=path.stat().st_size,
        processor=found["processor"],
    )


__all__ = ["KINDS", "PROMPT_TOKENS", "LlamaSpeed", "measure_speed", "write_files"]
