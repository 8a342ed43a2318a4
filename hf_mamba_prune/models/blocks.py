"""Blocks one after the other: where they come from, and how tokens become what the first of them sees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mamba_prune.models.architectures import architecture_of
from hf_mamba_prune.models.model_config import config_of
from hf_mamba_prune.models.targets import block_prefix


class BlockSource(Protocol):
    """A model as a row of blocks, of which only one is needed at a time."""

    def __len__(self) -> int:
        """How many blocks."""

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids (b, l) -> (b, l, d_model), what the first block sees."""

    def prefix(self, index: int) -> str:
        """What the state-dict names of a block's weights begin with."""

    def block(self, index: int) -> AbstractContextManager[nn.Module]:
        """A context in which the block can be run and its weights written; they are kept when it ends."""


class MemoryBlocks:
    """The blocks of a model that is in memory as a whole."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        layers = architecture_of(config_of(model)).layers
        self._blocks = cast(nn.ModuleList, model.base_model.get_submodule(layers))

    def __len__(self) -> int:
        return len(self._blocks)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids (b, l) -> (b, l, d_model)."""
        embeddings = self._model.get_input_embeddings()
        return embeddings(tokens.to(self._model.device))

    def prefix(self, index: int) -> str:
        """`backbone.layers.3.`"""
        return block_prefix(self._model, index)

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """The block itself: what is written to it stays."""
        yield self._blocks[index]
