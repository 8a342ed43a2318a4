"""One-shot quality: what each method keeps of a real model's perplexity with nothing but a calibration text.

    python benchmarks/one_shot.py [--model MODEL] [--sparsity 0.5 0.7 2:4] [--seeds 0 1 2] [--rows ours wanda ...]
        [--windows N] [--c4] [--second] [--threads 2] [--table]

Calibrated on 128 x 512 tokens of real text, measured on WikiText-103's raw test text as `hf-mamba-prune evaluate`
does, every row on all projections (in, x, dt, out) with the same true sparsity; what is tuned reads 1,024 sequences of
the same text. "magnitude, global" is what `torch.nn.utils.prune.global_unstructured` chooses. Each measurement is a
line of results/one_shot.jsonl as soon as it is there, and is not made again; --table only prints that file. The data
folder is that of the environment variable HF_MAMBA_PRUNE_DATA (default ../shared/data), the model stands beside it in
../models.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch

from hf_mamba_prune import Evaluation, PruningConfig, load_model, prune, read_text, use_native

DATA = Path(os.environ.get("HF_MAMBA_PRUNE_DATA", "../shared/data"))
RESULTS = Path(os.environ.get("ONE_SHOT_RESULTS", Path(__file__).parent / "results" / "one_shot.jsonl"))
MASK_ONLY = dict(steps=1, reconstruct=False)
ROWS: dict[str, tuple[str, dict]] = {
    "magnitude": ("magnitude, uniform", dict(score="magnitude", allocation="uniform", **MASK_ONLY)),
    "l1": ("magnitude, global (torch.nn.utils.prune)", dict(score="magnitude", ceiling=1.0, **MASK_ONLY)),
    "wanda-row": ("Wanda, per row", dict(score="wanda", allocation="per-row", **MASK_ONLY)),
    "wanda": ("Wanda, uniform", dict(score="wanda", allocation="uniform", **MASK_ONLY)),
    "wanda-ls": ("Wanda, uniform + least squares, tuned", dict(score="wanda", allocation="uniform", steps=1)),
    "paper": ("gradient-magnitude, global (2505.08299)", dict(score="gradient-magnitude", **MASK_ONLY)),
    "fisher": ("fisher, global", dict(**MASK_ONLY)),
    "fisher-ls": ("fisher, global + least squares, 1 step, tuned", dict(steps=1)),
    "ours": ("hf-mamba-prune, as it is by default", dict()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DATA.parent / "models" / "mamba-wiki-3m"))
    parser.add_argument("--sparsity", nargs="+", default=["0.5", "0.7"], help="numbers, or patterns such as 2:4")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the calibration")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--windows", type=int, default=None, help="only the first windows of 2,048 tokens")
    parser.add_argument("--second", action="store_true", help="measure on C4 too")
    parser.add_argument("--c4", action="store_true", help="calibrate on C4 instead")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="measure nothing, print what has been measured")
    arguments = parser.parse_args()
    if not arguments.table:
        if not DATA.is_dir():
            sys.exit(f"There is no data in {DATA}: set HF_MAMBA_PRUNE_DATA.")
        torch.set_num_threads(arguments.threads)
        measure(arguments)
    print(table(measured()))


def measured() -> list[dict]:
    """The lines of the results."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []


def measure(arguments: argparse.Namespace) -> None:
    """What is not measured yet, line by line."""
    loaded = load_model(arguments.model, device="cpu")
    model, tokenizer = loaded.model, loaded.tokenizer
    source = DATA / ("calibration/c4.txt" if arguments.c4 else "text/enwiki.txt.xz")
    calibration = read_text(str(source), "train")
    names = ["wikitext/wiki.test.raw"] + (["calibration/c4.txt"] if arguments.second else [])
    evaluation = Evaluation(
        texts=tuple(read_text(str(DATA / name), "test") for name in names),
        window=2048,
        stride=None,
        max_windows=arguments.windows,
    )
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    with use_native(model):
        base = evaluation.run(model, tokenizer)
        for sparsity, row, seed in itertools.product(arguments.sparsity, arguments.rows, arguments.seeds):
            _, options = ROWS[row]
            if options.get("score") == "magnitude" and seed != arguments.seeds[0]:
                continue  # it sees no data
            if ":" in sparsity:
                options = options | dict(pattern=sparsity, allocation=None, steps=1)
            else:
                options = options | dict(sparsity=float(sparsity))
            key = {"model": Path(arguments.model).name, "row": row, "sparsity": sparsity, "seed": seed}
            key |= {"windows": arguments.windows, "calibration": source.name}
            if any(key.items() <= line.items() and len(line["x"]) >= len(names) for line in measured()):
                continue
            model.load_state_dict(dense)
            started = time.perf_counter()
            report = prune(model, tokenizer, PruningConfig(seed=seed, **options), calibration)
            seconds = time.perf_counter() - started
            assert report.sparsity.masked == round(report.config["sparsity"] * report.sparsity.prunable.weights)
            found = zip(evaluation.run(model, tokenizer), base, strict=True)
            line = key | {"x": {own.text: own.perplexity / was.perplexity for own, was in found}}
            line |= {"dense": {was.text: was.perplexity for was in base}, "seconds": seconds}
            line |= {"peak": max(cost.peak_bytes for cost in report.costs)}
            line |= {"learned": 0 if report.calibration is None else report.calibration.learned}
            with RESULTS.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)


def table(lines: list[dict]) -> str:
    """Markdown: means, and the lowest and highest, over seeds."""
    text = ["| model | method | sparsity | text | x dense | lowest to highest | seeds | seconds |", "|" + "---|" * 8]
    groups: dict[tuple, list[tuple[float, float]]] = {}
    for line in lines:
        label = ROWS[line["row"]][0] + ("" if line["calibration"] != "c4.txt" else ", calibrated on C4")
        label += "" if line["windows"] is None else f", {line['windows']} windows"
        for name, ratio in line["x"].items():
            key = line["model"], label, line["sparsity"], name
            groups.setdefault(key, []).append((ratio, line["seconds"]))
    for key, found in groups.items():
        ratios, seconds = zip(*found, strict=True)
        spread = f"{min(ratios):.4f} to {max(ratios):.4f}"
        cells = *key, f"{statistics.mean(ratios):.4f}", spread, str(len(found)), f"{statistics.mean(seconds):.0f}"
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text)


if __name__ == "__main__":
    main()
