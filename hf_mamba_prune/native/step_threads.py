"""Decoding steps take half of their threads for a while after one that had to wait for its cores.

A token passes a hundred parallel regions, most shorter than a time slice, and each ends when its last thread does.
Where other processes keep the cores busy, threads that wait for each other lose more than they gain: of two on two
such cores, one alone is faster and never as slow as the two at times are (`benchmarks/cpu_kernels.py busy`).
"""

import threading
import time
from typing import NamedTuple

import torch
from torch.utils.hooks import RemovableHandle

# A step waited when it lost this share of its time, and longer than an interrupt takes. What keeps cores busy for a
# moment is soon gone; each time that the step which tries all threads again has to wait, too, the next try is put off
# for twice as long, up to a second: long beside a step, and short beside the life of what keeps cores busy.
LOST_SHARE, LOST_SECONDS = 0.3, 1e-3
HALF_FOR_SECONDS, HALF_AT_MOST_SECONDS = 0.1, 1.0


class _Step(NamedTuple):
    threads: int
    begun: float
    worked: float


class _Steps(threading.local):
    """The calls that a thread is in, from the outermost; until when its steps take half; for how long next time."""

    def __init__(self):
        self.calls: list[tuple[torch.nn.Module, _Step | None]] = []
        self.half_until = 0.0
        self.half_for = HALF_FOR_SECONDS


_steps = _Steps()


def _decodes(arguments: tuple, named: dict) -> bool:
    """Whether a model is called with one token for each sequence, after others, and without gradients."""
    ids = named.get("input_ids", arguments[0] if arguments else None)
    return (
        torch.is_tensor(ids)
        and ids.device.type == "cpu"
        and ids.shape[-1] == 1
        and named.get("cache_params") is not None
        and not torch.is_grad_enabled()
        and not torch.are_deterministic_algorithms_enabled()
    )


def _begin(model: torch.nn.Module, arguments: tuple, named: dict) -> None:
    if torch.compiler.is_compiling():
        return
    step = None
    if not _steps.calls and _decodes(arguments, named):
        step = _Step(torch.get_num_threads(), time.monotonic(), time.thread_time())
        if step.threads > 1 and step.begun < _steps.half_until:
            torch.set_num_threads(step.threads // 2)
    _steps.calls.append((model, step))


def _end(model: torch.nn.Module, _arguments: tuple, _output: object) -> None:
    if torch.compiler.is_compiling() or not _steps.calls or _steps.calls[-1][0] is not model:
        return
    _, step = _steps.calls.pop()
    if step is None:
        return
    now = time.monotonic()
    lost = now - step.begun - (time.thread_time() - step.worked)
    waited = lost > max(LOST_SECONDS, LOST_SHARE * (now - step.begun))
    halved = torch.get_num_threads() != step.threads
    if waited:
        _steps.half_until = now + _steps.half_for
    if not halved:
        _steps.half_for = min(2 * _steps.half_for, HALF_AT_MOST_SECONDS) if waited else HALF_FOR_SECONDS
    if halved:
        torch.set_num_threads(step.threads)


def watch_steps(model: torch.nn.Module) -> list[RemovableHandle]:
    """Gives the decoding steps of a model half of torch's threads while other processes keep the cores busy.

    Only calls with one token after a cache, on the CPU, without gradients, outside of compiled graphs, and not under
    `torch.use_deterministic_algorithms`, as fewer threads may round the sums of a product otherwise. The number of
    threads is as before when a call returns or raises.

    Args:
        model: each of its modules that can generate is watched.

    Returns:
        The hooks that do it.
    """
    hooks = []
    for module in model.modules():
        if callable(getattr(module, "generate", None)):
            hooks.append(module.register_forward_pre_hook(_begin, with_kwargs=True))
            hooks.append(module.register_forward_hook(_end, always_call=True))
    return hooks
