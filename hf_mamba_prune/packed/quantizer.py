"""The packed form where transformers looks for it: loader, saver and trainer ask this for what they need."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.quantizers.base import HfQuantizer

from hf_mamba_prune.codings.blobs import from_blob
from hf_mamba_prune.codings.storage import in_memory, length_in_memory, to_stored
from hf_mamba_prune.codings.tensors import DTYPES, unpack_tensor
from hf_mamba_prune.native.lasting import keep_native
from hf_mamba_prune.native.library import active_instruction_set, available, tell_if_missing
from hf_mamba_prune.native.memory import give_back_what_loading_freed
from hf_mamba_prune.native.packed import settle
from hf_mamba_prune.packed.config import METHOD, VERSION, PackedConfig
from hf_mamba_prune.packed.index import INDEX_NAME, check_files, make_index, sha256_of
from hf_mamba_prune.packed.modules import PackedEmbedding, PackedWeight, packed_like, packed_modules
from hf_mamba_prune.packed.packing import pack_into

_log = logging.getLogger(__name__)
_DENSE = "call dequantize() first, or load it with quantization_config=PackedConfig(unpack=True)"


def worth_keeping_packed() -> bool:
    """Measured: the portable kernels, and the twins, are slower than torch's products of dense weights."""
    return available() and active_instruction_set() not in ("portable", "neon")


def _elsewhere(device_map: Any) -> bool:
    """Whether a `device_map` of `from_pretrained` puts anything elsewhere than on the CPU."""
    if isinstance(device_map, str):  # one of the words for as many accelerators as there are
        return torch.accelerator.is_available()
    return device_map is not None and any(str(place).split(":")[0] != "cpu" for place in device_map.values())


class PackedQuantizer(HfQuantizer):
    """Loads, saves, unpacks and trains on packed weights.

    The loader finds each blob under its weight's own name, in a module that waits for as many bytes.
    """

    quantization_config: PackedConfig
    dtype: torch.dtype

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        """Decide whether weights stay packed.

        Raises:
            RuntimeError: they shall, on another device.
            ValueError: a dense checkpoint shall be unpacked.
        """
        config, elsewhere = self.quantization_config, _elsewhere(device_map)
        if elsewhere and (config.unpack is False or not self.pre_quantized):
            raise RuntimeError(f"packed weights run on a CPU, device_map is {device_map!r}: leave unpack=False out")
        if not self.pre_quantized and config.unpack:
            raise ValueError(
                "unpack=True is for packed checkpoints, and this one is dense: leave quantization_config out"
            )
        if config.unpack is None:
            config.unpack = self.pre_quantized and (elsewhere or not worth_keeping_packed())
            if config.unpack and not elsewhere:
                tell_if_missing()
                _log.warning(
                    "packed weights are unpacked here: without AVX2 or AVX-512 kernels they would run slower than "
                    "dense ones (unpack=False keeps them packed)"
                )

    def update_attn_implementation(self, config: Any) -> Any:
        """The one place where a quantizer sees the config before its dtype is read: it is that of the weights."""
        if self.pre_quantized and self.quantization_config.dtype is not None:
            config.dtype = self.quantization_config.dtype
        return config

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Of what is not packed: float32, unless all will be dense.

        Raises:
            ValueError: another dtype than float32 and that of the weights was asked for.
        """
        config = self.quantization_config
        self.dtype = dtype
        if not self.pre_quantized:
            config.dtype = str(dtype).removeprefix("torch.")
            if config.dtype not in DTYPES:
                raise ValueError(f"weights in {dtype} cannot be packed: expected one of {', '.join(DTYPES)}")
        if not self.pre_quantized or config.unpack:
            return dtype
        if dtype not in (torch.float32, DTYPES.get(str(config.dtype))):
            raise ValueError(
                f"dtype is {dtype}, and the packed weights are {config.dtype} with float32 activations: leave dtype "
                "out, or unpack them with quantization_config=PackedConfig(unpack=True)"
            )
        return torch.float32

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **_: Any
    ) -> Any:
        """Check the files, and make room for the blobs.

        Raises:
            ValueError: there are no safetensors files, they are damaged, or they do not fit the config.
        """
        if not self.pre_quantized:
            return model
        if not checkpoint_files or not all(path.endswith(".safetensors") for path in checkpoint_files):
            raise ValueError("packed weights are read from safetensors files, whose checksums are verified")
        ignored = model._keys_to_ignore_on_load_unexpected or ()
        model._keys_to_ignore_on_load_unexpected = {*ignored, f"^{INDEX_NAME}$"}
        files = check_files(checkpoint_files, model.config, self.quantization_config)
        there = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        held = files.shapes | {name: head.shape for name, head in files.blobs.items()}
        found: set[str] = set()
        for name, shape in held.items():
            own = _own_name(name, model.base_model_prefix, there)
            found |= {own} if own is not None else set()
            if own is not None and there[own] != shape:
                raise ValueError(f"{name} is {shape} in the checkpoint, its config.json says {there[own]}")
            if own is not None and name in files.blobs and not self.quantization_config.unpack:
                _make_room(model, own, files.lengths[name])
        for tied, source in model.all_tied_weights_keys.items():
            owner = model.get_submodule(source.rpartition(".")[0])
            if isinstance(owner, PackedEmbedding):
                place = tied.rpartition(".")[0]
                model.set_submodule(place, packed_like(model.get_submodule(place), owner.weight))
        _spare_first_values(model, found)
        return model

    def get_weight_conversions(self) -> list:
        """What turns blobs into dense weights while they are loaded, where they are to be."""
        if not (self.pre_quantized and self.quantization_config.unpack):
            return []
        from transformers.core_model_loading import WeightConverter

        from hf_mamba_prune.packed.unpacking import Unpack

        return [WeightConverter([r"\.weight$"], [".weight"], [Unpack(self)])]

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        if self.quantization_config.unpack:
            model._weight_conversions = None  # which cannot be turned round, and need not be
            return model
        del model.config._is_quantized  # for which Falcon-Mamba would add its steps' bias and take it off again
        if not self.pre_quantized:
            pack_into(model, model, self.dtype, self.quantization_config.values)
            model.config.dtype = torch.float32
            return run_natively(model)
        self.quantization_config.version = VERSION
        _settle_weights(model)
        give_back_what_loading_freed()
        return run_natively(model)

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, torch.Tensor] | None, dict[str, str]]:
        """What is saved: packed weights as files hold them, tied ones once, others in their dtype; and its index."""
        if getattr(model, "_hf_peft_config_loaded", False):  # transformers saves the adapters alone
            return None, {}
        dtype = DTYPES[str(self.quantization_config.dtype)]
        state = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in model.state_dict().items()
        }
        for tied, source in model.all_tied_weights_keys.items():
            if state[tied].data_ptr() == state[source].data_ptr():
                del state[tied]
        state = {name: to_stored(tensor) if tensor.dtype == torch.uint8 else tensor for name, tensor in state.items()}
        index = make_index(model.config, str(self.quantization_config.dtype), state)
        self.quantization_config.sha256 = sha256_of(index)
        return state | {INDEX_NAME: index}, {}

    def dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        """The dense model, bit for bit what was packed and in its dtype, unless another is given."""
        return super().dequantize(model, dtype or DTYPES[str(self.quantization_config.dtype)])

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        dense: dict[int, nn.Parameter] = {}
        for name, module in packed_modules(model).items():
            weight = module.weight
            if id(weight) not in dense:
                dense[id(weight)] = nn.Parameter(unpack_tensor(from_blob(weight.detach())))
            rows, columns = weight.size()
            plain: nn.Linear | nn.Embedding
            if isinstance(module, PackedEmbedding):
                plain = nn.Embedding(rows, columns, device="meta")
            else:
                plain = nn.Linear(columns, rows, bias=False, device="meta")
                plain.bias = module.bias
            plain.weight = dense[id(weight)]
            model.set_submodule(name, plain)
        model.config.dtype = dtype
        model.requires_grad_(True)
        del model.native_kernels
        return model.to(dtype)

    def is_serializable(self) -> bool:
        """The blobs are saved, bit for bit."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters are, on a base that stays as it is."""
        return True


