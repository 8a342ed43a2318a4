"""One token through a whole packed model in native code: nothing of a step is left to Python but its start."""

from __future__ import annotations

import threading
from typing import Any

import torch
from transformers.cache_utils import Cache

from hf_mamba_prune.models.architectures import ARCHITECTURES
from hf_mamba_prune.native.library import MAX_BATCH, active_instruction_set, buffer, kernels


class _OfThread(threading.local):
    """What a step writes into: a server's threads may run one model at the same time, each with a cache of its own."""

    def __init__(self) -> None:
        self.memory: dict[int, tuple[torch.Tensor, Any]] = {}  # activations by batch
        self.checked: list[torch.Tensor] = []  # windows and states of the cache of the last step
        self.addresses: list[int] = []  # of their memory
        self.cache: Any = None  # what the native side knows of them


class TokenEngine:
    """Runs single tokens of a packed model; holds on to the tensors that the native side points to.

    Args:
        model: a packed causal language model whose weights will not move any more.
    """

    def __init__(self, model: Any) -> None:
        config: Any = model.config
        backbone: Any = model.base_model
        self._mamba2 = config.packed_type == "mamba2"
        sizes = self._mamba2_sizes(config) if self._mamba2 else self._mamba1_sizes(config)
        channels = sizes["d_inner"] + (2 * sizes["groups"] * config.state_size if self._mamba2 else 0)
        self.vocabulary: int = model.lm_head.out_features
        self._layers: int = config.num_hidden_layers
        self._window, self._state = channels * config.conv_kernel, sizes["d_inner"] * config.state_size
        self._alive: list[torch.Tensor] = []
        self._model = kernels().PackedModel(
            d_model=config.hidden_size,
            states=config.state_size,
            conv_width=config.conv_kernel,
            norm_eps=config.layer_norm_epsilon,
            embeddings=backbone.embeddings.matrix.handle,
            head=model.lm_head.matrix.handle,
            final_norm=self._floats(backbone.norm_f.weight),
            **sizes,
        )
        for block in getattr(backbone, ARCHITECTURES[config.packed_type].layers):
            self._add(block.norm, block.mixer)
        self._own = _OfThread()

    @staticmethod
    def _mamba1_sizes(config: Any) -> dict[str, Any]:
        mixer_eps = config.mixer_rms_eps if config.packed_type == "falcon_mamba" else 0.0
        return {"d_inner": config.intermediate_size, "rank": int(config.time_step_rank), "mixer_eps": mixer_eps}

    @staticmethod
    def _mamba2_sizes(config: Any) -> dict[str, Any]:
        low, high = config.time_step_limit
        return {
            "d_inner": int(config.expand * config.hidden_size),
            "heads": config.num_heads,
            "groups": config.n_groups,
            "step_min": low,
            "step_max": min(high, torch.finfo(torch.float32).max),
        }

    def _floats(self, tensor: torch.Tensor | None) -> Any:
        if tensor is None:
            return None
        self._alive.append(tensor.detach().float().contiguous())
        return buffer(self._alive[-1])

    def _add(self, norm: Any, mixer: Any) -> None:
        matrices = {"in_proj": mixer.in_proj, "out_proj": mixer.out_proj}
        vectors = {
            "norm": norm.weight,
            "in_bias": mixer.in_proj.bias,
            "conv_weight": mixer.conv1d.weight.squeeze(1),
            "conv_bias": mixer.conv1d.bias,
            "A": -torch.exp(mixer.A_log.float()),
            "D": mixer.D,
            "out_bias": mixer.out_proj.bias,
        }
        if self._mamba2:
            vectors |= {"dt_bias": mixer.dt_bias, "gate_norm": mixer.norm.weight}
        else:
            matrices |= {"x_proj": mixer.x_proj, "dt_proj": mixer.dt_proj}
            vectors["dt_bias"] = mixer.dt_proj.bias
        self._model.add_layer(
            **{name: module.matrix.handle for name, module in matrices.items()},
            **{name: self._floats(tensor) for name, tensor in vectors.items()},
        )

    def step(self, tokens: torch.Tensor, cache: Cache) -> torch.Tensor:
        """The next logits; the cache moves on by one token.

        Args:
            tokens: integers (b,), each in [0, vocabulary).
            cache: of the tokens before, as the packed model's own prefill left it.

        Returns:
            (b, vocabulary) float32.

        Raises:
            IndexError: a token that there is not.
            ValueError: the cache is of another model or another batch.
        """
        ids = tokens.tolist()
        if not (0 <= min(ids) and max(ids) < self.vocabulary):
            raise IndexError(f"token ids are {min(ids)} to {max(ids)} of {self.vocabulary}")
        tokens = tokens.long().contiguous()
        logits = torch.empty(len(tokens), self.vocabulary)
        held = self._held(cache, len(tokens))
        for first in range(0, len(tokens), MAX_BATCH):
            part = slice(first, first + MAX_BATCH)
            self._model.step(
                isa=active_instruction_set(),
                threads=torch.get_num_threads(),
                tokens=buffer(tokens[part]),
                cache=held,
                first=first,
                logits=buffer(logits[part]),
                memory=self._memory_for(len(tokens[part])),
            )
        return logits

    def _memory_for(self, batch: int) -> Any:
        memory = self._own.memory
        if batch not in memory:
            own = torch.empty(self._model.memory(batch=batch))
            memory[batch] = own, buffer(own)
        return memory[batch][1]

    def _held(self, cache: Cache, batch: int) -> Any:
        """The windows and states of all layers; made float32 and contiguous in the cache where they are not."""
        if len(cache.layers) != self._layers:
            raise ValueError(f"the cache has {len(cache.layers)} layers, the model {self._layers}")
        layers: list[Any] = cache.layers
        conv = [layer.conv_states for layer in layers]
        states = [layer.recurrent_states for layer in layers]
        held: list[torch.Tensor] = [own[0] for own in conv + states]
        own, addresses = self._own, [*map(torch.Tensor.data_ptr, held)]
        if len(held[0]) != batch or addresses != own.addresses or [*map(id, held)] != [*map(id, own.checked)]:
            self._check(conv, self._window, batch)
            self._check(states, self._state, batch)
            held = [store[0] for store in conv + states]
            windows, recurrent = [*map(buffer, held[: self._layers])], [*map(buffer, held[self._layers :])]
            own.cache = kernels().TokenCache(model=self._model, batch=batch, windows=windows, states=recurrent)
            own.checked, own.addresses = held, [*map(torch.Tensor.data_ptr, held)]
        return own.cache

    def _check(self, stores: list[Any], size: int, batch: int) -> None:
        """Looked at once for each cache: 48 tensors cost 0.3 ms, which is a twentieth of a token."""
        for own in stores:
            if own[0].shape[0] != batch or own[0][0].numel() != size:
                raise ValueError(f"the cache holds {tuple(own[0].shape)}, expected {batch} sequences of {size} values")
            if own[0].dtype != torch.float32 or not own[0].is_contiguous():
                own[0] = own[0].float().contiguous()
