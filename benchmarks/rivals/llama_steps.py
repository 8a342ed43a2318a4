"""One step of llama.cpp in a process of its own, for the ladder and the runtime's benchmark: it may abort the process.

    python llama_steps.py quantize LIBRARY SOURCE TO KIND [--importance FILE.npz]
    python llama_steps.py losses LIBRARY FILE IDS.npy LOSSES.json WINDOW INDEX [INDEX ...]
    python llama_steps.py speed LIBRARY FILE THREADS TOKENS

LIBRARY is the folder of `llama_library.py`. The last line of the output is the answer, as JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from llama_library import LlamaLibrary, LlamaModel

PROMPT_TOKENS = 512
ROUNDS = 3
ROWS = 256
"""Logits that are held in float64 at once."""


def run_step(*arguments: object) -> dict[str, Any]:
    """One step in a new process; arguments as above.

    Raises:
        RuntimeError: the step failed; with the last thing that it said.
    """
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit {done.returncode}"]
        reasons = [line for line in said if "failed to quantize" in line or "GGML_ASSERT" in line]
        raise RuntimeError((reasons or said)[-1].strip())
    return json.loads(done.stdout.splitlines()[-1])


def quantize(library: LlamaLibrary, arguments: argparse.Namespace) -> dict[str, Any]:
    """Types and bytes of the new file's tensors, a digest of its weights, and its bytes."""
    importance = dict(np.load(arguments.importance)) if arguments.importance else None
    library.quantize(arguments.source, arguments.to, arguments.kind, importance)
    return {
        "tensors": library.tensors(arguments.to),
        "digest": library.digest(arguments.to),
        "bytes": arguments.to.stat().st_size,
        "version": library.version,
    }


def losses(library: LlamaLibrary, arguments: argparse.Namespace) -> dict[str, Any]:
    """Summed loss in nats of each window, kept in a file after each: what is there is not measured again."""
    ids = np.load(arguments.ids)
    found = json.loads(arguments.losses.read_text()) if arguments.losses.exists() else {}
    missing = [index for index in arguments.indices if str(index) not in found]
    if missing:
        with library.running(arguments.file, arguments.window, 1) as model:
            for index in missing:
                window = ids[index * arguments.window : (index + 1) * arguments.window]
                found[str(index)] = window_loss(model, window)
                unfinished = arguments.losses.with_suffix(".part")
                unfinished.write_text(json.dumps(found))
                unfinished.rename(arguments.losses)
    return {"losses": [found[str(index)] for index in arguments.indices]}


def window_loss(model: LlamaModel, window: np.ndarray) -> float:
    """Summed loss in nats of all tokens of a window (l,) but the first."""
    model.forget()
    logits, wanted, total = model.feed(window, all_logits=True)[:-1], window[1:], 0.0
    for start in range(0, len(wanted), ROWS):
        part = logits[start : start + ROWS].astype(np.float64)
        part -= part.max(axis=1, keepdims=True)
        chosen = np.take_along_axis(part, wanted[start : start + ROWS, None].astype(np.int64), axis=1)
        total += float(np.log(np.exp(part).sum(axis=1)).sum() - chosen.sum())
    return total


def speed(library: LlamaLibrary, arguments: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of a prompt and of tokens one by one, the best of a few rounds."""
    with library.running(arguments.file, 2 * PROMPT_TOKENS, arguments.threads) as model:
        random = np.random.default_rng(0)
        prompt = random.integers(0, model.vocabulary, PROMPT_TOKENS)
        prefill = decode = 0.0
        for _ in range(ROUNDS):
            model.forget()
            started = time.perf_counter()
            model.feed(prompt, all_logits=False)
            prefill = max(prefill, PROMPT_TOKENS / (time.perf_counter() - started))
            started = time.perf_counter()
            for token in random.integers(0, model.vocabulary, (arguments.tokens, 1)):
                model.feed(token, all_logits=False)
            decode = max(decode, arguments.tokens / (time.perf_counter() - started))
    return {"prefill": prefill, "decode": decode, "processor": library.processor, "version": library.version}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(required=True)
    for step in (quantize, losses, speed):
        own = steps.add_parser(step.__name__)
        own.add_argument("library", type=Path)
        own.set_defaults(step=step)
        if step is quantize:
            own.add_argument("source", type=Path)
            own.add_argument("to", type=Path)
            own.add_argument("kind")
            own.add_argument("--importance", type=Path)
            continue
        own.add_argument("file", type=Path)
        if step is losses:
            own.add_argument("ids", type=Path)
            own.add_argument("losses", type=Path)
            own.add_argument("window", type=int)
            own.add_argument("indices", type=int, nargs="+")
        else:
            own.add_argument("threads", type=int)
            own.add_argument("tokens", type=int)
    arguments = parser.parse_args()
    print(json.dumps(arguments.step(LlamaLibrary(arguments.library), arguments)))


if __name__ == "__main__":
    main()
