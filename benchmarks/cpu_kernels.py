"""The native CPU kernels beside the limit of the matrix products, stock transformers and mambapy.

    pip install -e ".[benchmark]"                    # mambapy
    python benchmarks/cpu_kernels.py                 # everything; the stock loop alone takes minutes
    python benchmarks/cpu_kernels.py limit length    # some sections

Two threads, fp32, 1 x 512 tokens unless a line says otherwise. What is compared runs in turns in one process; a figure
is the median of the rounds' ratios, so the machine's drift falls out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import mambapy  # noqa: F401  (without it transformers runs its slow loop in mambapy's name)
import torch
import torch.nn.functional as F
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

from hf_mamba_prune import native
from hf_mamba_prune.masks.ranking import Keeper, Threshold, lowest

SHAPE = dict(hidden_size=768, state_size=16, vocab_size=50280)  # mamba-130m's, with 24 layers
LAYERS = dict(vocab_size=256)  # for two layers of it: their head would take three times as long as they do


def build(layers: int, **options) -> MambaForCausalLM:
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(**SHAPE | options, num_hidden_layers=layers))


def tokens(length: int = 512, batch: int = 1) -> torch.Tensor:
    return torch.randint(0, LAYERS["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(0))


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def rounds(count: int, *runs: Callable[[], object]) -> list[list[float]]:
    """Seconds of each run, taken in turns; the first round warms up and is not counted."""
    return list(zip(*[[seconds(run) for run in runs] for _ in range(count + 1)][1:], strict=True))


def ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def line(what: str, figure: str, wanted: str = "", met: bool | None = None) -> None:
    print(f"{what:<66} {figure:>16}  {wanted:<14} {'' if met is None else 'met' if met else 'NOT MET'}", flush=True)


def at_most(what: str, value: float, limit: float, unit: str = "x") -> None:
    line(what, f"{value:.2f} {unit}", f"<= {limit} {unit}", value <= limit)


def at_least(what: str, value: float, limit: float, unit: str = "x") -> None:
    line(what, f"{value:.2f} {unit}", f">= {limit} {unit}", value >= limit)


def forward(model, ids) -> Callable[[], object]:
    def run():
        with torch.no_grad():
            model(ids, use_cache=False)

    return run


def forward_backward(model, ids, autocast: bool = False) -> Callable[[], object]:
    def run():
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()

    return run


@contextmanager
def kernels_of(model, isa: str) -> Iterator[None]:
    with native.use_native(model), native.force_instruction_set(isa):
        yield


def second_step(plugged: AbstractContextManager, run: Callable[[], object]) -> float:
    """Seconds of the second of two steps in a row, as a training run takes them: the first maps memory anew."""
    with plugged:
        run()
        return seconds(run)


def products(model, length: int = 512) -> Callable[[], object]:
    """The model's matrix products of one forward and nothing else: the limit."""
    inputs: dict[int, torch.Tensor] = {}
    weights = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    for weight in weights:
        inputs.setdefault(weight.shape[1], torch.randn(length, weight.shape[1], dtype=weight.dtype))

    def run():
        with torch.no_grad():
            for weight in weights:
                F.linear(inputs[weight.shape[1]], weight)

    return run


def limit() -> None:
    """Whole mamba-130m shape beside its matrix products, and its peak memory beside mambapy's."""
    model, ids = build(24), tokens()
    with native.use_native(model):
        alone, ahead, both = rounds(7, products(model), forward(model, ids), forward_backward(model, ids))
    line("matrix products of one forward", f"{statistics.median(alone):.3f} s")
    line("forward", f"{512 / statistics.median(ahead):.0f} tok/s")
    line("forward + backward", f"{512 / statistics.median(both):.0f} tok/s")
    at_most("forward / products", ratio(ahead, alone), 1.25)
    at_most("forward + backward / (3 x products)", ratio(both, alone) / 3, 1.5)
    peaks = {}
    for kind in ("native", "mambapy"):
        command = [sys.executable, __file__, "--peak", kind]
        peaks[kind] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
        line(f"peak memory of forward + backward, {kind}", f"{peaks[kind]:.2f} GB")
    at_most("peak memory, native / mambapy", peaks["native"] / peaks["mambapy"], 0.5)


