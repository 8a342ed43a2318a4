"""Which part of a model is fragile? The loss on held text when one component, or one block, is pruned alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.masks.calibration import INPUT_NEEDS, Need, calibrate
from hf_mamba_prune.masks.scores import build_score
from hf_mamba_prune.masks.sensitivity import CURVE_SEQUENCES, Prober
from hf_mamba_prune.masks.slots import Slot, weights_to_prune
from hf_mamba_prune.measure.evaluation import Evaluation
from hf_mamba_prune.measure.stability import Decay, measure_decay
from hf_mamba_prune.models.architectures import architecture_of
from hf_mamba_prune.models.model_config import config_of
from hf_mamba_prune.models.targets import Target, block_prefix, components_of, find_targets
from hf_mamba_prune.progress import track

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
ANALYSIS_NAME = "analysis.json"
_ENDED = 20.0
"""A_log of a state that remembers nothing: exp(-dt * exp(20)) is 0 for every step above 1e-7."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What pruning one thing alone costs.

    Args:
        name: `in_proj`, `x_proj.B`, `A_log` ..., or `block 3`.
        weights: how many it has.
        rises: loss per token above dense, in nats, at each level; may be negative.
    """

    name: str
    weights: int
    rises: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Together:
    """All default components pruned uniformly at once.

    Args:
        level: sparsity; 0 is the dense model.
        rise: loss per token above dense, in nats.
        decays: of the recurrence, one for each block.
    """

    level: float
    rise: float
    decays: tuple[Decay, ...]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything that was measured.

    Args:
        text: what the loss was measured on.
        dense_loss: nats per token.
        levels: sparsities, 0 to 1.
        components: one curve for each component and part of one, over all blocks.
        blocks: one curve for each block, its default components together.
        together: everything at once, dense and at each level, with what becomes of the recurrence.
    """

    text: str
    dense_loss: float
    levels: tuple[float, ...]
    components: tuple[Curve, ...]
    blocks: tuple[Curve, ...]
    together: tuple[Together, ...]

    def save(self, folder: Path) -> Path:
        """Write `analysis.json` into an existing folder."""
        path = folder / ANALYSIS_NAME
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        return path


@torch.no_grad()
def analyze(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sequences: torch.Tensor,
    evaluation: Evaluation,
    config: PruningConfig,
    levels: Sequence[float] = LEVELS,
) -> Analysis:
    """Prune each component and each block alone, uniformly, by masks only, and measure the loss; the model is left as
    it was. A score that needs inputs leaves out the components whose input cannot be measured.

    Args:
        model: a causal language model of a supported type.
        tokenizer: of the model.
        sequences: token ids (samples, l) that the scores are measured on.
        evaluation: one held text.
        config: score, seed and batch size.
        levels: sparsities, each in [0, 1].

    Raises:
        ValueError: no text to measure on, or several.
        RuntimeError: the model gives no finite predictions.
    """
    if not evaluation.texts:
        raise ValueError("the analysis measures a loss: give it a held text.")
    if len(evaluation.texts) > 1:
        raise ValueError(f"an analysis measures on one held text, and {len(evaluation.texts)} were given.")
    score = build_score(config)
    targets = find_targets(model, _measurable(model, score.needs))
    statistics = calibrate(model, targets, sequences, score.needs, config.batch_size)

    def loss() -> float:
        return math.log(evaluation.run(model, tokenizer)[0].perplexity)

    prober = Prober(model, score, statistics, config.seed, loss)

    def curve(name: str, slots: Sequence[Slot]) -> Curve:
        return Curve(name=name, weights=sum(slot.size for slot in slots), rises=prober.rises(slots, levels))

    by_component = _by_component(targets)
    components = [curve(name, slots) for name, slots in track(by_component.items(), "components", "curve")]
    components += _state_curves(model, prober, levels)
    defaults = {target.name for target in find_targets(model)}
    slots = [Slot.whole(target) for target in targets if target.name in defaults]
    blocks = []
    for index in track(range(model.config.num_hidden_layers), "blocks", "curve"):
        blocks.append(curve(f"block {index}", [slot for slot in slots if slot.target.layer == index]))
    together = []
    for level in track((0.0, *levels), "together", "level"):
        with prober.masked(slots, level):
            state = measure_decay(model, sequences[:CURVE_SEQUENCES])
            together.append(Together(level=level, rise=prober.rise(), decays=state))
    return Analysis(
        text=evaluation.texts[0].name,
        dense_loss=prober.dense_loss,
        levels=tuple(levels),
        components=tuple(components),
        blocks=tuple(blocks),
        together=tuple(together),
    )


def _measurable(model: PreTrainedModel, needs: frozenset[Need]) -> tuple[str, ...]:
    """Names of components that are pruned by zeros and that a score with these needs can be measured for."""
    known = [own for own in components_of(model) if own.kind != "state"]
    if needs & INPUT_NEEDS:
        known = [own for own in known if own.tap(config_of(model)) is not None]
    if Need.INPUT_PRODUCT in needs:
        known = [own for own in known if own.kind == "linear"]
    return tuple(own.name for own in known)


def _by_component(targets: Sequence[Target]) -> dict[str, list[Slot]]:
    """Slots of every component over all blocks, and of every part of one, in the order of the data."""
    slots: dict[str, list[Slot]] = {}
    for target in targets:
        slots.setdefault(target.component, []).append(Slot.whole(target))
        for part, start, stop in target.parts:
            slots.setdefault(part, []).append(Slot(target=target, component=part, start=start, stop=stop))
    return slots


def _state_curves(model: PreTrainedModel, prober: Prober, levels: Sequence[float]) -> list[Curve]:
    """States of the recurrence, those with the shortest memory ended first; zeros would not remove them."""
    blocks = architecture_of(config_of(model)).blocks(config_of(model))
    names = [
        block_prefix(model, index) + block.recurrence.rates for index, block in enumerate(blocks) if block.recurrence
    ]
    states = [model.get_parameter(name).detach() for name in names]

    def end(level: float) -> None:
        for state in states:
            count = weights_to_prune(level, state.numel())
            state.view(-1)[state.flatten().argsort(descending=True, stable=True)[:count]] = _ENDED

    known = [own.name for own in components_of(model) if own.kind == "state"]
    size = sum(state.numel() for state in states)
    return [Curve(name=name, weights=size, rises=prober.rises_of(end, states, levels)) for name in known]
