"""What can be pruned in each supported model, and where the input of each weight can be observed: a table.

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

A new architecture is one more entry of `ARCHITECTURES` and a tiny config in the tests, whose contract test says
whether every weight exists, every tap fires and shows the weight's true input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from hf_mamba_prune.config import closest
from hf_mamba_prune.models.shards import local

Kind = Literal["linear", "conv", "channel", "lookup", "state"]


@dataclass(frozen=True)
class Tap:
    """Where a weight's input passes by: the first tensor that `module` gets or gives, columns [start, stop) of it."""

    module: str
    side: Literal["input", "output"]
    columns: tuple[int, int] | None = None

    def read(self, observed: torch.Tensor) -> torch.Tensor:
        """(b, l, width) as observed -> (b, l, in), the weight's input."""
        return observed if self.columns is None else observed[..., slice(*self.columns)]


@dataclass(frozen=True)
class Row:
    """One row of the table: one weight of every block, or of the model.

    Args:
        component: name that users see; also the prefix of its parts, as in `x_proj.B`.
        weight: state-dict name, relative to the block (or to the base model where `per_layer` is false).
        kind: how the weight acts on its input: `linear` (out, in); `conv` (channels, taps), one channel in, one out;
            `channel`, one factor for each channel or head; `lookup`, rows picked by token id, no input to measure;
            `state`, parameters of the recurrence, which zeroing does not remove.
        tap: config -> `Tap` with a module name relative to the block, or None.
        parts: config -> sizes of consecutive ranges of output rows, by name.
        default: pruned when the user names no components.
        off: what switches the weight off.
        tied: the other state-dict name of the same parameter when the config ties embeddings.
    """

    component: str
    weight: str
    kind: Kind
    tap: Callable[[object], Tap | None]
    parts: Callable[[object], dict[str, int]] | None = None
    default: bool = False
    off: str = "a zero removes the connection"
    per_layer: bool = True
    tied: str | None = None


def _tap(module: str, side: Literal["input", "output"], columns: Callable | None = None) -> Callable[[object], Tap]:
    return lambda config: Tap(module, side, columns(config) if columns else None)


_STATE_OFF = (
    "not by a zero: A = -exp(A_log), so A_log = 0 means A = -1; a large A_log ends the state's memory, and zeroing "
    "the state's row of B or C removes it"
)
_D_OFF = "a zero removes the skip connection of the channel"


def _no_tap(config: object) -> None:
    return None


def _embedding(tied: bool) -> Row:
    if tied:
        tap = _tap("lm_head", "input")
        return Row("embeddings", "embeddings.weight", "linear", tap, per_layer=False, tied="lm_head.weight")
    return Row("embeddings", "embeddings.weight", "lookup", _no_tap, per_layer=False)


_LM_HEAD = Row("lm_head", "lm_head.weight", "linear", _tap("lm_head", "input"), per_layer=False)


def _mamba1(dt_tap: Callable[[object], Tap]) -> tuple[Row, ...]:
    """Rows of a Mamba-1 block: in_proj -> conv1d -> x_proj -> dt_proj, scan -> out_proj."""
    return (
        Row(
            "in_proj",
            "mixer.in_proj.weight",
            "linear",
            _tap("mixer.in_proj", "input"),
            parts=lambda c: {"x": c.intermediate_size, "z": c.intermediate_size},
            default=True,
        ),
        Row(
            "x_proj",
            "mixer.x_proj.weight",
            "linear",
            _tap("mixer.x_proj", "input"),
            parts=lambda c: {"dt": c.time_step_rank, "B": c.state_size, "C": c.state_size},
            default=True,
        ),
        Row("dt_proj", "mixer.dt_proj.weight", "linear", dt_tap, default=True),
        Row("out_proj", "mixer.out_proj.weight", "linear", _tap("mixer.out_proj", "input"), default=True),
        Row(
            "conv1d",
            "mixer.conv1d.weight",
            "conv",
            _tap("mixer.in_proj", "output", lambda c: (0, c.intermediate_size)),
        ),
        Row("D", "mixer.D", "channel", _tap("mixer.x_proj", "input"), off=_D_OFF),
        Row("A_log", "mixer.A_log", "state", _no_tap, off=_STATE_OFF),
    )


def _mamba2_widths(config: object) -> tuple[int, int, int]:
    """(d_inner, width of B or C over all groups, heads)."""
    return int(config.expand * config.hidden_size), config.n_groups * config.state_size, config.num_heads


def _mamba2_parts(config: object) -> dict[str, int]:
    d_inner, state, heads = _mamba2_widths(config)
    return {"z": d_inner, "x": d_inner, "B": state, "C": state, "dt": heads}


def _mamba2_conv_columns(config: object) -> tuple[int, int]:
    d_inner, state, _ = _mamba2_widths(config)
    return d_inner, 2 * d_inner + 2 * state


_MAMBA2 = (
    Row(
        "in_proj",
        "mixer.in_proj.weight",
        "linear",
        _tap("mixer.in_proj", "input"),
        parts=_mamba2_parts,
        default=True,
    ),
    Row("out_proj", "mixer.out_proj.weight", "linear", _tap("mixer.out_proj", "input"), default=True),
    Row("conv1d", "mixer.conv1d.weight", "conv", _tap("mixer.in_proj", "output", _mamba2_conv_columns)),
    Row("D", "mixer.D", "channel", _no_tap, off="a zero removes the skip connection of the head"),
    Row("A_log", "mixer.A_log", "state", _no_tap, off=_STATE_OFF),
)


