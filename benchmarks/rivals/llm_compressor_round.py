"""A rival: round a Mamba model by llm-compressor's own modifiers, GPTQ or to nearest, and save it as the library does.

    /tmp/rival/bin/python benchmarks/rivals/llm_compressor_round.py --model FOLDER --ids FILE.npy --method gptq \
        --bits 3 --group 64 --out FOLDER

The environment is that of `llm_compressor.py`. FILE.npy holds the calibration's token ids, (samples, l). The library
leaves dt_proj in 16 bits: GPTQ sees what its forward hooks see, and MambaMixer reads dt_proj.weight without ever
calling dt_proj; its few columns make no group either. OUT/compressed is the library's own checkpoint, in float16 where
nothing is rounded; OUT/dense has the numbers that the library reads from it (transformers 5.17 cannot load it: its
Mamba initialises an `out_proj.weight` that a compressed model does not have); OUT/rival.json says what each takes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
from pathlib import Path

import numpy
import torch
from compressed_tensors import ModelCompressor
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from safetensors import safe_open
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

KINDS = ("in_proj", "x_proj", "dt_proj", "out_proj")
ROUNDED = ("in_proj", "x_proj", "out_proj")
PACKAGES = ("llmcompressor", "compressed-tensors", "transformers", "torch")
MODIFIERS = {"gptq": GPTQModifier, "nearest": QuantizationModifier}
BATCH_SIZE = 32


def round_weights(
    model: torch.nn.Module, ids: numpy.ndarray, method: str, bits: int, group: int, symmetric: bool
) -> None:
    """As the library's own examples run its modifiers, one block after the other."""
    weights = dict(num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=group)
    groups = {"group_0": {"targets": [rf"re:.*mixer\.{kind}$" for kind in ROUNDED], "weights": weights}}
    windows = [{"input_ids": torch.from_numpy(row).long()} for row in ids]
    oneshot(
        model=model,
        recipe=MODIFIERS[method](config_groups=groups, ignore=["re:.*lm_head"]),
        dataset=DataLoader(windows, batch_size=BATCH_SIZE),
        sequential_targets=["MambaBlock"],
    )


def projection_bytes(folder: Path) -> dict[str, int]:
    """Bytes of each kind of projection in a checkpoint: packed weights, scales, zero points and shapes."""
    taken = dict.fromkeys(KINDS, 0)
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as checkpoint:
            for key in checkpoint.keys():
                kind = key.split(".")[-2]
                if kind in KINDS and not key.endswith(".bias"):
                    taken[kind] += checkpoint.get_tensor(key).nbytes
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a transformers checkpoint")
    parser.add_argument("--ids", type=Path, required=True, help="calibration, token ids (samples, l)")
    parser.add_argument("--method", choices=list(MODIFIERS), required=True)
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--group", type=int, required=True, help="columns that share a scale")
    parser.add_argument("--asymmetric", action="store_true", help="with a zero point in each group")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    started = time.perf_counter()
    ids = numpy.load(arguments.ids)
    round_weights(model, ids, arguments.method, arguments.bits, arguments.group, not arguments.asymmetric)
    seconds = time.perf_counter() - started
    compressed, dense = arguments.out / "compressed", arguments.out / "dense"
    model.half().save_pretrained(compressed, save_compressed=True)
    ModelCompressor.from_pretrained_model(model).decompress_model(model)  # saving has compressed the model itself
    plain = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    read = model.state_dict()
    plain.load_state_dict({name: read[name].float() for name in plain.state_dict()})
    plain.save_pretrained(dense)
    record = {
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "seconds": round(seconds, 1),
        "projection_bytes": projection_bytes(compressed),
        "file_bytes": sum(path.stat().st_size for path in compressed.glob("*.safetensors")),
    }
    (arguments.out / "rival.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
