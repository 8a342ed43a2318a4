"""The packed checkpoint and its runtime, beside what else runs a Mamba on a CPU, all in one run.

    python benchmarks/packed_runtime.py [--shapes 130m 370m] [--sparsity 0.7] [--llama FOLDER] [--curve] [--sets]

Random weights in the shapes of mamba-130m and mamba-370m with zeros in every projection; speed does not depend on the
values. Each model runs in processes of its own, in two threads, the best of three: size on disk, growth of resident
memory, prefill of 512 tokens, and `generate` of 64 tokens for one sequence. Bandwidth is measured in the same run.
`--llama` names the folder of rivals/llama_library.py, for the same shapes in llama.cpp; `--curve` measures decoding at
0 to 90 % zeros and draws benchmarks/results/speed_by_sparsity.png; `--sets` runs the instruction sets one by one.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import MambaConfig, MambaForCausalLM

from hf_mamba_prune import native
from hf_mamba_prune.codings.tensors import pack_tensor
from hf_mamba_prune.measure.environment import hardware
from hf_mamba_prune.measure.speed import NATIVE, PACKED, STOCK, measure_apart
from hf_mamba_prune.packed.checkpoint import pack_model
from hf_mamba_prune.report import SpeedFacts

sys.path.append(str(Path(__file__).parent / "rivals"))
from llama_speed import measure_speed, write_files

SHAPES = {"130m": (768, 24), "370m": (1024, 48)}
VOCABULARY = 50280
NEW_TOKENS = 64
RESULTS = Path(__file__).parent / "results"


def build(shape: str, sparsity: float) -> MambaForCausalLM:
    """A bfloat16 model with random weights and exact zeros in its projections."""
    width, layers = SHAPES[shape]
    torch.manual_seed(0)
    config = MambaConfig(hidden_size=width, num_hidden_layers=layers, vocab_size=VOCABULARY)
    model = MambaForCausalLM(config).to(torch.bfloat16).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("proj.weight"):
                flat = weight.view(-1)
                flat[torch.randperm(flat.numel())[: round(sparsity * flat.numel())]] = 0
    return model


def write_pack(model: MambaForCausalLM, folder: Path, values: str) -> None:
    """A packed checkpoint without a tokenizer."""
    pack_model(model, torch.bfloat16, values).save_pretrained(folder)


def measured(name: str, folder: Path, rounds: int = 3, tokens: int = NEW_TOKENS) -> SpeedFacts:
    """The best of a few processes: another tenant of the machine can only slow one down."""
    found = [measure_apart(name, folder, tokens) for _ in range(rounds)]
    best = max(found, key=lambda speed: speed.decode_tokens_per_second)
    return replace(best, prefill_tokens_per_second=max(speed.prefill_tokens_per_second for speed in found))


def bandwidth() -> float:
    """Bytes a second that two threads read, the best of five passes over 512 MB."""
    data = torch.ones(1 << 26, dtype=torch.int64)
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        data.sum()
        best = max(best, data.numel() * 8 / (time.perf_counter() - started))
    return best


def projection_bytes(model: MambaForCausalLM, coding: str | None) -> tuple[int, int]:
    """Of the packed and of the dense bfloat16 projections."""
    named = [weight for name, weight in model.named_parameters() if name.endswith("proj.weight")]
    return sum(pack_tensor(weight, coding).bytes for weight in named), sum(2 * weight.numel() for weight in named)


def show(label: str, speed, baseline=None) -> None:
    ratio = f" | {speed.decode_tokens_per_second / baseline:.2f} x" if baseline else " | "
    print(
        f"| {label} | {speed.file_bytes / 1e6:.1f} | {speed.memory_bytes / 1e6:.0f} "
        f"| {speed.prompt_tokens / speed.prefill_tokens_per_second * 512 / speed.prompt_tokens:.2f} "
        f"| {speed.decode_tokens_per_second:.1f}{ratio} |",
        flush=True,
    )


def run_shape(shape: str, sparsity: float, llama: Path | None) -> None:
    print(f"\n## mamba-{shape} shape, {sparsity:.0%} zeros in every projection\n")
    model = build(shape, sparsity)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        model.save_pretrained(root / "dense")
        for name, coding in (("bf16", None), ("int8", "int8")):
            write_pack(model, root / name, coding or "auto")
            packed, dense = projection_bytes(model, coding)
            print(f"packed projections, {name}: {packed / dense:.4f} x their dense bf16")
        weights = sum(weight.numel() * 2 for weight in model.parameters())
        del model
        print("\n| | file, MB | memory, MB | 512 tokens, s | decode, tokens/s | x stock |\n|---|---|---|---|---|---|")
        stock = measured(STOCK, root / "dense", 2, NEW_TOKENS // 2)
        base = stock.decode_tokens_per_second
        show("stock transformers, bf16", stock, base)
        dense = measured(NATIVE, root / "dense")
        show("native kernels, dense bf16", dense, base)
        speeds = {}
        for name in ("bf16", "int8"):
            before = bandwidth()
            speeds[name] = measured(PACKED, root / name)
            show(f"packed, {name}", speeds[name], base)
            rate = max(before, bandwidth())
            read = speeds[name].file_bytes * speeds[name].decode_tokens_per_second
            ideal = rate / weights
            print(
                f"|   reads {read / 1e9:.1f} of {rate / 1e9:.1f} GB/s ({read / rate:.2f}); "
                f"{speeds[name].decode_tokens_per_second / ideal:.2f} x an ideal dense bf16 decoder "
                f"({ideal:.1f} tokens/s); file {speeds[name].file_bytes / dense.file_bytes:.3f} x, memory "
                f"{speeds[name].memory_bytes / stock.memory_bytes:.2f} x, prefill "
                f"{dense.prefill_tokens_per_second / speeds[name].prefill_tokens_per_second:.2f} x the time of dense |"
            )
        run_llama(root / "dense", llama, speeds["int8"].decode_tokens_per_second)


def run_llama(dense: Path, library: Path | None, ours: float) -> None:
    """llama.cpp on the same weights."""
    if library is None:
        print("\nllama.cpp: not measured (no --llama).")
        return
    files = write_files(dense, library, dense.parent / "llama")
    for kind, path in files.items():
        rate = max(measure_speed(kind, path, library, torch.get_num_threads(), NEW_TOKENS).decode for _ in range(3))
        print(f"| llama.cpp, {kind} | | | | {rate:.1f} | ours with int8: {ours / rate:.2f} x |")


def run_sets(shape: str, sparsity: float) -> None:
    """Each instruction set beside torch's own dense products, which choose their own."""
    print(f"\n## instruction sets, mamba-{shape} shape, {sparsity:.0%} zeros\n")
    print("| set | values | decode, tokens/s | dense, bf16 |\n|---|---|---|---|")
    model = build(shape, sparsity)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        model.save_pretrained(root / "dense")
        for name, coding in (("bf16", None), ("int8", "int8")):
            write_pack(model, root / name, coding or "auto")
        del model
        for isa in native.instruction_sets():
            os.environ["HF_MAMBA_PRUNE_ISA"] = isa
            os.environ |= {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"} if isa == "avx2" else {}
            dense = measured(NATIVE, root / "dense", 1).decode_tokens_per_second
            for name in ("bf16", "int8"):
                rate = measured(PACKED, root / name, 1).decode_tokens_per_second
                print(f"| {isa} | {name} | {rate:.1f} | {dense:.1f} ({rate / dense:.2f} x) |", flush=True)
            for variable in ("HF_MAMBA_PRUNE_ISA", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"):
                os.environ.pop(variable, None)


def run_curve(shape: str) -> None:
    """Decoding by sparsity."""
    levels, rates = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9), {"bf16": [], "int8": []}
    print(f"\n## decoding by sparsity, mamba-{shape} shape\n\n| zeros | packed bf16 | packed int8 |\n|---|---|---|")
    for level in levels:
        model = build(shape, level)
        with tempfile.TemporaryDirectory() as temporary:
            for name, coding in (("bf16", None), ("int8", "int8")):
                write_pack(model, Path(temporary) / name, coding or "auto")
                speed = measured(PACKED, Path(temporary) / name)
                rates[name].append(speed.decode_tokens_per_second)
            if level == 0.0:
                model.save_pretrained(Path(temporary) / "dense")
                stock = measured(STOCK, Path(temporary) / "dense", 2, NEW_TOKENS // 2).decode_tokens_per_second
                dense = measured(NATIVE, Path(temporary) / "dense").decode_tokens_per_second
        print(f"| {level:.0%} | {rates['bf16'][-1]:.1f} | {rates['int8'][-1]:.1f} |", flush=True)
    print(f"\ndense bf16: stock {stock:.1f}, with the native kernels {dense:.1f} tokens/s")
    draw_curve(shape, levels, rates, {"transformers": stock, "transformers + native kernels": dense})


def draw_curve(shape: str, levels, rates: dict, dense: dict) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in rates.items():
        axes.plot([100 * level for level in levels], values, marker="o", label=f"packed, {name}")
    for (name, rate), style in zip(dense.items(), ("--", ":"), strict=True):
        axes.axhline(rate, color="0.4", linestyle=style, label=f"dense bf16, {name}")
    axes.set(xlabel="zeros in every projection, %", ylabel="tokens a second", title=f"Decoding, mamba-{shape} shape")
    axes.set_ylim(0, 1.3 * max(map(max, rates.values())))
    axes.legend(frameon=False, loc="upper left", ncols=2)
    figure.savefig(RESULTS / "speed_by_sparsity.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--llama", type=Path, help="folder of rivals/llama_library.py")
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--sets", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    facts = hardware(torch.device("cpu"))
    print(f"{facts['processor']}, {facts['cores']} cores, {torch.get_num_threads()} threads, {facts['kernels']}")
    for shape in arguments.shapes:
        run_shape(shape, arguments.sparsity, arguments.llama)
    if arguments.sets:
        run_sets("130m", arguments.sparsity)
    if arguments.curve:
        run_curve("130m")


if __name__ == "__main__":
    sys.exit(main())
