"""Quality within a budget of bits, one-shot, for each size and calibration seed.

    python benchmarks/few_bits.py MODEL --out benchmarks/results/few_bits.jsonl [--bits 4.25 3.25 2.5 2.1 1.5]
        [--seeds 0 1 2] [--windows N] [--window 1024] [--c4] [--no-zeros | --values 2 --sparsity 0.5]
    python benchmarks/few_bits.py --table benchmarks/results/few_bits.jsonl

Calibrated on 128 x 512 tokens of the text and tuned on 1,024 x 512, measured on the first windows of WikiText-103's
raw test text (all of it without --windows), the dense model beside it, and how like it they are (`likeness.py`);
projections, embeddings and head rounded, as the packed file holds them. With --no-zeros no weight may have a mask;
with --values the kept weights of a sparse model are rounded instead: both for the comparison of zeros and bits. Rows
that are there are not measured again. The data folder is that of HF_MAMBA_PRUNE_DATA (default ../shared/data).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch
from likeness import Reference

from hf_mamba_prune import Evaluation, PruningConfig, load_model, prune, read_text, use_native
from hf_mamba_prune.bits.model import measure_rows, round_model
from hf_mamba_prune.models.targets import find_targets
from hf_mamba_prune.packed.config import VERSION
from hf_mamba_prune.pruning import draw

DATA = Path(os.environ.get("HF_MAMBA_PRUNE_DATA", "../shared/data"))
SIZES = (4.25, 3.25, 2.75, 2.5, 2.25, 2.1, 1.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--bits", nargs="+", type=float, default=list(SIZES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--windows", type=int, default=None)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--c4", action="store_true", help="measure on C4 too")
    parser.add_argument("--no-zeros", action="store_true", help="codes of every weight, and no masks")
    parser.add_argument("--values", type=int, default=None, help="bits of the kept weights of a sparse model")
    parser.add_argument("--sparsity", type=float, default=0.5)
    arguments = parser.parse_args()
    if arguments.table is not None:
        print(table(rows_of(arguments.table)), likeness_table(rows_of(arguments.table)), sep="\n\n")
        return
    measure(arguments)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def measure(arguments: argparse.Namespace) -> None:
    names = ["wikitext/wiki.test.raw"] + (["calibration/c4.txt"] if arguments.c4 else [])
    evaluation = Evaluation(
        texts=tuple(read_text(str(DATA / name), "test") for name in names),
        window=arguments.window,
        stride=None,
        max_windows=arguments.windows,
    )
    loaded = load_model(arguments.model, device="cpu")
    model, tokenizer = loaded.model, loaded.tokenizer
    calibration = read_text(str(DATA / "text/enwiki.txt.xz"), "train")
    dense = {name: weight.clone() for name, weight in model.state_dict().items()}
    name, weights = Path(arguments.model).name, model.num_parameters()
    with use_native(model):
        base = evaluation.run(model, tokenizer)
        references = {text.name: Reference.of(model, tokenizer, text) for text in evaluation.texts}
        for seed in arguments.seeds:
            measured, targets = None, find_targets(model)
            for size in arguments.bits if arguments.values is None else [None]:
                asked = (
                    {"bits": size, "zeros": not arguments.no_zeros}
                    if size
                    else {"sparsity": arguments.sparsity, "code_bits": arguments.values}
                )
                key = {"model": name, "seed": seed, "window": arguments.window, "windows": arguments.windows} | asked
                key |= {"format": VERSION}
                if any(key.items() <= row.items() and len(row["x"]) >= len(names) for row in rows_of(arguments.out)):
                    continue
                started = time.perf_counter()
                config = PruningConfig(seed=seed, **asked).for_weights(weights)
                model.load_state_dict(dense)
                sequences, lessons = draw(model, tokenizer, config, calibration)
                if size is None:
                    facts = prune(model, tokenizer, config, calibration).rounding
                else:
                    measured = measured or measure_rows(model, targets, sequences, config)
                    facts = round_model(
                        model, targets, sequences, config, torch.float32, measured=measured, lessons=lessons
                    )
                seconds = time.perf_counter() - started
                found = evaluation.run(model, tokenizer)
                ratios = {own.text: own.perplexity / was.perplexity for own, was in zip(found, base, strict=True)}
                row = key | {"got": facts.bits, "head": facts.embedding_bits, "x": ratios, "seconds": seconds}
                row |= {"learned": len(lessons), "memory": facts.memory_bits}
                row |= {"masked": {own.name: own.zeros for own in facts.components}}
                row |= {"like": {name: reference.likeness(model) for name, reference in references.items()}}
                row |= {"expected": facts.expected_rise, "dense": {was.text: was.perplexity for was in base}}
                with arguments.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)


def table(rows: list[dict]) -> str:
    """Markdown: means, and the lowest and highest, over seeds."""
    lines = ["| model | asked | bits | head | text | x dense | lowest to highest | seeds |", "|" + "---|" * 8]
    groups: dict[tuple, list[dict]] = {}
    for row in sorted(rows, key=lambda row: (row["model"], -row["got"], row.get("zeros", True))):
        asked = f"{row['bits']} bits" if "bits" in row else f"{row['sparsity']:.0%} zeros, int{row['code_bits']}"
        asked += "" if row.get("zeros", True) or "bits" not in row else ", no zeros"
        what = f"{row['windows'] or 'all'} x {row['window']}"
        for text in row["x"]:
            groups.setdefault((row["model"], asked, f"{text}, {what}"), []).append(row | {"one": row["x"][text]})
    for (model, asked, text), own in groups.items():
        values = [row["one"] for row in own]
        bits, head, mean = (statistics.mean(row[name] for row in own) for name in ("got", "head", "one"))
        spread = f"{min(values):.4f} to {max(values):.4f}"
        lines.append(f"| {model} | {asked} | {bits:.3f} | {head:.2f} | {text} | {mean:.4f} | {spread} | {len(own)} |")
    return "\n".join(lines)


def likeness_table(rows: list[dict]) -> str:
    """Markdown: what stands beside perplexity, means over seeds."""
    names = ("model", "bits", "masks", "text", "KL, nats a token", "same likeliest token", "same of 64 greedy tokens")
    lines = [f"| {' | '.join(names)} | repeated 4-grams | of dense |", "|" + "---|" * 9]
    groups: dict[tuple, list[dict]] = {}
    for row in sorted(rows, key=lambda row: (row["model"], -row["got"])):
        for text, like in row.get("like", {}).items():
            masks = "none" if not any(row["masked"].values()) else "some"
            groups.setdefault((row["model"], f"{row['got']:.2f}", masks, text), []).append(like)
    for key, found in groups.items():
        kl, *shares = (
            statistics.mean(like[name] for like in found)
            for name in ("kl", "first", "agree", "repeated", "repeated_dense")
        )
        lines.append(f"| {' | '.join(key)} | {kl:.4f} | {' | '.join(f'{share:.1%}' for share in shares)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
