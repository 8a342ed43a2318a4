"""Perplexity of a language model from its summed losses."""

from __future__ import annotations

import math

import datasets
import evaluate


class Perplexity(evaluate.Metric):
    """exp(sum of losses / number of units): per token, or per word when the units are words. 1 is perfect."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__class__.__doc__,
            citation="",
            inputs_description="predictions: summed losses in nats; references: how many tokens or words each covers.",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[int]) -> dict[str, float]:
        mean = math.fsum(predictions) / sum(references)
        return {"perplexity": math.exp(mean) if mean < 709 else math.inf}
