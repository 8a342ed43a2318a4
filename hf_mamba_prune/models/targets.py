"""The weights of one model that can be pruned, found by the table of architectures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mamba_prune.config import closest
from hf_mamba_prune.models.architectures import EMBEDDINGS, LM_HEAD, TIED_EMBEDDINGS, architecture_of
from hf_mamba_prune.models.components import Component, Kind, Tap
from hf_mamba_prune.models.model_config import ModelConfig, config_of
from hf_mamba_prune.models.shards import local


@dataclass(frozen=True, kw_only=True)
class Target:
    """One weight of one model that can be pruned.

    Args:
        name: state-dict name.
        component: as users see it, `in_proj`.
        layer: index of the block, None outside the blocks.
        kind: see `Component`.
        tap: where its input passes by, with the module's absolute name.
        shape: (out, in) as pruning sees it.
        parts: (name, start, stop) of ranges of output rows, as in ("x_proj.B", 48, 64).
        tied: the parameter's other state-dict name, None when it has only one.
        stage: see `Component`.
    """

    name: str
    component: str
    layer: int | None
    kind: Kind
    tap: Tap | None
    shape: tuple[int, int]
    parts: tuple[tuple[str, int, int], ...] = ()
    tied: str | None = None
    stage: int | None = None

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]

    @property
    def called(self) -> bool:
        """Whether the weight's own module is called, so that its inputs and outputs pass there."""
        own = self.name.removesuffix(".weight")
        return self.tap is not None and self.tap.side == "input" and self.tap.module == own

    def weight(self, model: nn.Module) -> torch.Tensor:
        """The live weight as a view (out, in): writing to it changes the model.

        Of a weight that is divided over ranks, the rows that are here.
        """
        return self.local_matrix(model.get_parameter(self.name).detach())

    def local_matrix(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the parameter's form as (rows that are here, in)."""
        return local(tensor).view(-1, self.shape[1])


def block_prefix(model: PreTrainedModel, index: int) -> str:
    """What the state-dict names of a block's weights begin with, `backbone.layers.3.`"""
    base = "" if model.base_model is model else model.base_model_prefix + "."
    return f"{base}{architecture_of(config_of(model)).layers}.{index}."


def components_of(model: PreTrainedModel) -> tuple[Component, ...]:
    """All components of a model: those of its blocks, then embeddings and head, one of both when they are tied.

    A component that stands in blocks of several kinds is named once.
    """
    found: dict[str, Component] = {}
    for block in architecture_of(config_of(model)).blocks(config_of(model)):
        for component in block.components:
            found.setdefault(component.name, component)
    return (*found.values(), *_outer(model))


def _outer(model: PreTrainedModel) -> tuple[Component, ...]:
    head = model.get_output_embeddings()
    if head is None:
        return (EMBEDDINGS,)
    tied = head.weight is model.get_input_embeddings().weight
    return (TIED_EMBEDDINGS,) if tied else (EMBEDDINGS, LM_HEAD)


def find_targets(model: PreTrainedModel, components: tuple[str, ...] = ()) -> list[Target]:
    """The prunable weights of a model, in the order in which data flows through them.

    Args:
        model: a transformers model of a supported type, with or without a head.
        components: which components; empty means the defaults (in_proj, x_proj, dt_proj, out_proj).

    Raises:
        ValueError: unknown model type or component, a component that zeroing does not remove, a PEFT model, or weights
            that are packed or quantized.
    """
    if any(kind.__module__.startswith("peft.") for kind in type(model).__mro__):
        raise ValueError(
            "this model is wrapped by PEFT, and adapters are not pruned: prune the model without them. To train "
            "adapters on a pruned model, use mask_adapters and transformers' own Trainer."
        )
    described = getattr(model.config, "quantization_config", None)  # transformers leaves it out of dense configs
    if described is not None:
        method = dict(described)["quant_method"]
        raise ValueError(f"the model is packed or quantized (by {method}): call dequantize() first, or load it dense.")
    chosen = _chosen(components_of(model), components)
    names = dict(model.named_parameters(remove_duplicate=False))
    targets = []
    for index, block in enumerate(architecture_of(config_of(model)).blocks(config_of(model))):
        prefix = block_prefix(model, index)
        own = [component for component in block.components if component.name in chosen]
        targets += [_target(component, config_of(model), prefix, index, names) for component in own]
    base = "" if model.base_model is model else model.base_model_prefix + "."
    for component in _outer(model):
        if component.name in chosen:
            prefix = "" if component is LM_HEAD else base
            targets.append(_target(component, config_of(model), prefix, None, names))
    return targets


def _chosen(known: Iterable[Component], names: tuple[str, ...]) -> set[str]:
    by_name = {component.name: component for component in known}
    for name in names:
        if name not in by_name:
            raise ValueError(closest("component", name, tuple(by_name)))
        if by_name[name].kind == "state":
            raise ValueError(f"component {name!r} is not pruned by zeros: {by_name[name].off}.")
    return set(names) or {name for name, component in by_name.items() if component.default}


def _target(
    component: Component, config: ModelConfig, prefix: str, layer: int | None, names: Mapping[str, nn.Parameter]
) -> Target:
    weight = names[prefix + component.weight]
    tap = component.tap(config)
    if tap is not None and component.per_layer:
        tap = Tap(module=prefix + tap.module, side=tap.side, columns=tap.columns)
    shape = (weight.shape[0], math.prod(weight.shape[1:]))
    parts: list[tuple[str, int, int]] = []
    start = 0
    for part, size in (component.parts(config) if component.parts else {}).items():
        parts.append((f"{component.name}.{part}", start, start + size))
        start += size
    return Target(
        name=prefix + component.weight,
        component=component.name,
        layer=layer,
        kind=component.kind,
        tap=tap,
        shape=shape,
        stage=component.stage,
        parts=tuple(parts),
        tied=component.tied,
    )
