"""Decode and prefill of codes of a few bits, in turn with llama.cpp's Q4_K_M and the other forms of the same shape.

    python benchmarks/few_bits_runtime.py [--shapes 130m 370m] [--bits 2.5] [--llama FOLDER] [--rounds 5]

Random weights in the shapes of mamba-130m and mamba-370m; speed does not depend on the values. Rows of in_proj and
out_proj have two neighbouring widths so that a projection weight takes `--bits`, scales and all, or all of them masks
and codes of 2 bits that come to as much, of which a budget chooses some; embeddings and head have 6 bits. Two threads;
each figure is the best of the rounds, and every round runs each form once in a process of its own, so that another
tenant of the machine slows all of them alike: 512 tokens of a prompt, 64 by `generate`, and 64 by forwards of one
token, which is what llama.cpp's own loop does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from packed_runtime import NEW_TOKENS, SHAPES, build, write_pack

from hf_mamba_prune.measure.environment import hardware
from hf_mamba_prune.measure.speed import NATIVE, PACKED, measure_apart
from hf_mamba_prune.models.targets import find_targets
from hf_mamba_prune.packed.checkpoint import load_packed, pack_model
from hf_mamba_prune.packed.grids import coded_tensor, put_on_grids
from hf_mamba_prune.packed.tensors import PackedTensor
from hf_mamba_prune.repair.levels import level_table

sys.path.append(str(Path(__file__).parent / "rivals"))
from llama_speed import measure_speed, write_files

KIND = "Q4_K_M"


def coded(rows: int, columns: int, bits: torch.Tensor, seed: int) -> PackedTensor:
    """A weight of random codes."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 64, (rows, columns), generator=generator) % (1 << bits.long())[:, None]
    return coded_tensor(
        codes.to(torch.uint8),
        bits,
        level_table(),
        scales=torch.full((rows,), 0.0015).bfloat16(),
        column_scales=torch.ones(columns).bfloat16(),
        dtype=torch.bfloat16,
    )


def masked(rows: int, columns: int, bits: float, seed: int) -> PackedTensor:
    """The same under a mask, with codes of 2 bits and as many zeros as make it `bits` in all."""
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(rows, columns, generator=generator) < (bits - 1) / 2
    return coded_tensor(
        torch.randint(0, 4, (rows, columns), generator=generator).to(torch.uint8) * keep,
        torch.full((rows,), 2, dtype=torch.uint8),
        level_table(masked=True),
        scales=torch.full((rows,), 0.0015).bfloat16(),
        column_scales=torch.ones(columns).bfloat16(),
        dtype=torch.bfloat16,
        keep=keep,
    )


def put_on_bits(model, bits: float, masks: bool = False) -> float:
    """Round all that is packed to random codes; the bits that a projection weight takes then."""
    targets = find_targets(model)
    small = [target for target in targets if target.component not in ("in_proj", "out_proj")]
    grids = {t.name: coded(*t.shape, torch.full((t.shape[0],), 3, dtype=torch.uint8), 0) for t in small}
    large = [target for target in targets if target not in small]
    bare = sum(8 * coded(*t.shape, torch.zeros(t.shape[0], dtype=torch.uint8), 0).bytes for t in large)
    weights = sum(target.size for target in targets)
    left = bits * weights - bare - sum(8 * grid.bytes for grid in grids.values())
    mean = left / sum(target.size for target in large)
    for number, target in enumerate(large):
        rows = target.shape[0]
        if masks:
            grids[target.name] = masked(*target.shape, mean, number)
            continue
        wider = torch.randperm(rows, generator=torch.Generator().manual_seed(number)) < (mean - int(mean)) * rows
        grids[target.name] = coded(*target.shape, (int(mean) + wider.long()).to(torch.uint8), number)
    taken = sum(8 * grid.bytes for grid in grids.values()) / weights
    vocabulary = model.get_input_embeddings().weight.shape
    grids["backbone.embeddings.weight"] = coded(*vocabulary, torch.full((vocabulary[0],), 6, dtype=torch.uint8), 0)
    put_on_grids(model, grids)
    return taken


