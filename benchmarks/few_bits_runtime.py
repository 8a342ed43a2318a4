"""Speed against size: codes of a few bits, in turn with llama.cpp's types and the other forms of the same shape.

    python benchmarks/few_bits_runtime.py [--shapes 130m 370m] [--bits 4.25 3.25 2.5 2.1] [--masked 2.5 2.1]
        [--head 6 4.75 4] [--llama FOLDER] [--kinds Q8_0 Q4_K_M Q3_K_M Q2_K] [--rounds 5]
    python benchmarks/few_bits_runtime.py --table

Normal weights in the shapes of mamba-130m and mamba-370m; speed does not depend on the values. Rows of in_proj and
out_proj have two neighbouring widths so that a projection weight takes `--bits` in the file, scales and all; with
`--masked` all of them have masks and codes of 2 bits that come to as much. Rows of embeddings and head have two
neighbouring widths, too, codes of `--head` bits as a mean: 4.75 is what mamba-wiki-4m gets at `--bits 2.5`, 4
where `--size` leaves its projections as many. Two threads; each figure is the best of the rounds, and every round
runs each form once in a process of its own, so that another tenant of the machine slows all of them alike: 512 tokens
of a prompt, 64 by `generate`, and 64 by forwards of one token, which is what llama.cpp's own loop does. A run
replaces the lines of its shapes in results/few_bits_runtime.jsonl; tables (results/few_bits_runtime.md) and
results/speed_by_size.png are of that file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import torch
from few_bits_runtime_tables import RESULTS, write_tables
from packed_runtime import NEW_TOKENS, SHAPES, build, write_pack

from hf_mamba_prune.bits.outer import SCALE_BITS
from hf_mamba_prune.codings.grids import coded_tensor, put_on_grids
from hf_mamba_prune.codings.storage import stored_bits
from hf_mamba_prune.codings.tensors import PackedTensor
from hf_mamba_prune.measure.environment import hardware
from hf_mamba_prune.measure.speed import NATIVE, PACKED, measure_apart
from hf_mamba_prune.models.targets import find_targets
from hf_mamba_prune.native.codes import LEVELS, WIDTHS
from hf_mamba_prune.packed.checkpoint import load_packed, pack_model
from hf_mamba_prune.repair.levels import ENTROPIES, RowLevels, level_table

sys.path.append(str(Path(__file__).parent / "rivals"))
from llama_speed import KINDS, measure_speed, write_files


@dataclass(frozen=True, kw_only=True)
class Row:
    """One form of a shape, the best of the rounds.

    Args:
        shape: 130m or 370m.
        form: in words; llama.cpp's file type.
        llama: whether llama.cpp runs it.
        bits: of a projection weight, where they were asked for.
        file_bytes, dense_bytes: of the file, and of the dense weights in bfloat16.
        memory_bytes: of our own process beyond an empty one.
        prefill, generate, forwards: tokens a second; llama.cpp's loop is `forwards`.
        processor: with its cores and the threads that were used.
    """

    shape: str
    form: str
    llama: bool = False
    bits: float | None = None
    file_bytes: int
    dense_bytes: int
    memory_bytes: int | None = None
    prefill: float = 0.0
    generate: float = 0.0
    forwards: float = 0.0
    processor: str


def best(row: Row, **speeds: float) -> Row:
    """With the speeds of another round, where they are higher."""
    return replace(row, **{name: max(getattr(row, name), speed) for name, speed in speeds.items()})


def coded(rows: int, columns: int, bits: torch.Tensor, seed: int) -> PackedTensor:
    """A weight of normal values on the grid, so that its codes have the entropy that they are expected to have."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.empty(rows, columns, dtype=torch.uint8)
    for first in range(0, rows, 4096):
        own = slice(first, first + 4096)
        grids = RowLevels(bits[own][None])
        (scales,) = grids.scales(torch.ones(1, len(bits[own])), 1)
        values = torch.randn(1, len(bits[own]), columns, generator=generator)
        codes[own] = grids.codes(grids.nearest(values / scales[:, :, None]))[0]
    return coded_tensor(
        codes,
        bits,
        level_table(),
        scales=(0.0005 + 0.001 * torch.rand(rows, generator=generator)).bfloat16(),
        column_scales=(0.5 + torch.rand(columns, generator=generator)).bfloat16(),
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


def two_widths(rows: int, mean: float, sizes: Mapping[int, float], seed: int) -> torch.Tensor:
    """uint8 (rows,): the two neighbouring widths whose sizes are about a mean, as many of each as come to it."""
    narrow = max(width for width in sizes if sizes[width] <= mean)
    share = (mean - sizes[narrow]) / (sizes[narrow + 1] - sizes[narrow]) if narrow + 1 in sizes else 0.0
    wider = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)) < share * rows
    return (narrow + wider.long()).to(torch.uint8)


