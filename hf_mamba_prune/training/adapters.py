"""LoRA on a pruned model: adapters whose merged weights keep the masks (PEFT's own fill every zero)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch.nn import functional as F

from hf_mamba_prune.models.architectures import architecture_of
from hf_mamba_prune.models.model_config import ModelConfig

if TYPE_CHECKING:
    from peft import PeftModel


def mask_adapters(model: PeftModel) -> int:
    """Hold every LoRA adapter of a model within the zeros of the weights that it stands on.

    W + s B A becomes W + s (B A) * M, with M = (W != 0), when it is run, trained, merged and unmerged; what is trained
    is therefore what `merge_and_unload` gives. A forward pass builds B A once for each weight, (out, in).

    Args:
        model: a pruned model under `get_peft_model` or `PeftModel.from_pretrained`; changed in place. Adapters that
            are added later are not masked: call it again.

    Returns:
        How many adapters on how many weights are masked, counted together.

    Raises:
        ValueError: there is no LoRA adapter, one stands on a weight that the model reads past its module, or on one
            that is no matrix of floating-point numbers.
    """
    from peft.tuners.lora import Linear, LoraLayer

    count = 0
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        _check(model, name, layer, isinstance(layer, Linear))
        for adapter in layer.lora_A:
            layer.lora_variant[adapter] = _masked_variant()
            count += 1
    if not count:
        raise ValueError("this model has no LoRA adapter: call get_peft_model with a LoraConfig first.")
    return count


def _check(model: PeftModel, name: str, layer: Any, is_linear: bool) -> None:
    config = cast(ModelConfig, model.config)
    past = {
        component.weight.removesuffix(".weight")
        for block in architecture_of(config).blocks(config)
        for component in block.components
        if not _passes_module(component.weight, component.tap(config))
    }
    if any(name.endswith(f".{module}") for module in past):
        raise ValueError(
            f"{name} has an adapter, but the model reads its weight without calling it, so the adapter would do "
            f"nothing: leave {name.rpartition('.')[2]} out of target_modules."
        )
    weight = getattr(layer.get_base_layer(), "weight", None)
    if not is_linear or weight is None or not weight.is_floating_point() or weight.ndim != 2:
        raise ValueError(f"{name} is no linear layer of floating-point numbers: adapters on it cannot be masked.")


def _passes_module(weight: str, tap: Any) -> bool:
    """Whether a weight is used by calling its module."""
    return tap is not None and tap.side == "input" and f"{tap.module}.weight" == weight


def _masked_variant() -> Any:
    """PEFT's form of an adapter of another kind."""
    from peft.tuners.lora.layer import LoraVariant

    class MaskedLora(LoraVariant):
        """See `mask_adapters`."""

        def supports_lora_conversion(self) -> bool:
            return False

        @staticmethod
        def merge_safe(module: Any, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
            return orig_weight + _delta(module, active_adapter, orig_weight)

        @staticmethod
        def merge_unsafe(module: Any, active_adapter: str, orig_weight: torch.Tensor) -> None:
            orig_weight.data += _delta(module, active_adapter, orig_weight)

        @staticmethod
        def unmerge(module: Any, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
            return orig_weight - _delta(module, active_adapter, orig_weight)

        @staticmethod
        def forward(
            module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **ignored: Any
        ) -> torch.Tensor:
            delta = _delta(module, active_adapter, module.get_base_layer().weight)
            return result + F.linear(module.lora_dropout[active_adapter](x), delta.to(x.dtype))

    return MaskedLora()


def _delta(module: Any, adapter: str, weight: torch.Tensor) -> torch.Tensor:
    """s (B A) * (W != 0), (out, in)."""
    return (module.get_delta_weight(adapter) * (weight != 0)).to(weight.dtype)
