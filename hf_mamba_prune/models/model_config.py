"""What this package reads of transformers' configs, typed: which fields there are depends on the model type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ModelConfig(Protocol):
    """A transformers config of a supported model type.

    Attributes:
        model_type: key of the table of architectures.
        hidden_size: d_model.
        num_hidden_layers: blocks.
        vocab_size: rows of the embeddings, with padding.
        state_size: n.
        conv_kernel: k.
        expand: d_inner / d_model.
    """

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    state_size: int
    conv_kernel: int
    expand: float

    def __getattr__(self, name: str) -> Any:
        """Fields that only some model types have, such as `time_step_rank` or `n_groups`."""


def config_of(model: PreTrainedModel) -> ModelConfig:
    """The config of a model, as the table of architectures reads it."""
    return cast(ModelConfig, model.config)