def forwards(folder: Path) -> float:
    """Tokens a second of forwards of one token."""
    model = load_packed(folder, unpack=False)
    best = 0.0
    with torch.no_grad():
        cache = model(torch.randint(0, 1000, (1, 8)), use_cache=True).cache_params
        for _ in range(3):
            started = time.perf_counter()
            for _ in range(NEW_TOKENS):
                model(torch.tensor([[5]]), cache_params=cache, use_cache=True)
            best = max(best, NEW_TOKENS / (time.perf_counter() - started))
    return best


def forwards_apart(folder: Path) -> float:
    """The same in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--forwards", folder], check=True, capture_output=True, text=True, timeout=600
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def run_shape(shape: str, bits: float, llama: Path | None, rounds: int) -> None:
    print(f"\n## mamba-{shape} shape\n")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        model = build(shape, 0.7)
        model.save_pretrained(root / "dense")
        dense_bytes = sum(parameter.numel() * 2 for parameter in model.parameters())
        write_pack(model, root / "int8", "int8")
        taken = put_on_bits(model, bits)
        pack_model(model, torch.bfloat16, "rounded").save_pretrained(root / "codes")
        under = put_on_bits(model, bits, masks=True)
        pack_model(model, torch.bfloat16, "rounded").save_pretrained(root / "masks")
        del model
        files = write_files(root / "dense", llama, root / "llama", (KIND,)) if llama else {}
        forms = {
            "native kernels, dense bf16": (NATIVE, root / "dense"),
            "packed, int8, 70 % zeros": (PACKED, root / "int8"),
            f"packed, {under:.3f} bits, all under masks": (PACKED, root / "masks"),
            f"packed, {taken:.3f} bits": (PACKED, root / "codes"),
        }
        found: dict = {}
        steps = dict.fromkeys(forms, 0.0)
        rival = (0.0, 0.0)
        for _ in range(rounds):
            for name, (kind, folder) in forms.items():
                own = measure_apart(kind, folder, NEW_TOKENS)
                before = found.get(name, own)
                decode = max(own.decode_tokens_per_second, before.decode_tokens_per_second)
                prefill = max(own.prefill_tokens_per_second, before.prefill_tokens_per_second)
                found[name] = replace(own, decode_tokens_per_second=decode, prefill_tokens_per_second=prefill)
                if kind == PACKED:
                    steps[name] = max(steps[name], forwards_apart(folder))
            for path in files.values():
                speed = measure_speed(KIND, path, llama, torch.get_num_threads(), NEW_TOKENS)
                rival = max(rival[0], speed.decode), max(rival[1], speed.prefill)
        names = ("", "file, MB", "x bf16", "memory, MB", "prefill", "generate", "forwards of a token")
        print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
        for name, own in found.items():
            alone = f"{steps[name]:.0f}" if steps[name] else ""
            rates = f"{own.prefill_tokens_per_second:.0f} | {own.decode_tokens_per_second:.0f} | {alone}"
            size = own.file_bytes
            print(f"| {name} | {size / 1e6:.1f} | {size / dense_bytes:.3f} | {own.memory_bytes / 1e6:.0f} | {rates} |")
        for path in files.values():
            size, (decode, prefill) = path.stat().st_size, rival
            sizes = f"{size / 1e6:.1f} | {size / dense_bytes:.3f}"
            print(f"| llama.cpp {KIND} | {sizes} | | {prefill:.0f} | | {decode:.0f} |")
            last, name = list(found.values())[-1], list(found)[-1]
            print(
                f"\nBeside llama.cpp {KIND}: forwards {steps[name] / decode:.2f} x, generate "
                f"{last.decode_tokens_per_second / decode:.2f} x, prefill "
                f"{last.prefill_tokens_per_second / prefill:.2f} x."
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--bits", type=float, default=2.5)
    parser.add_argument("--llama", type=Path, help="folder of rivals/llama_library.py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--forwards", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    if arguments.forwards:
        print(json.dumps(forwards(arguments.forwards)))
        return
    facts = hardware(torch.device("cpu"))
    print(f"{facts['processor']}, {facts['cores']} cores, {torch.get_num_threads()} threads, {facts['kernels']}")
    for shape in arguments.shapes:
        run_shape(shape, arguments.bits, arguments.llama, arguments.rounds)


if __name__ == "__main__":
    main()
