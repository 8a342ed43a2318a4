"""What the fields of a config may hold, one by one.

A config is written by strangers and by hand. transformers checks some types, in errors of several lines, and ranges
not at all; a key that is the name of a method replaces it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from transformers.activations import ACT2FN

_LARGEST = 1 << 31
_DTYPES = ("float32", "bfloat16", "float16", "float64")


def _size(value: object) -> str | None:
    right = isinstance(value, int) and not isinstance(value, bool) and 1 <= value < _LARGEST
    return None if right else "a whole number of at least 1"


def _number(value: object) -> str | None:
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return None if right else "a finite number"


def _positive(value: object) -> str | None:
    return "a finite number above 0" if _number(value) or value <= 0 else None  # type: ignore[operator]


def _flag(value: object) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _rank(value: object) -> str | None:
    return "'auto', or a whole number of at least 1" if value != "auto" and _size(value) else None


def _token(value: object) -> str | None:
    items = value if isinstance(value, list) else [value]
    right = all(item is None or isinstance(item, int) and not isinstance(item, bool) for item in items)
    return None if right else "a token id, a list of them or null"


def _limit(value: object) -> str | None:
    """Of the time step: (smallest, largest); the second may be infinite, which transformers also writes tagged."""
    ends = list(value) if isinstance(value, list | tuple) else []
    ends = [math.inf if end == {"__float__": "Infinity"} else end for end in ends]
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
    right = len(ends) == 2 and numbers and 0 <= ends[0] < ends[1]
    return None if right else "two numbers, the first from 0 up and below the second (which may be Infinity, unquoted)"


def _labels(value: object) -> str | None:
    return None if value is None or isinstance(value, dict) else "a mapping"


def _activation(value: object) -> str | None:
    return None if isinstance(value, str) and value in ACT2FN else "the name of an activation, such as 'silu'"


def _dtype(value: object) -> str | None:
    known = value is None or isinstance(value, str) and value.removeprefix("torch.") in _DTYPES
    return None if known else f"one of {', '.join(_DTYPES)}"


_SIZES = (
    "hidden_size num_hidden_layers vocab_size state_size conv_kernel expand intermediate_size num_heads head_dim "
    "n_groups chunk_size num_labels context_length prediction_length"
).split()
_POSITIVE = "layer_norm_epsilon mixer_rms_eps time_step_max time_step_scale".split()
_NUMBERS = "initializer_range time_step_min time_step_floor".split()
_FLAGS = (
    "use_bias use_conv_bias residual_in_fp32 rescale_prenorm_residual use_cache use_mambapy use_falcon_mambapy "
    "use_associative_scan tie_word_embeddings bidirectional paired scaling is_encoder_decoder"
).split()
_TOKENS = "pad_token_id bos_token_id eos_token_id".split()

Check = Callable[[object], str | None]

FIELDS: dict[str, Check] = (
    dict[str, Check]()
    | dict.fromkeys(_SIZES, _size)
    | dict.fromkeys(_POSITIVE, _positive)
    | dict.fromkeys(_NUMBERS, _number)
    | dict.fromkeys(_FLAGS, _flag)
    | dict.fromkeys(_TOKENS, _token)
    | {"time_step_rank": _rank, "time_step_limit": _limit, "hidden_act": _activation}
    | {"dtype": _dtype, "torch_dtype": _dtype, "id2label": _labels, "label2id": _labels}
)
"""Field -> what was expected of a value that is wrong, None for one that is right."""


def check_fields(values: Mapping[str, object], source: str) -> None:
    """Refuse a config with a value that no supported model can have.

    Args:
        values: by the names of transformers' configs.
        source: Hub id or folder, for the error.

    Raises:
        ValueError: there is one.
    """
    for name, expected_of in FIELDS.items():
        if name in values and (expected := expected_of(values[name])):
            raise ValueError(wrong_field(source, name, values[name], expected))


def wrong_field(source: str, name: str, value: object, expected: str) -> str:
    """The sentence that says so."""
    shown = " ".join(repr(value).split())
    return f"config.json of {source} has {name} {shown[:60]}{'...' * (len(shown) > 60)}; expected {expected}."
