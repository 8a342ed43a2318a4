"""What the table of architectures is made of: components and where their inputs pass, kinds of blocks, model types.

Glossary of the shape letters, used in every docstring of the package:

    b        batch (sequences)
    l        length (tokens of a sequence)
    d_model  width of the residual stream
    d_inner  channels inside a block, expand * d_model
    n        state size of a channel (Mamba-1) or of a head (Mamba-2)
    r        dt_rank, the rank of the time step's projection (Mamba-1)
    k        taps of the causal convolution
    h        heads (Mamba-2), g groups that share B and C

Several weights are never called as modules: the mixers read `dt_proj.weight` and `conv1d.weight` directly, so a hook
on those modules never fires. A `Tap` therefore names the module whose input or output *is* the weight's input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch

from hf_mamba_prune.models.model_config import ModelConfig

Kind = Literal["linear", "conv", "channel", "lookup", "state"]
Side = Literal["input", "output"]


@dataclass(frozen=True, kw_only=True)
class Tap:
    """Where a weight's input passes by: the first tensor that `module` gets or gives, columns [start, stop) of it."""

    module: str
    side: Side
    columns: tuple[int, int] | None = None

    def read(self, observed: torch.Tensor) -> torch.Tensor:
        """(b, l, width) as observed -> (b, l, in), the weight's input."""
        return observed if self.columns is None else observed[..., slice(*self.columns)]


TapOf: TypeAlias = Callable[[ModelConfig], Tap]


def tap(module: str, side: Side, columns: Callable[[ModelConfig], tuple[int, int]] | None = None) -> TapOf:
    """A tap whose columns are known once a model's config is."""
    return lambda config: Tap(module=module, side=side, columns=columns(config) if columns else None)


def no_tap(config: ModelConfig) -> None:
    """Of a weight whose input cannot be measured."""
    return None


@dataclass(frozen=True, kw_only=True)
class Component:
    """One weight of every block of a kind, or of the model.

    Args:
        name: as users see it; also the prefix of its parts, as in `x_proj.B`.
        weight: state-dict name, relative to the block (or to the base model where `per_layer` is false).
        kind: how the weight acts on its input: `linear` (out, in); `conv` (channels, taps), one channel in, one out;
            `channel`, one factor for each channel or head; `lookup`, rows picked by token id, no input to measure;
            `state`, parameters of the recurrence, which zeroing does not remove.
        tap: config -> `Tap` with a module name relative to the block, or None.
        stage: of a linear map within a block: those of one stage are repaired together, on inputs measured after the
            stages before it were. None elsewhere.
        parts: config -> sizes of consecutive ranges of output rows, by name.
        default: pruned when the user names no components.
        off: what switches the weight off.
        tied: the other state-dict name of the same parameter when the config ties embeddings.
    """

    name: str
    weight: str
    kind: Kind
    tap: Callable[[ModelConfig], Tap | None]
    stage: int | None = None
    parts: Callable[[ModelConfig], dict[str, int]] | None = None
    default: bool = False
    off: str = "a zero removes the connection"
    per_layer: bool = True
    tied: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recurrence:
    """h_t = exp(dt A) h_(t-1) + dt B x_t: where a block's step dt and its rates A stand.

    dt = softplus(weight @ what passes the tap + bias), A = -exp(rates).

    Args:
        tap: where it passes by, given the config.
        weight: state-dict name within the block, None when dt itself passes the tap.
        bias: state-dict name within the block.
        rates: state-dict name within the block of log(-A), (d_inner or h, n) or (h,).
        limit: field of the config, what dt is clamped to, None when it is not.
    """

    tap: TapOf
    weight: str | None
    bias: str
    rates: str
    limit: str | None = None


@dataclass(frozen=True, kw_only=True)
class TokenStep:
    """Where the native one-token step finds what a block computes with.

    Args:
        matrices: what the step calls a projection -> its module, by its name within the block.
        vectors: what the step calls a tensor -> the tensor, by its name within the block; None where it may be.
        sizes: config -> widths, limits and epsilons, by the step's names. The native side compares the widths with
            the shapes of all matrices and vectors.
    """

    matrices: Mapping[str, str]
    vectors: Mapping[str, str]
    sizes: Callable[[ModelConfig], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Which native kernels stand in for stock's functions in a kind of block.

    Args:
        modeling: the module of transformers whose functions are exchanged.
        language_model: class of the causal language model, whose forward is exchanged for what follows a cache.
        step: of a single token; None: stock's modules are called.
        scan: `selective` (Mamba-1) or `chunk` (Mamba-2).
        mixer: class whose forward moves more memory than it must, exchanged too; None: it is left alone.
        norm: class of the norms, whose forward is exchanged.
    """

    modeling: str
    language_model: str
    step: TokenStep | None
    scan: Literal["selective", "chunk"]
    mixer: str | None
    norm: str


@dataclass(frozen=True, kw_only=True)
class BlockKind:
    """One kind of block: its components in the order in which data flows through them.

    Args:
        components: of the block.
        d_inner: config -> channels inside the block.
        recurrence: None where the block has none.
        kernels: None where transformers' own functions run the block.
    """

    components: tuple[Component, ...]
    d_inner: Callable[[ModelConfig], int]
    recurrence: Recurrence | None = None
    kernels: Kernels | None = None


def _only(kinds: Mapping[str, BlockKind]) -> str:
    (name,) = kinds
    return name


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One supported `model_type`.

    Args:
        name: as people write it.
        kinds: of its blocks, by name.
        kind_of: config, index of a block -> name of its kind; None: all are of the only kind.
        fields: of its configs that decide, beside the shapes of weights, what a model computes.
        layers: where the blocks stand in the base model.
        final_norm: weight of the norm behind the last block, within the base model.
    """

    name: str
    kinds: Mapping[str, BlockKind]
    fields: tuple[str, ...]
    kind_of: Callable[[ModelConfig, int], str] | None = None
    layers: str = field(default="layers")
    final_norm: str = field(default="norm_f.weight")

    def block(self, config: ModelConfig, index: int) -> BlockKind:
        """The kind of the block at `index`."""
        return self.kinds[_only(self.kinds) if self.kind_of is None else self.kind_of(config, index)]

    def blocks(self, config: ModelConfig) -> list[BlockKind]:
        """The kinds of all blocks, from the first to the last."""
        return [self.block(config, index) for index in range(config.num_hidden_layers)]
