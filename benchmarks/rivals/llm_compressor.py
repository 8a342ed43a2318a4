"""A rival: prune a Mamba model with llm-compressor's own modifiers and save it as an ordinary dense checkpoint.

    python -m venv /tmp/rival && /tmp/rival/bin/pip install -r benchmarks/rivals/requirements.txt
    /tmp/rival/bin/python benchmarks/rivals/llm_compressor.py --model FOLDER --text FILE --method wanda \
        --sparsity 0.7 --seed 0 --out FOLDER [--match-total]
    /tmp/rival/bin/python benchmarks/rivals/llm_compressor.py --model FOLDER --text FILE --method sparsegpt \
        --pattern 2:4 --seed 0 --out FOLDER

Wanda and SparseGPT go through `oneshot` and its sequential pipeline, one MambaBlock after the other, on random windows
of the text. The library leaves dt_proj dense there, without a word: it prunes what its forward hooks saw, and
MambaMixer reads dt_proj.weight without ever calling dt_proj. With --match-total the other three are pruned more, so
that all four together reach the sparsity asked for. Its magnitude modifier changes nothing in `oneshot`, where no
optimizer step ever applies the masks; here its session is led through one empty training step, and prunes dt_proj too.

The output folder also gets rival.json: versions, seconds, and the true sparsity as read back from the saved file.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import lzma
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import torch
from llmcompressor import oneshot
from llmcompressor.core import active_session, callbacks
from llmcompressor.modifiers.pruning import MagnitudePruningModifier, SparseGPTModifier, WandaPruningModifier
from safetensors import safe_open
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

KINDS = ("in_proj", "x_proj", "dt_proj", "out_proj")
NEVER_CALLED = "dt_proj"
PACKAGES = ("llmcompressor", "compressed-tensors", "transformers", "torch")
CHARACTERS = 8_000_000
"""What is read of the text: some thirty times the default calibration."""
BATCH_SIZE = 4
SPARSEGPT_BLOCK = 128


def read_articles(path: Path, characters: int = CHARACTERS) -> Iterator[str]:
    """The text's articles as they come, each from its title line (` = Title = `) to the next, until enough is read."""
    lines, length = [], 0
    with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8") as stream:
        for line in stream:
            if lines and line.startswith(" = ") and not line.startswith(" = ="):
                yield "".join(lines)
                lines = []
                if length >= characters:
                    return
            lines.append(line)
            length += len(line)
    yield "".join(lines)


def draw_windows(
    path: Path, tokenizer: PreTrainedTokenizerBase, samples: int, length: int, seed: int
) -> list[dict[str, torch.Tensor]]:
    """Random windows, (length,) each, of the articles' tokens packed into one stream.

    Raises:
        ValueError: the text is shorter than one window.
    """
    encoded = tokenizer(list(read_articles(path)), add_special_tokens=False, verbose=False).input_ids
    stream = torch.from_numpy(numpy.concatenate([numpy.asarray(ids, dtype=numpy.int64) for ids in encoded]))
    if len(stream) < length:
        raise ValueError(f"{path} has {len(stream)} tokens, too few for a window of {length}.")
    starts = numpy.random.default_rng(seed).integers(0, len(stream) - length + 1, samples)
    return [{"input_ids": stream[start : start + length]} for start in starts]


def wanda_zeros(rows: int, columns: int, sparsity: float) -> int:
    """How many weights the library's Wanda zeroes: whole columns of each row, rounded down."""
    return rows * int(columns * sparsity)


def sparsegpt_zeros(rows: int, columns: int, sparsity: float) -> int:
    """How many weights the library's SparseGPT zeroes: its threshold takes one more than asked in each block."""
    widths = [min(SPARSEGPT_BLOCK, columns - start) for start in range(0, columns, SPARSEGPT_BLOCK)]
    return sum(int(rows * width * sparsity) + 1 for width in widths)


