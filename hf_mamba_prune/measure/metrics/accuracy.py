"""Share of right labels."""

from __future__ import annotations

import datasets
import evaluate


class Accuracy(evaluate.Metric):
    """Right predictions / all predictions, 0 to 1."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__class__.__doc__,
            citation="",
            inputs_description="predictions and references: class indices.",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        right = sum(p == r for p, r in zip(predictions, references, strict=True))
        return {"accuracy": right / len(references)}