def put_on_bits(model, bits: float, head: float, masks: bool = False) -> float:
    """Round all that is packed to the grid; the bits that a projection weight takes in the file then."""
    targets = find_targets(model)
    small = [target for target in targets if target.component not in ("in_proj", "out_proj")]
    grids = {t.name: coded(*t.shape, torch.full((t.shape[0],), 3, dtype=torch.uint8), 0) for t in small}
    large = [target for target in targets if target not in small]
    bare = sum(8 * LEVELS + SCALE_BITS * sum(target.shape) for target in large)
    weights = sum(target.size for target in targets)
    left = bits * weights - bare - sum(map(stored_bits, grids.values()))
    mean = left / sum(target.size for target in large)
    if not masks:  # codes take a little more than their entropy
        rows, columns = large[0].shape
        tried = stored_bits(coded(rows, columns, two_widths(rows, mean, ENTROPIES, 0), 0))
        mean -= (tried - 8 * LEVELS - SCALE_BITS * (rows + columns)) / large[0].size - mean
    for number, target in enumerate(large):
        rows, columns = target.shape
        grids[target.name] = (
            masked(rows, columns, mean, number)
            if masks
            else coded(rows, columns, two_widths(rows, mean, ENTROPIES, number), number)
        )
    taken = sum(map(stored_bits, grids.values())) / weights
    rows, columns = model.get_input_embeddings().weight.shape
    widths = two_widths(rows, head, {width: width for width in WIDTHS}, 0)
    grids["backbone.embeddings.weight"] = coded(rows, columns, widths, 0)
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


def write_forms(shape: str, root: Path, arguments: argparse.Namespace, processor: str) -> list[tuple[Row, Path]]:
    """All forms of a shape as files."""
    model = build(shape, 0.7)
    model.save_pretrained(root / "dense")
    dense = sum(parameter.numel() * 2 for parameter in model.parameters())
    write_pack(model, root / "int8", "int8")
    named: list[tuple[str, float | None, bool, Path]] = [
        ("native kernels, dense bf16", None, False, root / "dense"),
        ("packed, int8, 70 % zeros", None, False, root / "int8"),
    ]
    sizes = [(bits, head, False) for bits, head in product(arguments.bits, arguments.head)]
    for bits, head, masks in sizes + [(bits, arguments.head[0], True) for bits in arguments.masked]:
        taken = put_on_bits(model, bits, head, masks)
        folder = root / f"{bits}-{head}-{masks}"
        pack_model(model, torch.bfloat16, "rounded").save_pretrained(folder)
        under = ", all under masks" if masks else ""
        named.append((f"packed, {taken:.2f} bits, head {head:g}{under}", taken, False, folder))
    del model
    if arguments.llama:
        files = write_files(root / "dense", arguments.llama, root / "llama", tuple(arguments.kinds))
        named += [(f"llama.cpp {kind}", None, True, path) for kind, path in files.items()]
    forms = []
    for form, bits, llama, path in named:
        size = path.stat().st_size if llama else sum(own.stat().st_size for own in path.glob("*.safetensors"))
        own = Row(
            shape=shape, form=form, llama=llama, bits=bits, file_bytes=size, dense_bytes=dense, processor=processor
        )
        forms.append((own, path))
    return forms


def measure_form(row: Row, path: Path, llama: Path | None) -> Row:
    """One more round of one form."""
    if row.llama:
        found = measure_speed(row.form.split()[-1], path, llama, torch.get_num_threads(), NEW_TOKENS)
        return best(row, prefill=found.prefill, forwards=found.decode)
    packed = path.name != "dense"
    own = measure_apart(PACKED if packed else NATIVE, path, NEW_TOKENS)
    row = best(row, prefill=own.prefill_tokens_per_second, generate=own.decode_tokens_per_second)
    return replace(best(row, forwards=forwards_apart(path) if packed else 0.0), memory_bytes=own.memory_bytes)


def measure_shape(shape: str, arguments: argparse.Namespace, processor: str) -> list[Row]:
    with tempfile.TemporaryDirectory() as temporary:
        forms = write_forms(shape, Path(temporary), arguments, processor)
        for number in range(arguments.rounds):
            forms = [(measure_form(row, path, arguments.llama), path) for row, path in forms]
            print(f"mamba-{shape}: round {number + 1} of {arguments.rounds}", flush=True)
    return [row for row, _ in forms]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--bits", type=float, nargs="*", default=[4.25, 3.25, 2.5, 2.1])
    parser.add_argument("--masked", type=float, nargs="*", default=[2.5, 2.1])
    parser.add_argument("--head", type=float, nargs="+", default=[6.0, 4.75, 4.0], help="bits of embeddings and head")
    parser.add_argument("--llama", type=Path, help="folder of rivals/llama_library.py")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=[kind for kind in KINDS if kind != "F16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="only write the tables of what has been measured")
    parser.add_argument("--forwards", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    if arguments.forwards:
        print(json.dumps(forwards(arguments.forwards)))
        return
    facts = hardware(torch.device("cpu"))
    processor = f"{facts['processor']}, {facts['cores']} cores, 2 threads, {facts['kernels']}"
    for shape in [] if arguments.table else arguments.shapes:
        rows = [asdict(row) for row in measure_shape(shape, arguments, processor)]
        before = RESULTS.read_text().splitlines() if RESULTS.is_file() else []
        kept = [line for line in before if json.loads(line)["shape"] != shape]
        RESULTS.write_text("".join(f"{line}\n" for line in [*kept, *map(json.dumps, rows)]))
    write_tables()


if __name__ == "__main__":
    main()
