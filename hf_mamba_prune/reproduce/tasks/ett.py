"""Electricity transformer temperature (arXiv 2012.07436): the next 96 to 720 steps of seven series."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate
from transformers import MambaConfig, PreTrainedModel

from hf_mamba_prune.models.heads import MambaForPrediction
from hf_mamba_prune.reproduce.tasks.base import Examples, Scale, Splits, Task

NAMES = ("ETTh1", "ETTh2", "ETTm1", "ETTm2")
HORIZONS = (96, 192, 336, 720)
_MONTH = 30 * 24


def read_series(path: Path) -> np.ndarray:
    """(steps, 7) of a file with a date and seven columns."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    return np.array([row[1:] for row in rows], dtype=np.float64)


def borders(minutes: bool) -> tuple[int, int, int]:
    """Ends of the training, validation and test part: 12, 4 and 4 months of 30 days."""
    step = _MONTH * (4 if minutes else 1)
    return 12 * step, 16 * step, 20 * step


def windows(
    values: torch.Tensor, start: int, stop: int, past: int, horizon: int, limit: int | None = None
) -> Examples:
    """Every window whose future lies in [start, stop); its past may begin before."""
    first = max(start - past, 0)
    count = stop - first - past - horizon + 1

    def make(i: int) -> dict[str, torch.Tensor]:
        at = first + i + past
        return {"past_values": values[at - past : at], "future_values": values[at : at + horizon]}

    return Examples(count if limit is None else min(limit, count), make)


def _reader(name: str, horizon: int) -> Callable[[Path, Scale], Splits]:
    def read(folder: Path, scale: Scale) -> Splits:
        values = read_series(folder / f"{name}.csv")
        train, validation, test = borders(minutes=name.startswith("ETTm"))
        mean, deviation = values[:train].mean(0), values[:train].std(0)
        scaled = torch.from_numpy((values - mean) / deviation).float()
        parts = (0, train, scale.examples), (train, validation, scale.evaluated), (validation, test, scale.evaluated)
        first, second, third = (
            windows(scaled, start, stop, scale.length, horizon, limit=limit) for start, stop, limit in parts
        )
        return Splits(train=first, validation=second, test=third, collate=default_collate)

    return read


def _builder(horizon: int) -> Callable[[Scale], PreTrainedModel]:
    def build(scale: Scale) -> PreTrainedModel:
        sizes: dict[str, Any] = dict(
            vocab_size=1, context_length=scale.length, prediction_length=horizon, bidirectional=True
        )
        return MambaForPrediction(MambaConfig(**sizes | scale.model))

    return build


def _task(name: str, horizon: int) -> Task:
    sizes: dict[str, Any] = dict(hidden_size=256, num_hidden_layers=2, state_size=2, time_step_rank=16)
    small = Scale(model=sizes, length=96, steps=800, recover_steps=400, batch_size=32, learning_rate=2e-4)
    paper = Scale(model=sizes, length=96, steps=2500, recover_steps=1000, batch_size=32, learning_rate=7e-5)
    return Task(
        name=f"{name.lower()}-{horizon}",
        metrics=("mse", "mae"),
        source=f"Put {name}.csv of the ETT data set there (github.com/zhouhaoyi/ETDataset).",
        read=_reader(name, horizon),
        build=_builder(horizon),
        scales={"small": small, "paper": paper},
        higher_is_better=False,
    )


ETT = {task.name: task for task in (_task(name, horizon) for name in NAMES for horizon in HORIZONS)}