@dataclass(frozen=True)
class TimeStep:
    """How a block makes the step dt of its recurrence: softplus(weight @ what passes the tap + bias).

    Args:
        tap: where it passes by, given the config.
        weight: state-dict name within the block, None when dt itself passes the tap.
        bias: state-dict name within the block.
        limit: of the config, what dt is clamped to, None when it is not.
    """

    tap: Callable[[object], Tap]
    weight: str | None
    bias: str
    limit: str | None = None


@dataclass(frozen=True)
class Architecture:
    """One supported `model_type`: the rows of its blocks, in the order in which data flows through them."""

    name: str
    rows: tuple[Row, ...]
    time_step: TimeStep
    layers: str = "layers"


def _architecture1(name: str, dt_tap: Callable[[object], Tap]) -> Architecture:
    return Architecture(name, _mamba1(dt_tap), TimeStep(dt_tap, "mixer.dt_proj.weight", "mixer.dt_proj.bias"))


def _mamba2_dt_columns(config: object) -> tuple[int, int]:
    _, stop = _mamba2_conv_columns(config)
    return stop, stop + config.num_heads


_DT2 = TimeStep(_tap("mixer.in_proj", "output", _mamba2_dt_columns), None, "mixer.dt_bias", "time_step_limit")

ARCHITECTURES: dict[str, Architecture] = {
    "mamba": _architecture1("Mamba", _tap("mixer.x_proj", "output", lambda c: (0, c.time_step_rank))),
    "mamba2": Architecture("Mamba-2", _MAMBA2, _DT2),
    "falcon_mamba": _architecture1("Falcon-Mamba", _tap("mixer.dt_layernorm", "output")),
}


@dataclass(frozen=True)
class Target:
    """One weight of one model that can be pruned.

    Args:
        name: state-dict name.
        component: as users see it, `in_proj`.
        layer: index of the block, None outside the blocks.
        kind: see `Row`.
        tap: where its input passes by, with the module's absolute name.
        shape: (out, in) as pruning sees it.
        parts: (name, start, stop) of ranges of output rows, as in ("x_proj.B", 48, 64).
        tied: the parameter's other state-dict name, None when it has only one.
    """

    name: str
    component: str
    layer: int | None
    kind: Kind
    tap: Tap | None
    shape: tuple[int, int]
    parts: tuple[tuple[str, int, int], ...] = ()
    tied: str | None = None

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]

    def weight(self, model: nn.Module) -> torch.Tensor:
        """The live weight as a view (out, in): writing to it changes the model.

        Of a weight that is divided over ranks, the rows that are here.
        """
        return self.rows(model.get_parameter(self.name).detach())

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the parameter's form as (rows that are here, in)."""
        return local(tensor).view(-1, self.shape[1])


def architecture_of(config: object) -> Architecture:
    """The table's entry for a transformers config.

    Raises:
        ValueError: the model is of a type that the table does not hold.
    """
    found = ARCHITECTURES.get(config.model_type)
    if found is None:
        raise ValueError(
            f"model_type is {config.model_type!r}, which is not a supported state-space model. "
            f"Supported: {', '.join(ARCHITECTURES)}."
        )
    return found


def component_rows(model: nn.Module) -> tuple[Row, ...]:
    """All rows of a transformers model: those of its blocks, then embeddings and head, one row when they are tied."""
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    outer = (_embedding(tied),) if tied or head is None else (_embedding(tied), _LM_HEAD)
    return architecture_of(model.config).rows + outer


def find_targets(model: nn.Module, components: tuple[str, ...] = ()) -> list[Target]:
    """The prunable weights of a model, in the order in which data flows through them.

    Args:
        model: a transformers model of a supported type, with or without a head.
        components: which components; empty means the defaults (in_proj, x_proj, dt_proj, out_proj).

    Raises:
        ValueError: unknown model type or component, or a component that zeroing does not remove.
    """
    rows = _chosen(component_rows(model), components)
    prefix = "" if model.base_model is model else model.base_model_prefix + "."
    names = dict(model.named_parameters(remove_duplicate=False))
    layers = architecture_of(model.config).layers
    targets = []
    for index in range(model.config.num_hidden_layers):
        block = f"{prefix}{layers}.{index}."
        targets += [_target(row, model.config, block, index, names) for row in rows if row.per_layer]
    for row in rows:
        if not row.per_layer:
            own = "" if row.component == "lm_head" else prefix
            targets.append(_target(row, model.config, own, None, names))
    return targets


def _chosen(rows: tuple[Row, ...], components: tuple[str, ...]) -> list[Row]:
    known = {row.component: row for row in rows}
    for name in components:
        if name not in known:
            raise ValueError(closest("component", name, tuple(known)))
        if known[name].kind == "state":
            raise ValueError(f"component {name!r} is not pruned by zeros: {known[name].off}.")
    return [row for row in rows if (row.component in components if components else row.default)]


def _target(row: Row, config: object, block: str, layer: int | None, names: Mapping[str, nn.Parameter]) -> Target:
    weight = names[block + row.weight]
    tap = row.tap(config)
    if tap is not None:
        outer = row.per_layer
        tap = Tap(block + tap.module if outer else tap.module, tap.side, tap.columns)
    shape = (weight.shape[0], math.prod(weight.shape[1:]))
    parts, start = [], 0
    for part, size in (row.parts(config) if row.parts else {}).items():
        parts.append((f"{row.component}.{part}", start, start + size))
        start += size
    return Target(block + row.weight, row.component, layer, row.kind, tap, shape, tuple(parts), row.tied)
