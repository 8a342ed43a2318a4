"""The table of supported models: what can be pruned in each, where inputs are seen, which kernels serve its blocks.

It is the only place that knows the names of components. A new architecture is one more entry of `ARCHITECTURES` and a
tiny config in `tests/tiny_models.py`, whose contract test says whether every weight exists, every tap fires and shows
the weight's true input. See `components` for what an entry is made of, and for the shape letters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hf_mamba_prune.models.components import (
    Architecture,
    BlockKind,
    Component,
    Kernels,
    Recurrence,
    TapOf,
    TokenStep,
    no_tap,
    tap,
)
from hf_mamba_prune.models.model_config import ModelConfig

_STATE_OFF = (
    "not by a zero: A = -exp(A_log), so A_log = 0 means A = -1; a large A_log ends the state's memory, and zeroing "
    "the state's row of B or C removes it"
)
_SKIP_OFF = "a zero removes the skip connection of the {}"
_MOST = 3.4028234663852886e38  # of float32
_A_LOG = Component(name="A_log", weight="mixer.A_log", kind="state", tap=no_tap, off=_STATE_OFF)

EMBEDDINGS = Component(name="embeddings", weight="embeddings.weight", kind="lookup", tap=no_tap, per_layer=False)
LM_HEAD = Component(
    name="lm_head", weight="lm_head.weight", kind="linear", tap=tap("lm_head", "input"), per_layer=False
)
TIED_EMBEDDINGS = replace(EMBEDDINGS, kind="linear", tap=LM_HEAD.tap, tied=LM_HEAD.weight)


def _in_proj(parts: Callable[[ModelConfig], dict[str, int]]) -> Component:
    return Component(
        name="in_proj", weight="mixer.in_proj.weight", kind="linear", tap=tap("mixer.in_proj", "input"), stage=0,
        parts=parts, default=True,
    )  # fmt: skip


_OUT_PROJ = Component(
    name="out_proj", weight="mixer.out_proj.weight", kind="linear", tap=tap("mixer.out_proj", "input"), stage=2,
    default=True,
)  # fmt: skip


def _conv1d(columns: Callable[[ModelConfig], tuple[int, int]]) -> Component:
    return Component(
        name="conv1d", weight="mixer.conv1d.weight", kind="conv", tap=tap("mixer.in_proj", "output", columns)
    )


def _step_sizes(config: ModelConfig) -> dict[str, float]:
    names = {"d_model": "hidden_size", "states": "state_size", "conv_width": "conv_kernel"}
    return {name: getattr(config, field) for name, field in names.items()} | {"norm_eps": config.layer_norm_epsilon}


_STEP_VECTORS = {
    "norm": "norm.weight", "in_bias": "mixer.in_proj.bias", "conv_weight": "mixer.conv1d.weight",
    "conv_bias": "mixer.conv1d.bias", "A": "mixer.A_log", "D": "mixer.D", "out_bias": "mixer.out_proj.bias",
}  # fmt: skip
_SELECTIVE_STEP = TokenStep(
    matrices={name: f"mixer.{name}" for name in ("in_proj", "x_proj", "dt_proj", "out_proj")},
    vectors=_STEP_VECTORS | {"dt_bias": "mixer.dt_proj.bias"},
    sizes=lambda c: _step_sizes(c) | {"d_inner": c.intermediate_size, "rank": int(c.time_step_rank)},
)
_FALCON_STEP = replace(
    _SELECTIVE_STEP, sizes=lambda c: dict(_SELECTIVE_STEP.sizes(c)) | {"mixer_eps": c.mixer_rms_eps}
)


def _selective_block(dt_tap: TapOf, modeling: str, prefix: str, step: TokenStep) -> BlockKind:
    """A Mamba-1 block: in_proj -> conv1d -> x_proj -> dt_proj, scan -> out_proj.

    The input of `dt_proj` is that of before `x_proj` changes: a stage of its own costs a pass and brought nothing.
    """
    in_proj = _in_proj(lambda c: {"x": c.intermediate_size, "z": c.intermediate_size})
    x_proj = Component(
        name="x_proj", weight="mixer.x_proj.weight", kind="linear", tap=tap("mixer.x_proj", "input"), stage=1,
        parts=lambda c: {"dt": c.time_step_rank, "B": c.state_size, "C": c.state_size}, default=True,
    )  # fmt: skip
    dt_proj = Component(
        name="dt_proj", weight="mixer.dt_proj.weight", kind="linear", tap=dt_tap, stage=1, default=True
    )
    skip = Component(name="D", weight="mixer.D", kind="channel", tap=x_proj.tap, off=_SKIP_OFF.format("channel"))
    return BlockKind(
        components=(in_proj, x_proj, dt_proj, _OUT_PROJ, _conv1d(lambda c: (0, c.intermediate_size)), skip, _A_LOG),
        d_inner=lambda c: c.intermediate_size,
        recurrence=Recurrence(tap=dt_tap, weight=dt_proj.weight, bias="mixer.dt_proj.bias", rates=_A_LOG.weight),
        kernels=Kernels(
            modeling=modeling,
            scan="selective",
            mixer=f"{prefix}Mixer",
            norm=f"{prefix}RMSNorm",
            language_model=f"{prefix}ForCausalLM",
            step=step,
        ),
    )


def _widths(config: ModelConfig) -> tuple[int, int, int]:
    """(d_inner, width of B or C over all groups, heads) of a Mamba-2 block."""
    return int(config.expand * config.hidden_size), config.n_groups * config.state_size, config.num_heads


def _mamba2_parts(config: ModelConfig) -> dict[str, int]:
    d_inner, state, heads = _widths(config)
    return {"z": d_inner, "x": d_inner, "B": state, "C": state, "dt": heads}


def _mamba2_conv_columns(config: ModelConfig) -> tuple[int, int]:
    d_inner, state, _ = _widths(config)
    return d_inner, 2 * d_inner + 2 * state


def _mamba2_dt_columns(config: ModelConfig) -> tuple[int, int]:
    _, stop = _mamba2_conv_columns(config)
    return stop, stop + config.num_heads


def _mamba2_step_sizes(config: ModelConfig) -> dict[str, float]:
    low, high = config.time_step_limit
    sizes = {"d_inner": _widths(config)[0], "heads": config.num_heads, "groups": config.n_groups}
    return _step_sizes(config) | sizes | {"step_min": low, "step_max": min(high, _MOST)}


_MAMBA2_STEP = TokenStep(
    matrices={name: f"mixer.{name}" for name in ("in_proj", "out_proj")},
    vectors=_STEP_VECTORS | {"dt_bias": "mixer.dt_bias", "gate_norm": "mixer.norm.weight"},
    sizes=_mamba2_step_sizes,
)

_MAMBA2_BLOCK = BlockKind(
    components=(
        _in_proj(_mamba2_parts),
        _OUT_PROJ,
        _conv1d(_mamba2_conv_columns),
        Component(name="D", weight="mixer.D", kind="channel", tap=no_tap, off=_SKIP_OFF.format("head")),
        _A_LOG,
    ),
    d_inner=lambda c: _widths(c)[0],
    recurrence=Recurrence(
        tap=tap("mixer.in_proj", "output", _mamba2_dt_columns), weight=None, bias="mixer.dt_bias",
        rates=_A_LOG.weight, limit="time_step_limit",
    ),
    kernels=Kernels(
        modeling="transformers.models.mamba2.modeling_mamba2", scan="chunk", mixer=None, norm="Mamba2RMSNorm",
        language_model="Mamba2ForCausalLM", step=_MAMBA2_STEP,
    ),
)  # fmt: skip

_FIELDS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "state_size", "conv_kernel", "expand", "hidden_act", "use_bias",
    "use_conv_bias", "layer_norm_epsilon", "residual_in_fp32", "tie_word_embeddings",
)  # fmt: skip
_SELECTIVE_FIELDS = (*_FIELDS, "intermediate_size", "time_step_rank")

ARCHITECTURES: dict[str, Architecture] = {
    "mamba": Architecture(
        name="Mamba",
        fields=_SELECTIVE_FIELDS,
        kinds={
            "mamba": _selective_block(
                tap("mixer.x_proj", "output", lambda c: (0, c.time_step_rank)),
                "transformers.models.mamba.modeling_mamba",
                "Mamba",
                _SELECTIVE_STEP,
            )
        },
    ),
    "mamba2": Architecture(
        name="Mamba-2",
        fields=(*_FIELDS, "num_heads", "head_dim", "n_groups", "time_step_limit"),
        kinds={"mamba2": _MAMBA2_BLOCK},
    ),
    "falcon_mamba": Architecture(
        name="Falcon-Mamba",
        fields=(*_SELECTIVE_FIELDS, "mixer_rms_eps"),
        kinds={
            "mamba": _selective_block(
                tap("mixer.dt_layernorm", "output"),
                "transformers.models.falcon_mamba.modeling_falcon_mamba",
                "FalconMamba",
                _FALCON_STEP,
            )
        },
    ),
}


def architecture_of(config: ModelConfig) -> Architecture:
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
