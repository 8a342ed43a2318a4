"""How the loss of pruning grows with the tokens that a model has seen per parameter: one small model, trained long.

    python benchmarks/tokens_per_parameter.py --out tpp --text enwiki.txt.xz --tokenizer mamba-wiki-3m
    python benchmarks/tokens_per_parameter.py --out tpp --measure [--sparsity 0.5 0.7 | --bits 3.25 2.1] [--recover N]
        [--seeds 0 1]
    python benchmarks/tokens_per_parameter.py --table

The first trains a Mamba of 990,848 weights (4 layers, d_model 128, tied embeddings of 4,096 entries) on 28,000
sequences of 512 tokens of the text, pass after pass in a new order, 4 x 512 tokens a step: AdamW (0.9, 0.95), weight
decay 0.1 on matrices, learning rate 3e-3 constant after 150 warm-up steps, clipping 1.0, in bf16 autocast where the
CPU has instructions for it. At 85 % of the way to 5, 15, 50 and 150 tokens per parameter a branch leaves the constant
rate, is decayed by 1 - sqrt(x) and stays in OUT/tokens-N; then the trunk goes on from where the branch left it. The
state is saved every five minutes and a stopped run goes on from it; OUT/log.jsonl has step, tokens, loss and tokens
per second. On glibc, MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4000000000 spares the kernel much work.

The second prunes each checkpoint that is there, or rounds it to a budget of bits, calibrated (and with --recover
trained) on sequences of the text that no checkpoint has seen, and measures it on the first 40 windows of 1,024 tokens
of WikiText's raw test text. Each measurement is a line of results/tokens_per_parameter.jsonl as soon as it is there,
and is not made again. The third writes the tables, the fits and the picture of that file. The data folder is that
of the environment variable HF_MAMBA_PRUNE_DATA (default ../shared/data).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tokens_per_parameter_table import RESULTS, write_table
from tokens_per_parameter_training import SEEN, Training, checkpoint, tokens_of
from transformers import AutoTokenizer

from hf_mamba_prune import Evaluation, PruningConfig, Recovery, TextSource, load_model, prune, read_text, use_native
from hf_mamba_prune.files.loading import LoadedModel

DATA = Path(os.environ.get("HF_MAMBA_PRUNE_DATA", "../shared/data"))
TARGETS = [5, 15, 50, 150]
SPARSITIES = [0.3, 0.5, 0.6, 0.7, 0.8]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One measurement: everything that the result depends on.

    Args:
        target: tokens per parameter of the checkpoint.
        sparsity: of the projections, 0 with bits.
        bits: that a projection weight may take in all; None: not rounded.
        steps: of the recovery, 8 x 512 tokens each; 0: one-shot.
        rate: peak learning rate of the recovery, 0 without one.
        seed: of the calibration and the recovery.
    """

    target: int
    sparsity: float
    bits: float | None
    steps: int
    rate: float
    seed: int

    def config(self) -> PruningConfig:
        """How to prune or round."""
        size = {"sparsity": self.sparsity} if self.bits is None else {"bits": self.bits}
        return PruningConfig(seed=self.seed, **size)

    def recovery(self, text: TextSource) -> Recovery | None:
        """How to train afterwards."""
        return Recovery(text=text, steps=self.steps, learning_rate=self.rate) if self.steps else None


def unseen_text(out: Path, tokenizer_folder: Path) -> TextSource:
    """The sequences that no checkpoint has seen, as documents."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    rows = np.load(out / "sequences.npy")[SEEN:]
    return TextSource("unseen", tuple(tokenizer.batch_decode(rows.tolist())))


def perplexity(loaded: LoadedModel, test: TextSource) -> float:
    """Of the model as it is."""
    (found,) = Evaluation(texts=(test,), window=1024, max_windows=40).run(loaded.model, loaded.tokenizer)
    return found.perplexity


def measure(out: Path, runs: list[Run]) -> Iterator[dict]:
    """A row for each run; the checkpoint of a target is loaded and measured once."""
    test = read_text(str(DATA / "wikitext" / "wiki.test.raw"), "test")
    for target, part in itertools.groupby(runs, key=lambda run: run.target):
        folder = checkpoint(out, target)
        unseen = unseen_text(out, folder)
        loaded = load_model(str(folder), device="cpu")
        before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
        weights = sum(parameter.numel() for parameter in loaded.model.parameters())
        with use_native(loaded.model):
            dense = perplexity(loaded, test)
            for run in part:
                loaded.model.load_state_dict(before)
                started = time.perf_counter()
                prune(loaded.model, loaded.tokenizer, run.config(), unseen, recovery=run.recovery(unseen))
                seconds = time.perf_counter() - started
                after = perplexity(loaded, test)
                rise = math.log(after / dense)
                yield asdict(run) | dict(
                    weights=weights, dense=dense, perplexity=after, rise=rise, seconds=round(seconds, 1)
                )


def missing(arguments: argparse.Namespace) -> list[Run]:
    """What was asked for, has its checkpoint, and is not in the results."""
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []
    sparsities = SPARSITIES if arguments.sparsity is None and not arguments.bits else arguments.sparsity or []
    sizes = [(sparsity, None) for sparsity in sparsities] + [(0.0, bits) for bits in arguments.bits]
    runs = [
        Run(target=target, sparsity=sparsity, bits=bits, steps=steps, rate=arguments.lr if steps else 0.0, seed=seed)
        for target, seed, steps, (sparsity, bits) in itertools.product(
            sorted(arguments.targets), arguments.seeds, arguments.recover, sizes
        )
        if checkpoint(arguments.out, target).is_dir()
    ]
    return [run for run in runs if not any(asdict(run).items() <= line.items() for line in lines)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the training's state and checkpoints")
    parser.add_argument("--text", type=Path, help="to train on")
    parser.add_argument("--tokenizer", type=Path, help="a folder with a tokenizer of 4,096 entries")
    parser.add_argument("--targets", type=int, nargs="+", default=TARGETS, help="tokens per parameter")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", action="store_true", help="prune and measure the checkpoints that are there")
    parser.add_argument("--sparsity", type=float, nargs="*", help="0.3 to 0.8, where no --bits are given")
    parser.add_argument("--bits", type=float, nargs="*", default=[], help="of a projection weight, in all")
    parser.add_argument("--recover", type=int, nargs="+", default=[0], help="steps of 8 x 512 tokens; 0: one-shot")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate of the recovery")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--table", action="store_true", help="only write the tables of what has been measured")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.table:
        if not RESULTS.is_file():
            sys.exit(f"there is no {RESULTS}: measure first, with --measure.")
        write_table()
    elif arguments.out is None:
        parser.error("--out is missing")
    elif arguments.measure:
        absent = [target for target in arguments.targets if not checkpoint(arguments.out, target).is_dir()]
        print(f"without a checkpoint yet, left out: {absent or 'none'}", flush=True)
        for row in measure(arguments.out, missing(arguments)):
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    elif arguments.text is None or arguments.tokenizer is None:
        parser.error("the training needs --text and --tokenizer")
    else:
        train(arguments)


def train(arguments: argparse.Namespace) -> None:
    """Train from the start, or from the saved state."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    AutoTokenizer.from_pretrained(arguments.tokenizer).save_pretrained(arguments.out / "tokenizer")
    training = Training(arguments.out, tokens_of(arguments.out, arguments.text, arguments.tokenizer))
    print(f"{training.weights:,} weights, from step {training.step:,}", flush=True)
    try:
        training.run(sorted(arguments.targets))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
