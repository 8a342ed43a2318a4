"""Packed Mamba models: stock transformers models whose weights stay packed and whose tokens run natively on a CPU."""

from __future__ import annotations

import logging
import weakref
from pathlib import Path
from typing import ClassVar

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    FalconMambaForCausalLM,
    GenerationConfig,
    Mamba2ForCausalLM,
    MambaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.models.mamba.modeling_mamba import MambaCausalLMOutput

from hf_mamba_prune.native.library import active_instruction_set, available, tell_if_missing
from hf_mamba_prune.native.packed import PackedMatrix, settle
from hf_mamba_prune.native.plug import use_native
from hf_mamba_prune.packed.config import (
    PACKED_CONFIGS,
    PackedFalconMambaConfig,
    PackedMamba2Config,
    PackedMambaConfig,
    to_dense,
)
from hf_mamba_prune.packed.engine import TokenEngine
from hf_mamba_prune.packed.files import PackedFiles, read_packed, write_packed
from hf_mamba_prune.packed.modules import PackedEmbedding, PackedLinear
from hf_mamba_prune.packed.tensors import DTYPES, PackedTensor, unpack_tensor

_log = logging.getLogger(__name__)
_TIED = {"lm_head.weight": "backbone.embeddings.weight"}
_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


class PackedModel:
    """What packed models add to their stock class: loading, saving, and the one-token step.

    Prefill is stock's own code: its projections unpack their weights tile by tile. A single token after a prefill
    runs natively as a whole. For inference on a CPU; `unpack=True` gives an ordinary model for everything else.
    """

    dense_class: ClassVar[type[PreTrainedModel]]
    _engine: TokenEngine | None = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *_,
        config: PreTrainedConfig | None = None,
        unpack: bool | None = None,
        subfolder: str = "",
        dtype: str | torch.dtype = "auto",
        device_map: str | dict | None = None,
        **options,
    ) -> PreTrainedModel:
        """Load a packed checkpoint.

        Args:
            pretrained_model_name_or_path: folder or Hub id.
            config: read from the checkpoint by default.
            unpack: True gives the ordinary model, its weights bit for bit what was packed (int8: rounded), trainable.
                False keeps them packed. By default they stay packed where the native kernels run them faster.
            subfolder: of the folder or repository, `packed` where the dense checkpoint is at its root.
            dtype, device_map: of the ordinary model. A `device_map` other than the CPU unpacks.
            options: those of `from_pretrained` that say where a Hub repository is found.

        Raises:
            ValueError: the checkpoint is damaged, incomplete or does not fit its config.
            RuntimeError: packed weights were asked for on another device.
        """
        hub = {name: value for name, value in options.items() if name in _HUB_OPTIONS and value is not None}
        folder = _folder(str(pretrained_model_name_or_path), subfolder, hub)
        config = config or AutoConfig.from_pretrained(folder)
        files = read_packed(folder)
        if not files.tied.items() <= _TIED.items():
            raise ValueError(f"the index in {folder} ties {files.tied}; a packed model ties at most {_TIED}")
        elsewhere = device_map not in (None, "cpu", {"": "cpu"}) and (
            device_map != "auto" or torch.cuda.is_available()
        )
        if unpack is False and elsewhere:
            raise RuntimeError(f"packed weights run on a CPU, device_map is {device_map!r}: leave unpack=False out")
        if unpack is None:
            unpack = elsewhere or not _worth_keeping_packed()
        model = cls._unpacked(files, config, dtype, device_map) if unpack else cls._packed(files, config)
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        model.name_or_path = str(pretrained_model_name_or_path)
        found = {kind: [] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")}
        return (model, found) if options.get("output_loading_info") else model

    @classmethod
    def _unpacked(cls, files: PackedFiles, config: PreTrainedConfig, dtype, device_map) -> PreTrainedModel:
        state = {name: unpack_tensor(x) if isinstance(x, PackedTensor) else x for name, x in files}
        state |= {name: state[same] for name, same in files.tied.items()}
        _check_names(cls, config, state)
        return cls.dense_class.from_pretrained(
            None, config=to_dense(config), state_dict=state, dtype=dtype, device_map=device_map
        )

    @classmethod
    def _packed(cls, files: PackedFiles, config: PreTrainedConfig) -> PackedModel:
        model = _skeleton(cls, config)
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        _check_names(cls, config, dict.fromkeys([*files.tensors, *files.tied]))
        for name, weight in files:
            if tuple(weight.shape) != wanted[name]:
                raise ValueError(f"{name} is {tuple(weight.shape)} in {files.folder}, its config says {wanted[name]}")
            _put(model, name, weight)
        for name, same in files.tied.items():
            owner, _, _ = name.rpartition(".")
            model.set_submodule(owner, PackedLinear(model.get_submodule(same.rpartition(".")[0]).matrix))
        for name, buffer in model.named_buffers():
            if buffer.is_meta:  # Falcon-Mamba's norms without weights keep ones for kernels of another device
                model.get_submodule(name.rpartition(".")[0]).weight = torch.ones(buffer.shape)
        model.packed_dtype = next(iter(files.tensors.values()))["dtype"]
        model._make_ready()
        return model.eval()

    def _make_ready(self) -> None:
        """Once the weights are there, and will not move any more."""
        packed = (module for module in self.modules() if isinstance(module, PackedLinear | PackedEmbedding))
        settle({id(module.matrix): module.matrix for module in packed}.values())
        handle = use_native(self)
        weakref.finalize(self, handle.close)
        _keep_freed_memory()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_engine": None}  # it points to these weights; a copy makes one of its own

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._make_ready()

    def save_pretrained(self, save_directory: str | Path, **_) -> None:
        """Write the packed checkpoint again.

        Args:
            save_directory: made where it does not exist.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        tied = _TIED if self._is_tied() else {}
        dtype = DTYPES[self.packed_dtype]
        weights = [(name, tensor.to(dtype)) for name, tensor in self.named_parameters()]
        for name, module in self.named_modules():
            if isinstance(module, PackedLinear | PackedEmbedding) and f"{name}.weight" not in tied:
                weights.append((f"{name}.weight", _tensor_of(module.matrix, self.packed_dtype)))
        write_packed(folder, weights, tied)
        self.config.save_pretrained(folder)
        self.generation_config.save_pretrained(folder)

    def _is_tied(self) -> bool:
        return self.lm_head.matrix is self.get_input_embeddings().matrix

    def _apply(self, fn, recurse=True):
        moved = fn(torch.zeros(1))
        if moved.device.type != "cpu" or moved.dtype != torch.float32:
            raise RuntimeError(
                f"a packed model runs on the CPU with float32 activations, not as {moved.dtype} on {moved.device}: "
                "load it with unpack=True for that"
            )
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        cache_params: Cache | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **options,
    ) -> tuple | MambaCausalLMOutput:
        """As in the stock model, without gradients. Tokens after a cache go through the native step one by one.

        Raises:
            ValueError: padding among several tokens after a cache; stock too is right there with Mamba-2 only.
        """
        stepwise = input_ids is not None and labels is None and not output_hidden_states
        stepwise = stepwise and self._continues(cache_params)
        if stepwise and _padded(attention_mask, input_ids.shape[1]):
            if self.config.packed_type != "mamba2":
                raise ValueError("tokens after a cache are padded: give those of each length to a call of their own")
            stepwise = False
        if stepwise:
            steps = [self.engine.step(tokens, cache_params) for tokens in input_ids.unbind(1)]
            logits = torch.stack(steps, dim=1) if len(steps) > 1 else steps[0][:, None]
            logits, loss, hidden = logits[:, _kept(logits_to_keep)], None, None
        else:
            states = self.backbone(
                input_ids,
                inputs_embeds=inputs_embeds,
                cache_params=cache_params,
                use_cache=use_cache,
                output_hidden_states=output_hidden_states,
                attention_mask=attention_mask,
                return_dict=True,
            )
            cache_params, hidden = states.cache_params, states.hidden_states
            logits = self.lm_head(states.last_hidden_state[:, _kept(logits_to_keep)]).float()
            loss = None
            if labels is not None:
                loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **options)
        output = MambaCausalLMOutput(loss=loss, logits=logits, cache_params=cache_params, hidden_states=hidden)
        return output if return_dict in (None, True) else output.to_tuple()

    def prepare_inputs_for_generation(self, input_ids, *args, cache_params=None, **kwargs) -> dict:
        """As in the stock model; what follows a prefill is one token and the cache, which stock takes long to say."""
        if kwargs.get("next_sequence_length") == 1 and self._continues(cache_params):
            return {"input_ids": input_ids[:, -1:], "cache_params": cache_params, "use_cache": True}
        return super().prepare_inputs_for_generation(input_ids, *args, cache_params=cache_params, **kwargs)

    @property
    def engine(self) -> TokenEngine:
        """The native one-token step; made at its first use, on the weights as they are then."""
        if self._engine is None:
            self._engine = TokenEngine(self)
        return self._engine

    def _continues(self, cache: Cache | None) -> bool:
        ends = [] if cache is None else cache.layers[:1] + cache.layers[-1:]  # a prefill goes through all or none
        return (
            cache is not None
            and available()
            and self.config.hidden_act in ("silu", "swish")  # which is all that the step knows
            and all(layer.is_recurrent_states_initialized[0] and not layer.record_past for layer in ends)
        )


def _padded(attention_mask: torch.Tensor | None, length: int) -> bool:
    """Whether any of the last tokens, several, is hidden."""
    return attention_mask is not None and length > 1 and not bool(attention_mask[:, -length:].all())


def _kept(logits_to_keep: int | torch.Tensor) -> slice | torch.Tensor:
    return slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep


def _worth_keeping_packed() -> bool:
    """Measured: the portable kernels, and the twins, are slower than torch's products of dense weights."""
    if available() and active_instruction_set() not in ("portable", "neon"):
        return True
    tell_if_missing()
    _log.warning(
        "packed weights are unpacked here: without AVX2 or AVX-512 kernels they would run slower than dense ones "
        "(unpack=False keeps them packed)"
    )
    return False


def _folder(source: str, subfolder: str, hub: dict) -> Path:
    if Path(source).is_dir():
        return Path(source) / subfolder
    patterns = [f"{subfolder}/*"] if subfolder else ["packed*", "*.json"]
    return Path(snapshot_download(source, allow_patterns=patterns, **hub)) / subfolder


def _skeleton(cls: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return cls(config)


def _keep_freed_memory() -> None:
    """Let glibc keep what activations free: it gives blocks larger than any freed before back to the system.

    Taking them again would be a third of a prefill's time. A block of 30 MiB is freed here that was never written.
    """
    torch.empty(30 << 20, dtype=torch.uint8)


def _check_names(cls: type[PreTrainedModel], config: PreTrainedConfig, found: dict) -> None:
    wanted = _skeleton(cls, config).state_dict().keys()
    for kind, names in (("missing", wanted - found.keys()), ("unexpected", found.keys() - wanted)):
        if names:
            raise ValueError(
                f"the packed weights do not fit their config.json: {len(names)} {kind}, such as {sorted(names)[0]}"
            )


def _put(model: nn.Module, name: str, weight: PackedTensor | torch.Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if isinstance(weight, torch.Tensor):
        setattr(module, leaf, nn.Parameter(weight.to(torch.float32, copy=True), requires_grad=False))
        return
    matrix = PackedMatrix(weight.shape, weight.mask, weight.values, weight.scales)
    if isinstance(module, nn.Embedding):
        model.set_submodule(owner, PackedEmbedding(matrix))
        return
    packed = PackedLinear(matrix)
    packed.bias = module.bias
    model.set_submodule(owner, packed)


def _tensor_of(matrix: PackedMatrix, dtype: str) -> PackedTensor:
    coding = "int8" if matrix.dtype == torch.int8 else dtype
    parts = {"mask": matrix.mask, "values": matrix.values, "scales": matrix.scales}
    return PackedTensor(shape=matrix.shape, dtype=dtype, coding=coding, **parts)


class PackedMambaForCausalLM(PackedModel, MambaForCausalLM):
    """A packed Mamba."""

    config_class = PackedMambaConfig
    dense_class = MambaForCausalLM


class PackedMamba2ForCausalLM(PackedModel, Mamba2ForCausalLM):
    """A packed Mamba-2."""

    config_class = PackedMamba2Config
    dense_class = Mamba2ForCausalLM


class PackedFalconMambaForCausalLM(PackedModel, FalconMambaForCausalLM):
    """A packed Falcon-Mamba."""

    config_class = PackedFalconMambaConfig
    dense_class = FalconMambaForCausalLM


PACKED_MODELS: dict[str, type[PackedModel]] = {
    model.config_class.packed_type: model
    for model in (PackedMambaForCausalLM, PackedMamba2ForCausalLM, PackedFalconMambaForCausalLM)
}


def register() -> None:
    """Make the packed model types known to transformers' auto classes."""
    for name, config in PACKED_CONFIGS.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForCausalLM.register(config, PACKED_MODELS[name], exist_ok=True)
