"""What a model is, what pruning it here would cost, and whether it fits. Reads its config, never its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from limits import Limits
from orders import BUNDLED, Order, Refusal, sentence

_WEIGHTS = (".safetensors", "pytorch_model.bin")
_LARGEST = {"hidden_size": 8192, "d_model": 8192, "num_hidden_layers": 160, "n_layer": 160, "vocab_size": 400_000}
_LARGEST |= {"state_size": 1024, "expand": 16, "intermediate_size": 131_072, "num_heads": 1024, "head_dim": 8192}
_LARGEST |= {"conv_kernel": 64, "time_step_rank": 8192, "n_groups": 1024, "chunk_size": 65_536}
_SMALL = 32_000_000
"""Bytes of a tokenizer's or config's file."""


@dataclass(frozen=True)
class Facts:
    """A model and the cost of an order.

    Args:
        order: what would be done.
        kind: `model_type` of its config.
        layers, hidden: its shape.
        weights: how many, and of them `prunable` and `zeros` to be.
        components: name -> weights.
        seconds, memory_bytes: estimates for this machine.
        download_bytes: of its weights.
        too_big: why it does not fit here; None: it does.
    """

    order: Order
    kind: str
    layers: int
    hidden: int
    weights: int
    prunable: int
    zeros: int
    components: dict[str, int]
    seconds: float
    memory_bytes: int
    download_bytes: int
    too_big: str | None


def inspect(order: Order, limits: Limits) -> Facts:
    """Look at a model.

    Raises:
        Refusal: there is no such model, it is none that can be pruned, or its files are not to be trusted.
    """
    size = 0 if order.model == BUNDLED else _weights_on_hub(order.model)
    try:
        job = order.job(Path())
        skeleton = job.model.skeleton()
        plan = job.plan(skeleton)
    except (ValueError, RuntimeError, TypeError, KeyError, OSError) as error:
        raise Refusal(sentence(error, order.model)) from error
    config = skeleton.config
    return Facts(
        order=order,
        kind=config.model_type,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        weights=plan.weights,
        prunable=plan.prunable,
        zeros=plan.zeros,
        components=plan.components,
        seconds=plan.seconds,
        memory_bytes=plan.memory_bytes,
        download_bytes=size,
        too_big=_too_big(plan.seconds, plan.memory_bytes, size, limits),
    )


def _too_big(seconds: float, memory: int, download: int, limits: Limits) -> str | None:
    if download > limits.download_gb * 1e9:
        return f"its weights are {download / 1e9:.1f} GB, and this machine takes {limits.download_gb:g} GB"
    if memory > limits.memory_gb * 1e9:
        return f"it needs about {memory / 1e9:.1f} GB of memory, and a job here gets {limits.memory_gb:g} GB"
    if seconds > limits.minutes * 60:
        return f"it would take about {seconds / 60:,.0f} minutes, and a job here gets {limits.minutes:g}"
    return None


def _weights_on_hub(model: str) -> int:
    """Bytes of a repository's weights; its config is looked at before anything is built from it."""
    try:
        sizes = _sizes(model)
        if "config.json" not in sizes:
            raise Refusal("This repository holds no config.json: it is not a model.")
        large = [name for name, size in sizes.items() if size > _SMALL and name.endswith((".json", ".txt", ".model"))]
        if large:
            raise Refusal("This repository's config or tokenizer is far too large to be one.")
        with open(hf_hub_download(model, "config.json"), encoding="utf-8") as file:
            values = json.load(file)
    except HfHubHTTPError as error:
        raise Refusal(_answer(error)) from error
    except (httpx2.TransportError, LocalEntryNotFoundError) as error:
        raise Refusal("The Hub cannot be reached from here at the moment: try again in a minute.") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal("This repository's config.json cannot be read.") from error
    _check_shape(values)
    return sum(size for name, size in sizes.items() if name.endswith(_WEIGHTS) and not name.startswith("packed/"))


def _sizes(model: str) -> dict[str, int]:
    """Bytes of each file of a repository."""
    try:
        files = HfApi().model_info(model, files_metadata=True, timeout=20).siblings or []
        return {file.rfilename: file.size or 0 for file in files}
    except HFValidationError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # a page, or JSON of another shape
        raise Refusal("The Hub cannot be reached from here at the moment: try again in a minute.") from error


def _check_shape(values: object) -> None:
    """A config that asks for a trillion weights must not be built, not even without them."""
    if not isinstance(values, dict):
        raise Refusal("This repository's config.json cannot be read.")
    for name, most in _LARGEST.items():
        value = values.get(name, 1)
        if value in ("auto", None):
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
            raise Refusal(f"This model's config says a {name} that no Mamba has: it is refused.")


def _answer(error: HfHubHTTPError) -> str:
    status = error.response.status_code if error.response is not None else 0
    if status in (401, 403, 404):
        return "There is no such public model on the Hub. Private and gated ones cannot be pruned here."
    if status == 429:
        return "The Hub has had too many requests from here: try again in a few minutes."
    return f"The Hub answered {status}: try again in a minute."
