"""What the tests of training share: data, arguments, a config, and how programs of several ranks are started."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch
from datasets import Dataset
from tiny_models import VOCABULARY
from transformers import TrainingArguments

from hf_mamba_prune import PruningConfig, find_targets

TESTS = Path(__file__).parent
TOKENS = torch.randint(VOCABULARY, (40, 12), generator=torch.Generator().manual_seed(8))
DATA = Dataset.from_dict({"input_ids": TOKENS.tolist(), "labels": TOKENS.tolist()})
SPARSITY = 0.6
GIVEN = {
    "global": dict(score="gradient-magnitude"),
    "uniform": dict(score="fisher", allocation="uniform"),
    "per-row": dict(score="gradient-magnitude", allocation="per-row"),
    "2:4": dict(score="fisher", sparsity=None, pattern="2:4", components=("in_proj", "out_proj"), steps=1),
    "ties": dict(score="magnitude"),
    "regrow": dict(score="gradient-magnitude", regrow=0.2),
}
"""Configs whose masks are compared when every number of ranks has the same gradients."""


def arguments(folder, **options):
    values = dict(
        per_device_train_batch_size=2, max_steps=8, learning_rate=1e-2, logging_steps=1, save_strategy="no",
        report_to="none", use_cpu=True, disable_tqdm=True, weight_decay=0.1,
    )  # fmt: skip
    return TrainingArguments(output_dir=str(folder), **values | options)


def config(**options):
    return PruningConfig(**dict(sparsity=SPARSITY, score="gradient-magnitude", steps=3, end=0.7) | options)


def zeros_of(model):
    return {t.name: t.weight(model) == 0 for t in find_targets(model)}


def share_of(zeros):
    return sum(int(z.sum()) for z in zeros.values()), sum(z.numel() for z in zeros.values())


def check_final(model):
    zeros, total = share_of(zeros_of(model))
    assert zeros == round(SPARSITY * total)


def free_port() -> int:
    with socket.socket() as socket_:
        socket_.bind(("127.0.0.1", 0))
        return socket_.getsockname()[1]


def environment():
    """Of a program that imports these tests' helpers and the package as it stands here."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def same_bits(left, right):
    equal = sum(int((left[name] == right[name]).sum()) for name in left)
    return equal / sum(mask.numel() for mask in left.values())