def resident(field: str) -> float:
    """GB of this process's memory: VmRSS, what it has now, or VmHWM, the most it ever had (Linux)."""
    for row in Path("/proc/self/status").read_text().splitlines():
        if row.startswith(field + ":"):
            return int(row.split()[1]) / 1024**2
    raise RuntimeError(f"/proc/self/status has no {field}: peak memory can be measured on Linux only")


def peak(kind: str) -> None:
    """Prints by how many GB one forward + backward raises the memory of this process at its peak."""
    model = build(24, use_mambapy=kind == "mambapy")
    run = forward_backward(model, tokens())
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # building the model had a peak of its own: forget it
    with native.use_native(model) if kind == "native" else nullcontext():
        run()
    print(resident("VmHWM") - before)


def beside_stock() -> None:
    """Two layers: the stock loop, mambapy, and the kernels with each instruction set and with bf16."""
    ids = tokens()
    model, rival = build(2, **LAYERS), build(2, **LAYERS, use_mambapy=True)
    slow = seconds(forward_backward(model, ids))
    line("stock loop, 2 layers", f"{slow:.2f} s")
    wanted = {"avx512": (150, 6), "avx2": (60, 4)}
    isas = native.instruction_sets()
    step, turns = forward_backward(model, ids), []
    for _ in range(8):
        rivals = second_step(nullcontext(), forward_backward(rival, ids))
        turns.append((rivals, *(second_step(kernels_of(model, isa), step) for isa in isas)))
    scan, *own = zip(*turns, strict=True)
    line("mambapy, 2 layers", f"{statistics.median(scan):.2f} s")
    for isa, times in zip(isas, own, strict=True):
        line(f"native {isa}, 2 layers", f"{statistics.median(times):.3f} s")
        than_stock, than_mambapy = wanted.get(isa, (0, 0))
        ahead = slow / statistics.median(times)
        at_least(f"forward + backward, {isa}: times faster than the stock loop", ahead, than_stock)
        at_least(f"forward + backward, {isa}: times faster than mambapy", ratio(scan, times), than_mambapy)
    half = build(2, **LAYERS).bfloat16()
    with native.use_native(model):
        full, auto, bf16 = rounds(
            7,
            forward_backward(model, ids),
            forward_backward(model, ids, autocast=True),
            forward_backward(half, ids),
        )
    at_least("autocast to bf16: times faster than fp32", ratio(full, auto), 1.5)
    at_least("bf16 weights: times faster than fp32", ratio(full, bf16), 1.5)


def length() -> None:
    """Time per token at 8,192 beside that at 512, two layers, forward + backward."""
    model = build(2, **LAYERS)
    with native.use_native(model):
        short, long = rounds(3, forward_backward(model, tokens(512)), forward_backward(model, tokens(8192)))
    at_most("time per token, 8,192 / 512", ratio(long, short) / 16, 1.3)


def selection() -> None:
    """Exactly the lowest 70 % of the projections of mamba-370m's shape: threshold and masks, beside one reading."""
    shapes = {"in_proj": (4096, 1024), "x_proj": (96, 2048), "dt_proj": (2048, 64), "out_proj": (1024, 2048)}
    names = [(f"layers.{layer}.{name}", shape) for layer in range(48) for name, shape in shapes.items()]
    scores = [(name, (torch.randn(shape) * 0.02).abs_()) for name, shape in names]
    total = sum(tensor.numel() for _, tensor in scores)
    count = total * 7 // 10

    def read() -> None:
        for _, tensor in scores:
            tensor.sum()

    def threshold() -> Threshold:
        return lowest(lambda: scores, count, total, seed=0)

    def select() -> None:
        keeper = Keeper(threshold())
        for name, tensor in scores:
            keeper.keep(name, tensor)

    reading, finding, whole = rounds(5, read, threshold, select)
    line(f"reading {total / 1e6:.0f} M fp32 scores once", f"{total * 4e-9 / min(reading):.1f} GB/s")
    line("exact threshold / one reading", f"{ratio(finding, reading):.2f} x")
    at_most("exact threshold and masks / one reading", ratio(whole, reading), 4)
    keeper = Keeper(threshold())
    assert sum(int((~keeper.keep(name, tensor)).sum()) for name, tensor in scores) == count


