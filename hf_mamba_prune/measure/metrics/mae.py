"""Mean absolute error of a forecast."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np


class MeanAbsoluteError(evaluate.Metric):
    """mean(|prediction - reference|), in the values' unit."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__class__.__doc__,
            citation="",
            inputs_description="predictions and references: values, flattened.",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {"mae": float(np.mean(np.abs(np.asarray(predictions) - np.asarray(references))))}
