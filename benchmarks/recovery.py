"""Recovery by training: the paper's recipe, ours, and the dense model fine-tuned, on the same tokens.

    python benchmarks/recovery.py [--model mamba-wiki-4m] [--rows dense paper ours ...] [--sparsity 0.7] [--bits 2.5]
        [--steps 500] [--batch 8] [--lr 1e-3] [--seeds 0] [--texts wiki.test.raw wiki.valid.tokens c4.txt]
        [--threads 2] [--table]

With --bits the model is rounded instead of pruned, and trained on its grid. The tokens are those that the model has
never seen (8 x 512 a step, 500 steps are 2 million; again, in another order, where they are used up); with --batch 4
there are twice as many optimizer steps on the same tokens. The measure is the whole raw test text of WikiText-103 as
`hf-mamba-prune evaluate` reports it, and the validation text beside it, to choose a learning rate by. All train over
float32 weights, in bfloat16 autocast where the CPU has instructions for it. Each measurement is a line of
results/recovery.jsonl as soon as it is there, and is not made again; `--table` only prints the tables of that file and
draws results/recovery.png. The row "small" is a smaller dense model, made by `train_small.py --kind mamba --hidden 128
--steps 3400` and named by `--small`. The data folder is that of the environment variable HF_MAMBA_PRUNE_DATA (default
../shared/data), the model stands beside it in ../models.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from recovery_tables import RESULTS, print_tables
from transformers import PreTrainedModel

from hf_mamba_prune import (
    Evaluation,
    PruningConfig,
    Recovery,
    TextSource,
    find_targets,
    load_model,
    prune,
    read_text,
    use_native,
)
from hf_mamba_prune.files.loading import LoadedModel
from hf_mamba_prune.training.recovery import recover

DATA = Path(os.environ.get("HF_MAMBA_PRUNE_DATA", "../shared/data"))
BATCH = 8
PAPER = dict(score="gradient-magnitude", reconstruct=False)
OURS = dict(ce_weight=0.5)
GRADUAL, DISTILLED, PLAIN = dict(gradual=True, distill=False), dict(distill=True), dict(distill=False)

# options of the pruning config, and how it is trained; None: not at all
ROWS: dict[str, tuple[dict, dict | None]] = {
    "dense": ({}, PLAIN),
    "rtn4": ({}, None),
    "small": ({}, None),
    "paper": (PAPER, GRADUAL),
    "ours": (OURS, DISTILLED),
    "ours-kl": ({}, DISTILLED),
    "ours-ce": ({}, PLAIN),
    "ours-mask": (OURS | dict(reconstruct=False), DISTILLED),
    "ours-once": (OURS | dict(steps=1), DISTILLED),
    "ours-linear": (OURS | dict(schedule="linear"), DISTILLED),
    "ours-uniform": (OURS | dict(allocation="uniform"), DISTILLED),
    "ours-gradient": (OURS | dict(score="gradient-magnitude"), DISTILLED),
    "ours-magnitude": (OURS | dict(score="magnitude"), DISTILLED),
    "ours-hidden": (dict(hidden_weight=1.0), DISTILLED),
    "paper-magnitude": (PAPER | dict(alpha=0.0), GRADUAL),
    "paper-half": (PAPER | dict(alpha=0.5), GRADUAL),
    "paper-linear": (PAPER | dict(schedule="linear"), GRADUAL),
    "paper-once": (PAPER | dict(steps=1), PLAIN),
    "paper-uniform": (PAPER | dict(allocation="uniform"), GRADUAL),
    "paper-kl": (PAPER, dict(gradual=True, distill=True)),
}
DENSE = {"dense", "rtn4", "small"}


@dataclass(frozen=True)
class Run:
    """One training: everything that the result depends on."""

    row: str
    sparsity: float
    rate: float
    seed: int
    steps: int
    model: str = "mamba-wiki-3m"
    bits: float | None = None
    batch: int = 8


def round_to_four_bits(model: PreTrainedModel, group: int = 32) -> None:
    """The projections to nearest of 16 levels, one scale for each 32 weights of a row: 4.5 bits a weight."""
    for target in find_targets(model):
        weight = target.weight(model).data
        for part in weight.split(group, dim=1):
            scale = part.abs().amax(1, keepdim=True).div(7).clamp_min(1e-12)
            part.copy_(part.div(scale).round().clamp(-8, 7) * scale)


def perplexities(loaded: LoadedModel, texts: Sequence[str]) -> list[float]:
    """Of the model as it is, on each text."""
    folders = ("calibration" if text == "c4.txt" else "wikitext" for text in texts)
    sources = tuple(read_text(str(DATA / folder / text), "test") for folder, text in zip(folders, texts, strict=True))
    with use_native(loaded.model):
        return [
            result.perplexity for result in Evaluation(texts=sources, window=2048).run(loaded.model, loaded.tokenizer)
        ]


def measure(run: Run, loaded: LoadedModel, teacher: PreTrainedModel | None, texts: Sequence[str]) -> list[dict]:
    """Perplexity after pruning and after training, for each text; without a teacher, of a model as it is."""
    options, training = ROWS[run.row]
    model, tokenizer = loaded.model, loaded.tokenizer
    if teacher is not None:
        model.load_state_dict(teacher.state_dict())
    started, pruned = time.perf_counter(), [None] * len(texts)
    with use_native(model):
        size = {"sparsity": run.sparsity} if run.bits is None else {"bits": run.bits}
        config = PruningConfig(seed=run.seed, **size, **options)
        if run.row == "rtn4":
            round_to_four_bits(model)
        elif training and not training.get("gradual") and (run.sparsity or run.bits):
            prune(model, tokenizer, config, read_text(str(DATA / "text/enwiki.txt.xz"), "train"))
            pruned = perplexities(loaded, texts)
        if training:
            unseen = np.load(DATA.parent / "models" / f"{run.model}-unseen.npz")["tokens"].astype(np.int64)
            count, generator = run.steps * BATCH, torch.Generator().manual_seed(run.seed)
            recovery = Recovery(
                text=TextSource("unseen", ()),
                steps=count // run.batch,
                batch_size=run.batch,
                learning_rate=run.rate,
                **training,
            )
            passes = [torch.randperm(len(unseen), generator=generator) for _ in range(-(-count // len(unseen)))]
            seen = torch.from_numpy(unseen)[torch.cat(passes)[:count]]
            recover(model, seen, config, recovery, teacher if recovery.distill else None)
    minutes = (time.perf_counter() - started) / 60
    zeros = sum(int((target.weight(model) == 0).sum()) for target in find_targets(model))
    nonzero = sum(parameter.numel() for parameter in model.parameters()) - zeros
    trained = perplexities(loaded, texts)
    return [
        asdict(run) | dict(text=text, pruned=before, trained=after, nonzero=nonzero, minutes=minutes)
        for text, before, after in zip(texts, pruned, trained, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", help='the model of the row "small"')
    parser.add_argument("--model", default="mamba-wiki-3m", help="a folder of the models' folder")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.7])
    parser.add_argument("--bits", type=float, nargs="+", help="round to these instead of pruning")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=["dense", "paper", "ours"])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=BATCH, help="sequences of an optimizer step; the tokens stay")
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--texts", nargs="+", default=["wiki.test.raw", "wiki.valid.tokens"], help="to measure on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="measure nothing, print what has been measured")
    arguments = parser.parse_args()
    if arguments.table:
        print_tables()
        return
    torch.set_num_threads(arguments.threads)
    loaded = load_model(str(DATA.parent / "models" / arguments.model), device="cpu")
    teacher = copy.deepcopy(loaded.model)
    dense = perplexities(loaded, arguments.texts)
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []
    sizes = [(sparsity, None) for sparsity in arguments.sparsity]
    sizes = sizes if arguments.bits is None else [(0.0, bits) for bits in arguments.bits]
    for row, (sparsity, bits), rate, seed in itertools.product(arguments.rows, sizes, arguments.lr, arguments.seeds):
        steps = arguments.steps if ROWS[row][1] else 0
        sparsity, bits = (0.0, None) if row in DENSE else (sparsity, bits)
        run = Run(row, sparsity, rate if steps else 0.0, seed, steps, arguments.model, bits, arguments.batch)
        known = {line["text"] for line in lines if asdict(run).items() <= line.items()}
        if known >= set(arguments.texts):
            continue
        if row == "small":
            found = measure(run, load_model(arguments.small, device="cpu"), None, arguments.texts)
        else:
            found = measure(run, loaded, teacher, arguments.texts)
        lines += [result | {"dense": value} for result, value in zip(found, dense, strict=True)]
        with RESULTS.open("a") as file:
            for line in lines[-len(found) :]:
                file.write(json.dumps(line) + "\n")
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