def matched_sparsities(
    model: PreTrainedModel, sparsity: float, zeros: Callable[[int, int, float], int]
) -> list[float]:
    """One sparsity for each Linear layer, in the model's order, that makes up for the projections left dense.

    Raises:
        ValueError: the rest would have to be emptied altogether.
    """
    shapes = {name: module.weight.shape for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    projections = {name: shape for name, shape in shapes.items() if name.endswith(KINDS)}
    pruned = {name: shape for name, shape in projections.items() if not name.endswith(NEVER_CALLED)}
    wanted = round(sparsity * sum(rows * columns for rows, columns in projections.values()))
    if wanted >= sum(rows * columns for rows, columns in pruned.values()):
        raise ValueError(f"sparsity {sparsity} cannot be reached while {NEVER_CALLED} stays dense.")

    def count(of: dict[str, float]) -> int:
        return sum(zeros(*shape, of[name]) for name, shape in pruned.items())

    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if count(dict.fromkeys(pruned, middle)) <= wanted:
            low = middle
        else:
            high = middle
    chosen = dict.fromkeys(pruned, low)
    for name, (_, columns) in pruned.items():  # what rounding down to whole columns leaves over
        raised = chosen | {name: low + 0.5 / columns}
        if count(raised) <= wanted:
            chosen = raised
    return [chosen.get(name, sparsity) for name in shapes]


def prune_calibrated(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    windows: list[dict[str, torch.Tensor]],
    method: str,
    sparsity: float | list[float],
    pattern: str | None,
) -> None:
    """Wanda or SparseGPT, as the library's own examples run them."""
    # "lm_head" alone is not ignored: the library compares it with the module's name and a dot behind it.
    options = dict(sparsity=sparsity, mask_structure=pattern or "0:0", targets=["Linear"], ignore=["re:.*lm_head"])
    if method == "wanda":
        modifier = WandaPruningModifier(**options)
    else:
        modifier = SparseGPTModifier(block_size=SPARSEGPT_BLOCK, **options)
    oneshot(
        model=model,
        tokenizer=tokenizer,
        recipe=modifier,
        dataset=DataLoader(windows, batch_size=BATCH_SIZE),
        sequential_targets=["MambaBlock"],
    )


def prune_magnitude(model: PreTrainedModel, sparsity: float) -> None:
    """The magnitude modifier in one empty training step: nothing else makes it multiply its masks in."""
    modifier = MagnitudePruningModifier(
        targets=[rf"re:.*mixer\.{kind}$" for kind in KINDS],
        init_sparsity=sparsity,
        final_sparsity=sparsity,
        start=0,
        end=1,
    )
    session = active_session()
    session.reset()
    session.initialize(model=model, recipe=modifier)
    callbacks.batch_start()
    callbacks.optim_post_step()
    session.finalize()


def true_sparsity(folder: Path) -> dict[str, float]:
    """Share of literal zeros in the saved checkpoint, of each kind of projection and of `all` together."""
    zeros, weights = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as checkpoint:
            for key in checkpoint.keys():
                for kind in KINDS:
                    if key.endswith(f".{kind}.weight"):
                        weight = checkpoint.get_tensor(key)
                        zeros[kind] += int((weight == 0).sum())
                        weights[kind] += weight.numel()
    shares = {kind: zeros[kind] / weights[kind] for kind in KINDS}
    return shares | {"all": sum(zeros.values()) / sum(weights.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a transformers checkpoint")
    parser.add_argument("--text", type=Path, required=True, help="calibration text, also as .xz")
    parser.add_argument("--method", choices=["magnitude", "wanda", "sparsegpt"], required=True)
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--sparsity", type=float)
    amount.add_argument("--pattern", choices=["2:4"])
    parser.add_argument("--seed", type=int, default=0, help="of the calibration")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512, help="tokens of a sample")
    parser.add_argument("--match-total", action="store_true", help="reach the sparsity over all four projections")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.pattern and arguments.method == "magnitude":
        parser.error("llm-compressor's magnitude modifier has no N:M masks.")
    if arguments.pattern and arguments.match_total:
        parser.error("--match-total needs --sparsity: a 2:4 pattern cannot give more than half.")
    torch.set_num_threads(arguments.threads)
    model = AutoModelForCausalLM.from_pretrained(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    asked = 0.5 if arguments.pattern else arguments.sparsity
    if arguments.method == "magnitude":
        started = time.perf_counter()
        prune_magnitude(model, asked)
    else:
        windows = draw_windows(arguments.text, tokenizer, arguments.samples, arguments.length, arguments.seed)
        zeros = wanda_zeros if arguments.method == "wanda" else sparsegpt_zeros
        sparsity = matched_sparsities(model, asked, zeros) if arguments.match_total else asked
        started = time.perf_counter()
        prune_calibrated(model, tokenizer, windows, arguments.method, sparsity, arguments.pattern)
    seconds = time.perf_counter() - started
    # oneshot wraps this method with one that would compress; after the magnitude modifier it is the plain one
    model.save_pretrained(arguments.out, **({} if arguments.method == "magnitude" else {"save_compressed": False}))
    tokenizer.save_pretrained(arguments.out)
    record = {
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        **{name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()},
        "seconds": round(seconds, 1),
        "true_sparsity": true_sparsity(arguments.out),
    }
    (arguments.out / "rival.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record["true_sparsity"]), f"{seconds:.1f} s")


if __name__ == "__main__":
    main()
