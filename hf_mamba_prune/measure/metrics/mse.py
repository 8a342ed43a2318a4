"""Mean squared error of a forecast."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np


class MeanSquaredError(evaluate.Metric):
    """mean((prediction - reference)^2), in the square of the values' unit."""

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
        return {"mse": float(np.mean((np.asarray(predictions) - np.asarray(references)) ** 2))}
