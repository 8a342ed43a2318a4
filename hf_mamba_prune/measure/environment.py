"""What the run ran on: hardware, and the seconds and memory of each step."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from hf_mamba_prune import native
from hf_mamba_prune.report import StepCost


def hardware(device: torch.device, plugged: bool = True) -> dict[str, str | int]:
    """Processor, cores, memory in bytes, device and the native kernels in use.

    Args:
        device: where the model is.
        plugged: whether the kernels run it.
    """
    facts: dict[str, str | int] = {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "kernels": native.active_instruction_set() if native.available() else "pure torch",
    }
    if not plugged:
        facts["kernels"] = "none"
    return facts


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def in_bfloat16(wanted: bool | None, device: torch.device) -> bool:
    """What was asked for; None: whether a CPU has instructions for products of bfloat16 (AVX-512 BF16, AMX)."""
    if wanted is not None:
        return wanted
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


class CostMeter:
    """Measures steps one after the other: `with meter.step("score"): ...`, then `meter.costs`."""

    def __init__(self) -> None:
        self._costs: dict[str, tuple[float, int]] = {}

    @property
    def costs(self) -> tuple[StepCost, ...]:
        """The steps so far, in order; a step that ran several times is summed, its peak is the highest."""
        return tuple(
            StepCost(step=name, seconds=seconds, peak_bytes=peak) for name, (seconds, peak) in self._costs.items()
        )

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure what runs inside."""
        watch = _MemoryWatch()
        watch.start()
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            peak = watch.stop()
            before = self._costs.get(name, (0.0, 0))
            self._costs[name] = (before[0] + seconds, max(before[1], peak))


class _MemoryWatch(threading.Thread):
    """Samples the resident memory: the system's own high-water mark never falls, so it says nothing of one step."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._process = psutil.Process()
        self._peak = self._process.memory_info().rss
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.02):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def stop(self) -> int:
        self._over.set()
        self.join()
        return max(self._peak, self._process.memory_info().rss)
