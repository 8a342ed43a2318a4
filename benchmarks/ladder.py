"""The rivals' ladder: what llama.cpp's own quantizer costs at each of its sizes, measured by llama.cpp itself.

    python benchmarks/ladder.py --library FOLDER --models FOLDER [FOLDER ...] --data FOLDER [--windows 24]
    python benchmarks/ladder.py --library FOLDER --models FOLDER [FOLDER ...] --data FOLDER --compressor PYTHON
    python benchmarks/ladder.py --library FOLDER --speed FOLDER [FOLDER ...] [--beside PACKED_FOLDER]

`rivals/llama_library.py` says how the library's folder is filled (or HF_MAMBA_PRUNE_LLAMA names it). The texts are
WikiText-103's raw test text and a C4 text, joined and cut into windows as `hf-mamba-prune evaluate` does; --windows
measures only so many of them, drawn once by a fixed seed, so that a longer run goes on from a shorter one. Both files
that llama.cpp makes are measured: without an importance matrix, and with that of 128 x 512 calibration tokens. With
--compressor, GPTQ and rounding to nearest by llm-compressor on the same calibration, in its own environment; this
package measures what comes out. Rows go to results/ladder.jsonl, where what is there is not measured again, and from
there into results/ladder.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from hf_mamba_prune import load_model, read_text, use_native
from hf_mamba_prune.masks.calibration import Need, calibrate
from hf_mamba_prune.measure.speed import PACKED, measure_apart
from hf_mamba_prune.models.targets import find_targets
from hf_mamba_prune.texts.sequences import sample_sequences

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent / "rivals")]
from ladder_tables import FLOATS, TEXTS, add_row, is_there, read_rows, write_table
from llama_speed import measure_speed, write_files
from llama_steps import run_step
from mamba_gguf import PROJECTIONS, count_projections, gguf_name, write_gguf

WINDOW = 2048
CALIBRATION = "text/enwiki.txt.xz"
SAMPLES, LENGTH, SEED = 128, 512, 0
KINDS = (
    *FLOATS, "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL",
    "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S",
    "IQ2_XS", "IQ2_XXS", "TQ2_0", "TQ1_0", "Q2_0", "IQ1_M", "IQ1_S", "Q1_0",
)  # fmt: skip
SPEED_THREADS, NEW_TOKENS = 2, 64


class Subject:
    """One model with what its measurements share, on disk in `work`: files of other types, ids, losses seen so far."""

    def __init__(self, folder: Path, data: Path, library: Path, work: Path) -> None:
        self.name, self.folder, self.data, self.library = folder.name, folder, data, library
        self.work = work / self.name
        self.work.mkdir(parents=True, exist_ok=True)
        self._loaded: Any = None

    @property
    def loaded(self) -> Any:
        """The model with its tokenizer, dense."""
        if self._loaded is None:
            self._loaded = load_model(str(self.folder), device="cpu")
        return self._loaded

    def ids(self, text: str) -> Path:
        """Token ids of a text, (l,), as the evaluation joins it."""
        path = self.work / f"{text}.npy"
        if not path.exists():
            joined = read_text(str(self.data / TEXTS[text]), "test").joined()
            found = self.loaded.tokenizer(joined, add_special_tokens=False, verbose=False).input_ids
            np.save(path, np.asarray(found, np.int32))
        return path

    def floating(self, half: bool) -> Path:
        """The model as GGUF, not quantized."""
        path = self.work / ("F16.gguf" if half else "F32.gguf")
        if not path.exists():
            write_gguf(self.folder, path, self.library, half)
        return path

    def calibration(self) -> Path:
        """Token ids (samples, length), those of this package's own calibration."""
        path = self.work / "calibration.npy"
        if not path.exists():
            source = read_text(str(self.data / CALIBRATION), "train")
            sequences = sample_sequences(source, self.loaded.tokenizer, SAMPLES, LENGTH, SEED)
            np.save(path, sequences.numpy().astype(np.int32))
        return path

    def importance(self) -> Path:
        """Mean squared input of each projection's columns over the calibration, by llama.cpp's names."""
        path = self.work / "importance.npz"
        if not path.exists():
            model = self.loaded.model
            sequences = torch.from_numpy(np.load(self.calibration())).long()
            targets = find_targets(model)
            with use_native(model):
                seen = calibrate(model, targets, sequences, frozenset({Need.INPUT_SQUARE}))
            means = {name: each.mean_over_tokens(Need.INPUT_SQUARE).view(-1) for name, each in seen.items()}
            np.savez(path, **{gguf_name(name): mean.float().numpy() for name, mean in means.items()})
        return path

    def losses(self, text: str, key: str, windows: list[int], file: Path) -> np.ndarray:
        """Summed loss of each window by llama.cpp; `key` tells files apart that run differently."""
        kept = self.work / f"{key}-{text}.json"
        return np.array(
            run_step("losses", self.library, file, self.ids(text), kept, WINDOW, *windows)["losses"], np.float64
        )

    @torch.no_grad()
    def own_losses(self, text: str, windows: list[int], key: str = "dense", folder: Path | None = None) -> np.ndarray:
        """Summed loss of each window by this package; of the dense model, or of another folder's."""
        path = self.work / f"{key}-{text}.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        missing = [index for index in windows if str(index) not in found]
        if missing:
            loaded = load_model(str(folder), tokenizer=str(self.folder), device="cpu") if folder else self.loaded
            ids, model = torch.from_numpy(np.load(self.ids(text))).long(), loaded.model.eval()
            with use_native(model):
                for index in missing:
                    window = ids[None, index * WINDOW : (index + 1) * WINDOW]
                    logits = model(window, use_cache=False).logits[0, :-1].float()
                    found[str(index)] = F.cross_entropy(logits, window[0, 1:], reduction="sum").item()
            path.write_text(json.dumps(found))
        return np.array([found[str(index)] for index in windows])


