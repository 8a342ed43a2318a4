"""The rows of `ladder.py` and the table made from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ROWS, TABLE = RESULTS / "ladder.jsonl", RESULTS / "ladder.md"
FLOATS = ("F32", "F16")
TEXTS = {"WikiText": "wikitext/wiki.test.raw", "C4": "calibration/c4.txt"}
HEADER = """# The rivals' ladder

Written by `benchmarks/ladder.py`. Perplexity beside the dense model's on the same windows of 2,048 tokens, with the
standard error of the ratio over windows and their number: the first so many of one fixed order, all where it says all
there are. Bits count everything that the four projections take in the file, and so the parts that a tool leaves in
16 bits. A llama.cpp file has no vocabulary here, and llm-compressor's keeps its embeddings in 16 bits.

* llama.cpp leaves `ssm_dt` and the convolution alone. Its K, IQ and TQ types need rows of a multiple of 256 weights;
  what has others becomes Q4_0, IQ4_NL or Q5_0, which is all of mamba-wiki-3m: only Q2_0 is below 4.7 bits there. Names
  that stand for the same file have the same figures.
* llm-compressor's modifiers see `in_proj`, `x_proj` and `out_proj`; `dt_proj` stays in 16 bits. Its checkpoint cannot
  be loaded by transformers 5.17, whose Mamba initialises an `out_proj.weight` that a compressed model has no more, so
  its own `decompress_model` gives the numbers that are measured.
"""
PARTS = ("in_proj", "x_proj", "dt_proj", "out_proj")


def read_rows() -> list[dict[str, Any]]:
    """What was measured so far."""
    return [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()] if ROWS.exists() else []


def add_row(row: dict[str, Any]) -> None:
    """Append one row and say it."""
    with ROWS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")
    said = {
        key: round(value, 4) if isinstance(value, float) else value for key, value in row.items() if key != "parts"
    }
    print(json.dumps(said), flush=True)


def is_there(rows: list[dict[str, Any]], **wanted: object) -> bool:
    """Whether a row has all these values."""
    return any(all(row.get(key) == value for key, value in wanted.items()) for row in rows)


def write_table() -> None:
    """results/ladder.md from the rows, each type by its longest measurement on each text."""
    best: dict[tuple[str, str, bool], dict[str, dict[str, Any]]] = {}
    refused: dict[str, dict[str, str]] = {}
    for row in read_rows():
        if row.get("refused"):
            refused.setdefault(row["model"], {})[row["type"] + _given(row)] = row["reason"]
            continue
        texts = best.setdefault((row["model"], row["type"], row["importance"]), {})
        if row["windows"] >= texts.get(row["text"], row)["windows"]:
            texts[row["text"]] = row
    lines = [HEADER]
    for model in sorted({model for model, _, _ in best}):
        mine = [texts for (name, _, _), texts in best.items() if name == model]
        mine.sort(key=lambda texts: (-next(iter(texts.values()))["bits"], _ratio(texts)))
        lines += [f"## {model}", "", *_dense_lines(mine), ""]
        heads = " | ".join(f"{text}, x dense" for text in TEXTS)
        lines += [
            f"| type | bits | in / x / dt / out | head | file, bytes | {heads} |",
            "|---" * (5 + len(TEXTS)) + "|",
        ]
        lines += [_line(texts) for texts in mine]
        lines += ["", *(f"- {kind}: not measured: {why}" for kind, why in refused.get(model, {}).items()), ""]
    TABLE.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _given(row: dict[str, Any]) -> str:
    return " + imatrix" if row["importance"] else ""


def _ratio(texts: dict[str, dict[str, Any]]) -> float:
    return next(iter(texts.values()))["ratio"]


def _dense_lines(mine: list[dict[str, dict[str, Any]]]) -> list[str]:
    """What llama.cpp makes of the model before any rounding, beside this package."""
    said: list[str] = []
    for texts in mine:
        for text, row in texts.items():
            if row["type"] in FLOATS:
                said.append(
                    f"{row['type']}, {text}, {row['tokens']:,} tokens: {row['perplexity']:.3f} by {row['rival']} and "
                    f"{row['dense']:.3f} by this package ({row['ratio'] - 1:+.4%})."
                )
    return ["Dense perplexity: " + " ".join(said)] if said else []


def _line(texts: dict[str, dict[str, Any]]) -> str:
    row = next(iter(texts.values()))
    kinds = " / ".join(row["parts"].get(part, "") for part in PARTS)
    cells = [
        f"{texts[text]['ratio']:.4f} ± {texts[text]['error']:.4f} ({texts[text]['windows']})" if text in texts else ""
        for text in TEXTS
    ]
    head = row["parts"].get("own head", row["parts"]["head"])
    facts = f"{row['bits']:.3f} | {kinds} | {head} | {row['file_bytes']:,}"
    return f"| {row['type']}{_given(row)} | {facts} | {' | '.join(cells)} |"
