"""Puts the kernels under transformers' Mamba models on the CPU, and takes them out again.

transformers looks the operations up as functions of the model file: first the Hub's `kernels`, then an installed
`mamba_ssm`, then plain torch. Those doors are closed to a CPU, so the functions themselves are exchanged, for all
models of that file, and the forwards of mixers and norms where they move more memory than they need. Each exchanged
function passes what it does not serve on to the one it stands for: tensors on other devices, other activations,
compiled graphs.
"""

import functools
import inspect
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from hf_mamba_prune.models.architectures import ARCHITECTURES
from hf_mamba_prune.models.components import Kernels
from hf_mamba_prune.native import decode
from hf_mamba_prune.native.checks import serves, tracks
from hf_mamba_prune.native.continuation import continue_cache, prepare_token
from hf_mamba_prune.native.conv import causal_conv1d
from hf_mamba_prune.native.library import enabled, tell_if_missing
from hf_mamba_prune.native.memory import give_freed_memory_back, keep_freed_memory
from hf_mamba_prune.native.norm import norm_in_place
from hf_mamba_prune.native.scan import chunk_scan, selective_scan
from hf_mamba_prune.native.step_threads import watch_steps
from hf_mamba_prune.native.time_major import steps_by_time


def _apart(rest: dict) -> bool:
    """Whether a call must keep sequences apart that lie in one row, which stock refuses on a CPU."""
    return rest.get("seq_idx") is not None or rest.get("cu_seqlens") is not None


def _convolves(tensor: torch.Tensor, activation: str | None) -> bool:
    return serves(tensor) and activation in (None, "silu", "swish")


