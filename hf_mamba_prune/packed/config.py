"""Configs of packed models: model types that plain transformers does not know, so that it refuses the packed files."""

from __future__ import annotations

from typing import ClassVar

from transformers import FalconMambaConfig, Mamba2Config, MambaConfig, PreTrainedConfig


class PackedMambaConfig(MambaConfig):
    """Of a packed Mamba; the fields are those of `MambaConfig`."""

    model_type = "packed_mamba"
    packed_type: ClassVar[str] = "mamba"


class PackedMamba2Config(Mamba2Config):
    """Of a packed Mamba-2; the fields are those of `Mamba2Config`."""

    model_type = "packed_mamba2"
    packed_type: ClassVar[str] = "mamba2"


class PackedFalconMambaConfig(FalconMambaConfig):
    """Of a packed Falcon-Mamba; the fields are those of `FalconMambaConfig`."""

    model_type = "packed_falcon_mamba"
    packed_type: ClassVar[str] = "falcon_mamba"


PACKED_CONFIGS: dict[str, type[PreTrainedConfig]] = {
    config.packed_type: config for config in (PackedMambaConfig, PackedMamba2Config, PackedFalconMambaConfig)
}

_DENSE_CONFIGS = {config.model_type: config for config in (MambaConfig, Mamba2Config, FalconMambaConfig)}


def _fields(config: PreTrainedConfig) -> dict:
    return {name: value for name, value in config.to_dict().items() if name not in ("model_type", "architectures")}


def to_packed(config: PreTrainedConfig) -> PreTrainedConfig:
    """The packed counterpart of a config.

    Raises:
        ValueError: of a model type that cannot be packed.
    """
    if config.model_type not in PACKED_CONFIGS:
        raise ValueError(f"a model of type {config.model_type!r} cannot be packed; {', '.join(PACKED_CONFIGS)} can")
    return PACKED_CONFIGS[config.model_type](**_fields(config))


def to_dense(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the ordinary model that a packed one stands for."""
    return _DENSE_CONFIGS[config.packed_type](**_fields(config))
