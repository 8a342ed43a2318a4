"""Bits per byte of text, which compares models with different tokenizers."""

from __future__ import annotations

import math

import datasets
import evaluate


class BitsPerByte(evaluate.Metric):
    """Sum of losses / (ln 2 * bytes). 0 is perfect, 8 is chance over bytes."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__class__.__doc__,
            citation="",
            inputs_description="predictions: summed losses in nats; references: how many UTF-8 bytes each covers.",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[int]) -> dict[str, float]:
        return {"bits_per_byte": math.fsum(predictions) / (math.log(2) * sum(references))}