def _scan(stock: Callable) -> Callable:
    def mamba_selective_scan(
        hidden_states,
        dt,
        A,
        B,
        C,
        D=None,
        z=None,
        delta_bias=None,
        delta_softplus=False,
        return_last_state=False,
        **rest,
    ):
        named: dict[str, Any] = {"A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
        named |= {"delta_softplus": delta_softplus, "return_last_state": return_last_state}
        if not serves(hidden_states) or _apart(rest):
            return stock(hidden_states, dt, **named, **rest)
        if tracks(hidden_states):
            keep_freed_memory()
        return selective_scan(hidden_states, dt, **named)

    return mamba_selective_scan


def _chunk_scan(stock: Callable) -> Callable:
    def mamba2_chunk_scan(
        hidden_states,
        dt,
        A,
        B,
        C,
        chunk_size,
        D=None,
        dt_bias=None,
        initial_states=None,
        dt_softplus=False,
        dt_limit=(0.0, float("inf")),
        return_final_states=False,
        **rest,
    ):
        named: dict[str, Any] = {"A": A, "B": B, "C": C, "D": D, "dt_bias": dt_bias, "dt_softplus": dt_softplus}
        named |= {"dt_limit": dt_limit, "initial_states": initial_states, "return_final_states": return_final_states}
        if not serves(hidden_states) or _apart(rest):
            return stock(hidden_states, dt, chunk_size=chunk_size, **named, **rest)
        if tracks(hidden_states):
            keep_freed_memory()
        return chunk_scan(hidden_states, dt, **named)

    return mamba2_chunk_scan


def _conv(stock: Callable) -> Callable:
    def causal_conv1d_fn(hidden_states, weight, bias=None, activation=None, **rest):
        if not _convolves(hidden_states, activation) or 0 in hidden_states.shape or _apart(rest):
            return stock(hidden_states, weight, bias, activation, **rest)
        return causal_conv1d(hidden_states, weight, bias, activation)

    return causal_conv1d_fn


def _fused(stock: Callable) -> Callable:
    """A mixer of one call for training, for GPUs: stock's own for a CPU only says that it is slow and returns None."""

    def fused(projected: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        if not serves(projected) or _apart(named):
            return stock(projected, *arguments, **named)
        return None  # the mixer goes on to the functions that the kernels stand in for

    return fused


def _conv_update(stock: Callable) -> Callable:
    def causal_conv1d_update(hidden_states, conv_state, weight, bias=None, activation=None):
        if (
            not _convolves(hidden_states, activation)
            or hidden_states.shape[-1] != 1
            or tracks(hidden_states, weight, bias)
        ):
            return stock(hidden_states, conv_state, weight, bias, activation)
        return decode.causal_conv1d_update(hidden_states[..., 0], conv_state, weight, bias, activation)[..., None]

    return causal_conv1d_update


def _state_update(stock: Callable) -> Callable:
    def mamba_selective_state_update(
        state, hidden_states, dt, A, B, C, D=None, dt_bias=None, dt_softplus=False, z=None, **rest
    ):
        tensors = {"A": A, "B": B, "C": C, "D": D, "z": z}
        if not serves(hidden_states) or tracks(state, hidden_states, dt, *tensors.values()):
            return stock(state, hidden_states, dt, **tensors, dt_bias=dt_bias, dt_softplus=dt_softplus, **rest)
        return decode.selective_state_update(
            state, hidden_states, dt, **tensors, dt_bias=dt_bias, dt_softplus=dt_softplus
        )

    return mamba_selective_state_update


def _chunk_state_update(stock: Callable) -> Callable:
    def mamba2_selective_state_update(
        state, hidden_states, dt, A, B, C, D=None, dt_bias=None, dt_softplus=False, z=None, **rest
    ):
        tensors = {"A": A, "B": B, "C": C, "D": D}
        if not serves(hidden_states) or z is not None or tracks(state, hidden_states, dt, *tensors.values()):
            return stock(state, hidden_states, dt, **tensors, dt_bias=dt_bias, dt_softplus=dt_softplus, z=z, **rest)
        # The model repeats what belongs to a head over its channels and states: the first of each says it all.
        D, dt_bias = (None if x is None else x[:, 0] for x in (D, dt_bias))
        tensors = {"A": A[:, 0, 0], "B": B, "C": C, "D": D}
        return decode.chunk_state_update(
            state, hidden_states, dt[..., 0], **tensors, dt_bias=dt_bias, dt_softplus=dt_softplus
        )

    return mamba2_selective_state_update


_CONV = {"causal_conv1d_fn": _conv, "causal_conv1d_update": _conv_update}
_SCANS: dict[str, dict[str, Callable]] = {
    "selective": {
        "mamba_selective_scan": _scan,
        "mamba_selective_state_update": _state_update,
        "mamba_inner_fn": _fused,
    },
    "chunk": {
        "mamba2_chunk_scan": _chunk_scan,
        "mamba2_selective_state_update": _chunk_state_update,
        "mamba2_split_conv1d_scan_combined": _fused,
    },
}


_CONTINUE: dict[str, Callable] = {
    "selective": functools.partial(continue_cache, carries_on=False),
    "chunk": functools.partial(continue_cache, carries_on=True),
}


def _exchanged_for(kernels: Kernels) -> dict[str, Callable]:
    """Functions and methods of a modeling module -> what makes their stand-ins from them."""
    methods: dict[str, Callable] = {
        f"{kernels.norm}.forward": norm_in_place,
        f"{kernels.language_model}.forward": _CONTINUE[kernels.scan],
        f"{kernels.language_model}.prepare_inputs_for_generation": prepare_token,
    }
    if kernels.mixer is not None:
        methods[f"{kernels.mixer}.forward"] = steps_by_time
    return _CONV | _SCANS[kernels.scan] | methods


EXCHANGED: dict[str, dict[str, Callable]] = {
    block.kernels.modeling: _exchanged_for(block.kernels)
    for architecture in ARCHITECTURES.values()
    for block in architecture.kinds.values()
    if block.kernels is not None
}

# How the functions must look for the exchange to be right; another version of transformers may change them. What takes
# all arguments as they come, and gives them on, may look otherwise or be gone.
SIGNATURES: dict[Callable, str] = {
    _conv: "hidden_states weight bias activation kwargs",
    _conv_update: "hidden_states conv_state weight bias activation",
    _scan: "hidden_states dt A B C D z delta_bias delta_softplus return_last_state use_mambapy "
    "use_associative_scan kwargs",
    _state_update: "state hidden_states dt A B C D dt_bias dt_softplus z kwargs",
    _chunk_scan: "hidden_states dt A B C chunk_size D dt_bias initial_states dt_softplus dt_limit "
    "return_final_states kwargs",
    _chunk_state_update: "state hidden_states dt A B C D dt_bias dt_softplus z kwargs",
    steps_by_time: "self hidden_states cache_params attention_mask kwargs",
    norm_in_place: "self hidden_states",
    _CONTINUE["selective"]: "self input_ids attention_mask inputs_embeds cache_params labels output_hidden_states "
    "return_dict use_cache logits_to_keep kwargs",
    _CONTINUE["chunk"]: "self input_ids inputs_embeds cache_params labels output_hidden_states return_dict use_cache "
    "attention_mask logits_to_keep kwargs",
    prepare_token: "self input_ids inputs_embeds use_cache cache_params attention_mask is_first_iteration kwargs",
}

_users: dict[str, int] = {}
_stock: dict[str, dict[str, Callable]] = {}


def _place(module: ModuleType, name: str) -> tuple[object, str]:
    """Where the function `name` or the method `Class.name` stands; the module itself where that class is gone."""
    owner, _, attribute = name.rpartition(".")
    return (getattr(module, owner, module) if owner else module), attribute


def _differences(module: ModuleType, exchanged: dict[str, Callable]) -> list[str]:
    """What this version of transformers does otherwise than the kernels expect; empty when all is well."""
    found = []
    for name, make in exchanged.items():
        if make not in SIGNATURES:
            continue
        owner, attribute = _place(module, name)
        function = vars(owner).get(attribute)
        if not callable(function):
            found.append(f"{name} is gone")
            continue
        have = list(inspect.signature(function).parameters)
        if have != SIGNATURES[make].split():
            found.append(f"{name} takes ({', '.join(have)}) instead of ({', '.join(SIGNATURES[make].split())})")
    return found


def put_in(path: str) -> None:
    module = sys.modules[path]
    if _users.get(path, 0) == 0:
        _stock[path] = {}
        for name, make in EXCHANGED[path].items():
            owner, attribute = _place(module, name)
            if attribute in vars(owner) or make in SIGNATURES:
                _stock[path][name] = vars(owner)[attribute]
                setattr(owner, attribute, make(_stock[path][name]))
    _users[path] = _users.get(path, 0) + 1


def _take_one_out(path: str) -> None:
    _users[path] -= 1
    if _users[path] == 0:
        for name, function in _stock.pop(path).items():
            setattr(*_place(sys.modules[path], name), function)


class NativeHandle:
    """What `use_native` put in. `close()`, or the end of a `with` block, takes it out again.

    Attributes:
        active: whether anything is in use.
    """

    def __init__(self, model: torch.nn.Module, paths: list[str]) -> None:
        self._paths = paths
        self._hooks = watch_steps(model) if paths else []
        for path in paths:
            put_in(path)

    @property
    def active(self) -> bool:
        return bool(self._paths)

    def close(self) -> None:
        """Puts stock's functions back, once the last handle on the same kind of model is closed."""
        while self._hooks:
            self._hooks.pop().remove()
        take_out(self._paths)
        self._paths = []

    def __enter__(self) -> "NativeHandle":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def plugged(model: torch.nn.Module) -> bool:
    """Whether the kernels, or their twins, stand in for stock's functions in this kind of model."""
    return any(_users.get(type(module).__module__, 0) for module in model.modules())


def use_native(model: torch.nn.Module) -> NativeHandle:
    """Runs the scans, convolutions, norms and tokens after a cache of a Mamba model on the kernels, or on their twins.

    Modules are called as before, so hooks on them fire as before; single tokens without gradients go through the whole
    model in one native step where no hook waits for a module. Nothing happens when `HF_MAMBA_PRUNE_NATIVE=0`, or when
    no part of the model is Mamba, Falcon-Mamba or Mamba-2. Works in training, under autocast, with caches and masks;
    tensors on other devices go to the function they went to before. While other processes keep the cores busy, this
    model's decoding steps take half of torch's threads. Where kernels are missing, the first call on a CPU logs why.

    Args:
        model: the model, wrapped or not. The exchange holds for all models of its kind in this process.

    Returns:
        The handle that takes it back; usable as a context manager.

    Warns:
        UserWarning: this version of transformers calls its functions in another way; stock's stay in use.
    """
    return NativeHandle(model, fitting(model))


def take_out(paths: list[str]) -> None:
    for path in paths:
        _take_one_out(path)
    if not any(_users.values()):
        give_freed_memory_back()


def fitting(model: torch.nn.Module) -> list[str]:
    """The modeling modules of a model whose functions can be exchanged; warns of those that look otherwise."""
    if not enabled():
        return []
    paths = sorted({type(module).__module__ for module in model.modules()} & EXCHANGED.keys())
    if paths and any(weight.device.type == "cpu" for weight in model.parameters()):
        tell_if_missing()
    fitting = []
    for path in paths:
        different = [] if _users.get(path, 0) else _differences(sys.modules[path], EXCHANGED[path])
        if different:
            version = sys.modules["transformers"].__version__
            warnings.warn(
                f"transformers {version} differs from what the native kernels expect in {path}: "
                f"{'; '.join(different)}. The stock functions, slow on a CPU, stay in use; install a version that "
                "hf-mamba-prune was tested with.",
                stacklevel=3,
            )
        else:
            fitting.append(path)
    return fitting