def _burn(_=None) -> None:
    while True:
        sum(range(10000))


def busy() -> None:
    """Steps of the 130m shape on an idle machine and with two other processes on its two cores."""
    model, ids = build(24), tokens()
    with native.use_native(model):
        with torch.no_grad():
            cache = model(ids, use_cache=True).cache_params

        def decode():
            with torch.no_grad():
                model(ids[:, :1], cache_params=cache)

        steps = {
            "forward": forward(model, ids),
            "forward + backward": forward_backward(model, ids),
            "decoding step": decode,
        }
        idle = {name: rounds(5, step)[0] for name, step in steps.items()}
        scan_idle = scan_seconds()
        context = multiprocessing.get_context("spawn")
        others = [context.Process(target=_burn, daemon=True) for _ in range(2)]
        for other in others:
            other.start()
        time.sleep(1)
        loaded = {name: rounds(20, step)[0] for name, step in steps.items()}
        scan_loaded = scan_seconds()
        for other in others:
            other.kill()
            other.join()
    for name, times in loaded.items():
        usual = statistics.median(idle[name])
        line(f"{name}: median / idle", f"{statistics.median(times) / usual:.2f} x")
        at_most(f"{name}: slowest of 20 / idle", max(times) / usual, 4)
    usual = statistics.median(scan_idle)
    line(f"one scan of {usual * 1e3:.1f} ms and its backward: median / idle", f"{ratio(scan_loaded, scan_idle):.2f} x")
    line("one scan: slowest of 40 / idle", f"{max(scan_loaded) / usual:.2f} x")


def scan_seconds() -> list[float]:
    """40 timings of the scan alone at the 130m shape, forward + backward."""
    d, n = 1536, 16
    u, delta, z, dout = torch.randn(4, 1, 512, d).transpose(2, 3)
    B, C = torch.randn(2, 1, 512, n).transpose(2, 3)
    A, D, bias = -torch.rand(d, n), torch.randn(d), torch.randn(d)
    leaves = [x.requires_grad_() for x in (u.clone(), delta.clone(), A, B, C, D, z.clone(), bias)]

    def run():
        with torch.enable_grad():
            torch.autograd.grad(native.selective_scan(*leaves, True), leaves, dout)

    return list(rounds(40, run)[0])


def decode() -> None:
    """Tokens a second of stock `generate`, greedy, with and without the kernels."""
    model, ids = build(24).eval(), tokens(16)

    def generate():
        model.generate(ids, max_new_tokens=32, min_new_tokens=32, do_sample=False, pad_token_id=0)

    (stock,) = rounds(2, generate)
    with native.use_native(model):
        (own,) = rounds(2, generate)
    line("generate, stock", f"{32 / min(stock):.1f} tok/s")
    line("generate, native", f"{32 / min(own):.1f} tok/s")


def mamba2() -> None:
    """Two layers of mamba2-130m's shape: stock's chunked scan beside the kernel."""
    torch.manual_seed(0)
    shape = dict(hidden_size=768, state_size=128, num_heads=24, head_dim=64, n_groups=1, **LAYERS)
    model, ids = Mamba2ForCausalLM(Mamba2Config(**shape, num_hidden_layers=2)), tokens()
    runs = (forward(model, ids), forward_backward(model, ids))
    stock = rounds(2, *runs)
    with native.use_native(model):
        *own, alone = rounds(5, *runs, products(model))
    for name, before, after in zip(("forward", "forward + backward"), stock, own, strict=True):
        line(f"mamba2, {name}: times faster than stock", f"{min(before) / min(after):.2f} x")
    line("mamba2, forward / products", f"{ratio(own[0], alone):.2f} x")
    line("mamba2, forward + backward / (3 x products)", f"{ratio(own[1], alone) / 3:.2f} x")


SECTIONS = dict(
    limit=limit, stock=beside_stock, length=length, selection=selection, busy=busy, decode=decode, mamba2=mamba2
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[[], *SECTIONS], help="all of them by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peak", choices=["native", "mambapy"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        peak(arguments.peak)
        return
    print(native.info())
    for name in arguments.sections or SECTIONS:
        print(f"\n{SECTIONS[name].__doc__}")
        SECTIONS[name]()


if __name__ == "__main__":
    main()
