"""`evaluate.Metric` modules that work offline: `evaluate.load(path_of(...))`, or the classes themselves.

Each file is a metric module of its own, as the `evaluate` library loads them, so it imports nothing of this package.
"""

from __future__ import annotations

from hf_mamba_prune.measure.metrics.accuracy import Accuracy
from hf_mamba_prune.measure.metrics.bits_per_byte import BitsPerByte
from hf_mamba_prune.measure.metrics.mae import MeanAbsoluteError
from hf_mamba_prune.measure.metrics.mse import MeanSquaredError
from hf_mamba_prune.measure.metrics.perplexity import Perplexity

__all__ = ["METRICS", "Accuracy", "BitsPerByte", "MeanAbsoluteError", "MeanSquaredError", "Perplexity"]

METRICS = {
    "perplexity": Perplexity,
    "bits_per_byte": BitsPerByte,
    "accuracy": Accuracy,
    "mse": MeanSquaredError,
    "mae": MeanAbsoluteError,
}
