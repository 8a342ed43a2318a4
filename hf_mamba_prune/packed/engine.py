"""One token through a whole packed model in native code: nothing of a step is left to Python but its start."""

from __future__ import annotations

import threading

import torch
from torch import nn
from transformers.cache_utils import Cache

from hf_mamba_prune.models.architectures import ARCHITECTURES
from hf_mamba_prune.native.library import active_instruction_set, address, kernels
from hf_mamba_prune.native.packed import MAX_BATCH

FLOAT = torch.float32.itemsize


class _OfThread(threading.local):
    """What a step writes into: a server's threads may run one model at the same time, each with a cache of its own."""

    def __init__(self):
        self.memory: dict[int, torch.Tensor] = {}  # activations by batch
        self.checked: list[torch.Tensor] = []  # windows and states of the cache of the last step


class TokenEngine:
    """Runs single tokens of a packed model; holds on to the tensors that the native side points to.

    Args:
        model: a packed causal language model whose weights will not move any more.
    """

    def __init__(self, model: nn.Module):
        config = model.config
        backbone = model.base_model
        heads = getattr(config, "num_heads", 0) if config.packed_type == "mamba2" else 0
        groups = config.n_groups if heads else 1
        rank = 0 if heads else int(config.time_step_rank)
        d_inner = int(config.expand * config.hidden_size) if heads else config.intermediate_size
        self.vocabulary = model.lm_head.out_features
        self._alive: list[torch.Tensor] = []
        channels = d_inner + 2 * groups * config.state_size if heads else d_inner
        self._layers = config.num_hidden_layers
        self._window, self._state = channels * config.conv_kernel, d_inner * config.state_size
        counts = (config.hidden_size, d_inner, config.state_size, rank, config.conv_kernel, heads, groups)
        low, high = config.time_step_limit if heads else (0.0, 0.0)
        mixer_eps = config.mixer_rms_eps if config.packed_type == "falcon_mamba" else 0.0
        limits = (config.layer_norm_epsilon, mixer_eps, low, min(high, torch.finfo(torch.float32).max))
        self._model = kernels().PackedModel(
            counts, limits, backbone.embeddings.matrix.handle, model.lm_head.matrix.handle,
            self._floats(backbone.norm_f.weight),
        )  # fmt: skip
        for block in getattr(backbone, ARCHITECTURES[config.packed_type].layers):
            self._add(block.norm, block.mixer)
        self._own = _OfThread()

    def _floats(self, tensor: torch.Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._alive.append(tensor.detach().float().contiguous())
        return address(self._alive[-1])

    def _add(self, norm: nn.Module, mixer: nn.Module) -> None:
        mamba1 = hasattr(mixer, "dt_proj")
        names = ("in_proj", "x_proj", "dt_proj", "out_proj") if mamba1 else ("in_proj", None, None, "out_proj")
        matrices = tuple(None if name is None else getattr(mixer, name).matrix.handle for name in names)
        vectors = (
            norm.weight,
            mixer.in_proj.bias,
            mixer.conv1d.weight.squeeze(1),
            mixer.conv1d.bias,
            mixer.dt_proj.bias if mamba1 else mixer.dt_bias,
            -torch.exp(mixer.A_log.float()),
            mixer.D,
            None if mamba1 else mixer.norm.weight,
            mixer.out_proj.bias,
        )
        self._model.add_layer(matrices, [self._floats(tensor) for tensor in vectors])

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
        conv, states = self._states(cache, len(tokens))
        for first in range(0, len(tokens), MAX_BATCH):
            part = tokens[first : first + MAX_BATCH]
            self._model.step(
                active_instruction_set(),
                torch.get_num_threads(),
                part.data_ptr(),
                len(part),
                [tensor.data_ptr() + first * self._window * FLOAT for tensor in conv],
                [tensor.data_ptr() + first * self._state * FLOAT for tensor in states],
                logits[first].data_ptr(),
                self._memory_for(len(part)).data_ptr(),
            )
        return logits

    def _memory_for(self, batch: int) -> torch.Tensor:
        memory = self._own.memory
        if batch not in memory:
            memory[batch] = torch.empty(self._model.memory(batch))
        return memory[batch]

    def _states(self, cache: Cache, batch: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The windows and states of all layers; made float32 and contiguous in the cache where they are not."""
        if len(cache.layers) != self._layers:
            raise ValueError(f"the cache has {len(cache.layers)} layers, the model {self._layers}")
        conv = [layer.conv_states for layer in cache.layers]
        states = [layer.recurrent_states for layer in cache.layers]
        held = [own[0] for own in conv + states]
        if len(held[0]) != batch or [*map(id, held)] != [*map(id, self._own.checked)]:
            self._check(conv, self._window, batch)
            self._check(states, self._state, batch)
            self._own.checked = held = [own[0] for own in conv + states]
        return held[: self._layers], held[self._layers :]

    def _check(self, stores: list, size: int, batch: int) -> None:
        """Looked at once for each cache: 48 tensors cost 0.3 ms, which is a twentieth of a token."""
        for own in stores:
            if own[0].shape[0] != batch or own[0][0].numel() != size:
                raise ValueError(f"the cache holds {tuple(own[0].shape)}, expected {batch} sequences of {size} values")
            if own[0].dtype != torch.float32 or not own[0].is_contiguous():
                own[0] = own[0].float().contiguous()
