"""Long Range Arena's Image: grey CIFAR-10, one pixel after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from hf_mamba_prune.reproduce.tasks.base import Scale, Splits, Task, build_classifier, pad, shuffled, tokens_and_label

ARCHIVE = "cifar10_gray32.npz"
GREY = (0.2989, 0.587, 0.114)


def _images(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and test images (n, 32, 32) and labels, from grey ones or CIFAR-10's binary version."""
    if (folder / ARCHIVE).is_file():
        with np.load(folder / ARCHIVE, allow_pickle=False) as found:
            return tuple(found[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    binary = folder / "cifar-10-batches-bin"
    train = [_binary(binary / f"data_batch_{i}.bin") for i in range(1, 6)]
    test = _binary(binary / "test_batch.bin")
    return np.concatenate([x for x, _ in train]), np.concatenate([y for _, y in train]), *test


def _binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    rows = np.fromfile(path, dtype=np.uint8).reshape(-1, 3073)
    colours = rows[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32)
    grey = np.tensordot(colours, np.array(GREY, dtype=np.float32), axes=([1], [0]))
    return grey.round().clip(0, 255).astype(np.uint8), rows[:, 0].astype(np.int64)


def pixels(images: np.ndarray, side: int) -> torch.Tensor:
    """(n, 32, 32) bytes -> (n, side * side) token ids, row by row; a smaller side takes means of squares."""
    found = torch.from_numpy(np.ascontiguousarray(images))
    block = found.shape[1] // side
    if block > 1:
        found = found.float().unfold(1, block, block).unfold(2, block, block).mean((-1, -2)).round().to(torch.uint8)
    return found.flatten(1)


def raster_splits(parts: Sequence[tuple[np.ndarray, np.ndarray]], side: int, scale: Scale) -> Splits:
    """(images, labels) of the three parts as sequences of pixels."""
    limits = scale.examples, scale.evaluated, scale.evaluated
    train, validation, test = (
        tokens_and_label(pixels(images, side), torch.as_tensor(labels), limit)
        for (images, labels), limit in zip(parts, limits, strict=True)
    )
    return Splits(train=train, validation=validation, test=test, collate=pad)


def _read(folder: Path, scale: Scale) -> Splits:
    x, y, x_test, y_test = _images(folder)
    order, test = shuffled(len(y)).numpy(), shuffled(len(y_test)).numpy()
    held = len(y) // 10
    train = x[order[held:]], y[order[held:]]
    parts = (train, (x[order[:held]], y[order[:held]]), (x_test[test], y_test[test]))
    return raster_splits(parts, _side(scale), scale)


def _side(scale: Scale) -> int:
    return round(scale.length**0.5)


IMAGE = Task(
    name="image",
    metrics=("accuracy",),
    source="Put the folder cifar-10-batches-bin of CIFAR-10's binary version there "
    "(www.cs.toronto.edu/~kriz/cifar.html), "
    f"or {ARCHIVE}, its grey images.",
    read=_read,
    build=build_classifier(10, 256, bidirectional=True),
    scales={
        "small": Scale(
            model=dict(hidden_size=64, num_hidden_layers=3, state_size=16, time_step_rank=4),
            length=256, steps=2400, recover_steps=300, batch_size=32, learning_rate=2e-3, evaluated=4000,
            reduced=("16 x 16 pixels instead of 32 x 32", "4,000 of the test images"),
        ),
        "paper": Scale(
            model=dict(hidden_size=256, num_hidden_layers=6, state_size=16, time_step_rank=16),
            length=1024, steps=60_000, recover_steps=12_000, batch_size=50, learning_rate=1e-3,
        ),
    },
)  # fmt: skip
