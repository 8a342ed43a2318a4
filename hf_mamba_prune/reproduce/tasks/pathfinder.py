"""Long Range Arena's Pathfinder: are two dots joined by a dashed path? One pixel after the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from hf_mamba_prune.reproduce.tasks.base import Scale, Splits, Task, build_classifier, shuffled
from hf_mamba_prune.reproduce.tasks.image import raster_splits

ARCHIVE = "pathfinder32.npz"
PUBLISHED = "pathfinder32/curv_contour_length_14"
"""The hard pictures of the release, which the benchmark is."""


def _pictures(folder: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Pictures (n, 32, 32), labels and what stands in: the release's folders, or an archive of regenerated ones."""
    root = folder / PUBLISHED
    tables = sorted((root / "metadata").glob("*.npy"))
    if not tables and (folder / ARCHIVE).is_file():
        with np.load(folder / ARCHIVE, allow_pickle=False) as found:
            images, labels = found["easy_x"], found["easy_y"]
        return images, labels, (f"{len(labels):,} easy pictures instead of 200,000 hard ones",)
    if not tables:
        raise FileNotFoundError(2, "no such folder", str(root / "metadata"))
    images, labels = [], []
    for table in tables:
        for line in table.read_text(encoding="utf-8").splitlines():
            place, name, _, label, *_ = line.split()
            with Image.open(root / place / name) as picture:
                images.append(np.asarray(picture.convert("L"), dtype=np.uint8))
            labels.append(int(label))
    return np.stack(images), np.array(labels), ()


def _read(folder: Path, scale: Scale) -> Splits:
    x, y, stand_ins = _pictures(folder)
    order = shuffled(len(y)).numpy()
    x, y, tenth = x[order], y[order].astype(np.int64), len(y) // 10
    parts = [(x[at], y[at]) for at in (slice(2 * tenth, None), slice(tenth), slice(tenth, 2 * tenth))]
    return replace(raster_splits(parts, round(scale.length**0.5), scale), stand_ins=stand_ins)


PATHFINDER = Task(
    name="pathfinder",
    metrics=("accuracy",),
    source="Put the folder pathfinder32 of Long Range Arena's release there "
    "(github.com/google-research/long-range-arena), "
    f"or {ARCHIVE} with the arrays easy_x and easy_y.",
    read=_read,
    build=build_classifier(2, 256, bidirectional=True),
    scales={
        "small": Scale(
            model=dict(hidden_size=64, num_hidden_layers=3, state_size=16, time_step_rank=4),
            length=1024, steps=600, recover_steps=100, batch_size=16, learning_rate=2e-3, evaluated=1000,
            reduced=("1,000 of the test pictures",),
        ),
        "paper": Scale(
            model=dict(hidden_size=256, num_hidden_layers=6, state_size=16, time_step_rank=16),
            length=1024, steps=200_000, recover_steps=40_000, batch_size=64, learning_rate=1e-3,
        ),
    },
)  # fmt: skip