@contextmanager
def _named(module: str) -> Iterator[None]:
    """What is wrong with a weight is told with its name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{module}.weight: {error}") from error


def _own_name(name: str, prefix: str, there: dict[str, tuple[int, ...]]) -> str | None:
    """What a model calls a tensor of a checkpoint, which may be that of its base model; None: it has none."""
    names = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
    return next((own for own in names if own in there), None)


def _spare_first_values(model: Any, found: set[str]) -> None:
    """Tell transformers what is read whole from the files: it would draw values for it, and drop them."""
    for name, module in model.named_modules():
        own = (f"{name}.{leaf}".lstrip(".") for leaf, _ in module.named_parameters(remove_duplicate=False))
        if found.issuperset(own):
            module._is_hf_initialized = True


def _make_room(model: Any, name: str, length: int) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if leaf != "weight" or not isinstance(module, nn.Linear | nn.Embedding):
        raise ValueError(f"{name} is packed, and in this model it is no weight of a linear map or an embedding")
    room = torch.empty(length, dtype=torch.uint8, device="meta")
    model.set_submodule(owner, packed_like(module, nn.Parameter(room, requires_grad=False)))


def _settle_weights(model: Any) -> None:
    """Exchange what was read from files for the weights that modules compute on; one at a time is in memory twice.

    Raises:
        ValueError: one is damaged.
    """
    holders: dict[int, dict[str, Any]] = {}
    for name, module in packed_modules(model).items():
        holders.setdefault(id(module.weight), {})[name] = module
    lengths = []
    for modules in holders.values():
        (name, module), *_ = modules.items()
        with _named(name):
            lengths.append(length_in_memory(module.weight.data))

    def blobs() -> Iterator[torch.Tensor]:
        nothing = nn.Parameter(torch.empty(0, dtype=torch.uint8), requires_grad=False)
        for modules in holders.values():
            (name, module), *_ = modules.items()
            data = module.weight.data
            for module in modules.values():
                module.weight = nothing
            with _named(name):
                yield in_memory(data)

    for modules, blob in zip(holders.values(), settle(lengths, blobs()), strict=True):
        with _named(next(iter(modules))):
            weight = PackedWeight(blob)
        for module in modules.values():
            module.weight = weight


def run_natively(model: Any) -> Any:
    """Freeze a model whose weights are packed, and put the kernels under it for as long as it lives."""
    model.requires_grad_(False)
    keep_native(model)
    return model


def become_packed(model: Any, values: str, dtype: str) -> Any:
    """Make a model with packed weights what the loader would have made of it."""
    config = PackedConfig(values=values, dtype=dtype)
    model.hf_quantizer = PackedQuantizer(config)
    model.config.quantization_config, model.is_quantized, model.quantization_method = config, True, METHOD
    return run_natively(model.eval())


def register(registries: Any) -> None:
    """Let transformers' loader find the method.

    Args:
        registries: transformers' module of auto quantizers.
    """
    if METHOD not in registries.AUTO_QUANTIZER_MAPPING:
        registries.register_quantization_config(METHOD)(PackedConfig)
        registries.register_quantizer(METHOD)(PackedQuantizer)
        registries.LOADING_ATTRIBUTES_CONFIG_TYPES += (PackedConfig,)