def choose_windows(tokens: int, most: int | None) -> tuple[list[int], np.ndarray]:
    """Indices of the windows and the predicted tokens of each; a shorter choice is the beginning of a longer one."""
    lengths = [min(WINDOW, tokens - start) for start in range(0, tokens, WINDOW)]
    whole = [index for index, length in enumerate(lengths) if length >= 2]
    chosen = np.random.default_rng(0).permutation(whole)[:most].tolist()
    return chosen, np.array([lengths[index] - 1 for index in chosen])


def compare(losses: np.ndarray, dense: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Perplexities, their ratio and its standard error over the windows; zero when nothing varies."""
    total = counts.sum()
    perplexity, base = math.exp(losses.sum() / total), math.exp(dense.sum() / total)
    each = (losses - dense) / counts
    error = float(each.std(ddof=1) / math.sqrt(len(each))) if len(each) > 1 else math.inf
    ratio = perplexity / base
    return {"perplexity": perplexity, "dense": base, "ratio": ratio, "error": ratio * error, "tokens": int(total)}


def describe(tensors: dict[str, tuple[str, int]], weights: int) -> dict[str, Any]:
    """Bits of a projection weight, and the types in which each projection and the head are kept."""
    parts: dict[str, list[str]] = {}
    spent = 0
    for part, name in {**PROJECTIONS, "head": "token_embd", "own head": "output"}.items():
        found = [each for tensor, each in tensors.items() if tensor.removesuffix(".weight").split(".")[-1] == name]
        parts |= {part: sorted({kind for kind, _ in found})} if found else {}
        spent += sum(size for _, size in found) if part in PROJECTIONS else 0
    return {"bits": 8 * spent / weights, "parts": {part: "/".join(kinds) for part, kinds in parts.items()}}


def climb(subject: Subject, kind: str, importance: bool, texts: list[str], most: int | None) -> None:
    """Measure one type on each text that it has not been measured on."""
    same = {"model": subject.name, "type": kind, "importance": importance}
    rows = read_rows()
    if is_there(rows, **same, refused=True):
        return
    chosen = {text: choose_windows(len(np.load(subject.ids(text))), most) for text in texts}
    texts = [text for text in texts if not is_there(rows, **same, text=text, windows=len(chosen[text][0]))]
    if not texts:
        return
    file = subject.work / "quantized.gguf"
    given = ("--importance", subject.importance()) if importance else ()
    try:
        facts = run_step("quantize", subject.library, subject.floating(kind != "F32"), file, kind, *given)
    except RuntimeError as error:
        add_row(same | {"refused": True, "reason": str(error)})
        return
    known = describe(facts["tensors"], count_projections(subject.folder))
    known |= {"file_bytes": facts["bytes"], "digest": facts["digest"], "rival": f"llama.cpp {facts['version']}"}
    for text in texts:
        windows, counts = chosen[text]
        losses = subject.losses(text, facts["digest"], windows, file)
        found = compare(losses, subject.own_losses(text, windows), counts)
        add_row({**same, "text": text, "windows": len(windows), **found, **known})
    file.unlink()


def round_by_compressor(subject: Subject, python: str, method: str, bits: int, group: int, most: int | None) -> None:
    """llm-compressor's rounding in its own environment; its numbers are measured by this package."""
    same = {"model": subject.name, "type": f"{method} int{bits}, groups of {group}", "importance": False}
    rows = read_rows()
    chosen = {text: choose_windows(len(np.load(subject.ids(text))), most) for text in TEXTS}
    texts = [text for text in TEXTS if not is_there(rows, **same, text=text, windows=len(chosen[text][0]))]
    if is_there(rows, **same, refused=True) or not texts:
        return
    out = subject.work / f"{method}-{bits}-{group}"
    if not (out / "rival.json").exists():
        script = Path(__file__).parent / "rivals" / "llm_compressor_round.py"
        options = {"model": subject.folder, "ids": subject.calibration(), "method": method.lower()}
        options |= {"bits": bits, "group": group, "out": out}
        command = [python, str(script), *(str(word) for key, value in options.items() for word in (f"--{key}", value))]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            add_row(same | {"refused": True, "reason": done.stderr.strip().splitlines()[-1]})
            return
    facts = json.loads((out / "rival.json").read_text(encoding="utf-8"))
    taken = facts["projection_bytes"]
    parts = {part: "16 bit" if part == "dt_proj" else f"int{bits}" for part in taken} | {"head": "F16"}
    known = {"bits": 8 * sum(taken.values()) / count_projections(subject.folder), "parts": parts}
    known |= {"file_bytes": facts["file_bytes"], "rival": f"llm-compressor {facts['versions']['llmcompressor']}"}
    for text in texts:
        windows, counts = chosen[text]
        losses = subject.own_losses(text, windows, out.name, out / "dense")
        found = compare(losses, subject.own_losses(text, windows), counts)
        add_row({**same, "text": text, "windows": len(windows), **found, **known})


def run_speed(folder: Path, library: Path, work: Path, beside: Path | None, rounds: int) -> None:
    """llama.cpp's types in turn, and a packed checkpoint of this package's after them, round after round."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = f"{config['hidden_size']} x {config['num_hidden_layers']} blocks"
    files = write_files(folder, library, work / f"speed-{folder.name}")
    found: dict[str, list[tuple[float, float, int, float]]] = {}
    for _ in range(rounds):
        for kind, path in files.items():
            speed = measure_speed(kind, path, library, SPEED_THREADS, NEW_TOKENS)
            found.setdefault(f"llama.cpp {kind}", []).append(
                (speed.prefill, speed.decode, speed.file_bytes, speed.load)
            )
        if beside is not None:
            load, own = os.getloadavg()[0], measure_apart(PACKED, beside, NEW_TOKENS)
            rates = (own.prefill_tokens_per_second, own.decode_tokens_per_second)
            found.setdefault(f"this package, {own.values}", []).append((*rates, own.file_bytes, load))
    print(f"\n{shape}, {SPEED_THREADS} threads, best of {rounds}; llama.cpp has {speed.processor}\n")
    print("| | file, MB | prefill, tokens/s | decode, tokens/s | load before |\n|---|---|---|---|---|")
    for name, runs in found.items():
        prefill, decode = (max(run[index] for run in runs) for index in (0, 1))
        loads = f"{min(run[3] for run in runs):.1f} to {max(run[3] for run in runs):.1f}"
        print(f"| {name} | {runs[0][2] / 1e6:.1f} | {prefill:.0f} | {decode:.1f} | {loads} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, default=os.environ.get("HF_MAMBA_PRUNE_LLAMA"))
    parser.add_argument("--models", type=Path, nargs="*", default=[])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("HF_MAMBA_PRUNE_DATA", "../shared/data")))
    parser.add_argument("--work", type=Path, default=Path("build/ladder"), help="what a later run goes on from")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--texts", nargs="+", choices=list(TEXTS), default=list(TEXTS))
    parser.add_argument("--windows", type=int, help="so many of each text; all when not given")
    parser.add_argument("--only", choices=["plain", "importance"], help="files of one sort; both when not given")
    parser.add_argument("--compressor", metavar="PYTHON", help="of the environment of rivals/llm_compressor.py")
    parser.add_argument("--groups", type=int, nargs="+", default=[64, 128], help="of llm-compressor's scales")
    parser.add_argument("--speed", type=Path, nargs="*", default=[], help="models whose speed is measured")
    parser.add_argument("--beside", type=Path, help="a packed checkpoint, measured in turn with llama.cpp's")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.library is None:
        parser.error("--library FOLDER is needed; rivals/llama_library.py says how to fill it.")
    torch.set_num_threads(1)
    for folder in arguments.models:
        subject = Subject(folder, arguments.data, arguments.library.absolute(), arguments.work)
        if arguments.compressor:
            for method, bits, group in itertools.product(("Nearest", "GPTQ"), (3, 4, 2), arguments.groups):
                round_by_compressor(subject, arguments.compressor, method, bits, group, arguments.windows)
                write_table()
            continue
        for importance in (False, True):
            if arguments.only and importance != (arguments.only == "importance"):
                continue
            for kind in arguments.kinds:
                if not (importance and kind in FLOATS):
                    climb(subject, kind, importance, arguments.texts, arguments.windows)
                    write_table()
    if arguments.models:
        write_table()
    torch.set_num_threads(SPEED_THREADS)
    for folder in arguments.speed:
        run_speed(folder, arguments.library.absolute(), arguments.work, arguments.beside, arguments.rounds)


if __name__ == "__main__":
    main()
