"""One token through a whole model in native code, packed or dense: of a step only its start is left to Python."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from hf_mamba_prune.models.architectures import ARCHITECTURES
from hf_mamba_prune.models.components import TokenStep
from hf_mamba_prune.native.library import CODES, MAX_BATCH, active_instruction_set, buffer, kernels
from hf_mamba_prune.native.packed import MatrixModule, PackedMatrix

_OWN = "_token_engine"
_version, _address = attrgetter("_version"), torch.Tensor.data_ptr
_EVERYWHERE = (nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks)


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What a step computes with, as it stands in the model's modules.

    Args:
        sizes: by the native side's names.
        whole: embeddings, head and final norm of the model.
        layers: of each block its projections and its tensors, some of them None, by the native side's names.
        tensors: all of them.
        hooks: of the modules that are not called.
    """

    sizes: dict[str, Any]
    whole: tuple[nn.Module, nn.Module, torch.Tensor]
    layers: list[tuple[dict[str, nn.Module], dict[str, torch.Tensor | None]]]
    tensors: list[torch.Tensor]
    hooks: list[dict[int, Any]]

    def state(self) -> tuple:
        """Equal as long as nothing was exchanged, moved or written to."""
        return self.sizes, [*map(id, self.tensors)], [*map(_address, self.tensors)], [*map(_version, self.tensors)]


def _step_of(model: Any) -> TokenStep | None:
    """How the blocks of a model, all of one kind, are stepped through."""
    architecture = ARCHITECTURES.get(model.config.model_type)
    found = [block.kernels for block in architecture.blocks(model.config)] if architecture else []
    same = bool(found) and all(kernels is found[0] for kernels in found)
    return found[0].step if same and found[0] is not None else None


def _parts_of(model: Any) -> _Parts | None:
    """None where modules must be called: others than stock's own stand among them, or weights lie elsewhere."""
    step = _step_of(model)
    skipped = [module for module in model.modules() if module is not model]
    if step is None or not all(map(_is_stock, skipped)):
        return None
    architecture, backbone = ARCHITECTURES[model.config.model_type], model.base_model
    norm = attrgetter(architecture.final_norm)(backbone)
    whole = model.get_input_embeddings(), model.get_output_embeddings(), norm
    layers = [
        (
            {name: attrgetter(place)(block) for name, place in step.matrices.items()},
            {name: attrgetter(place)(block) for name, place in step.vectors.items()},
        )
        for block in getattr(backbone, architecture.layers)
    ]
    holders = [*whole[:2], *(module for modules, _ in layers for module in modules.values())]
    vectors = [tensor for _, tensors in layers for tensor in tensors.values() if tensor is not None]
    tensors = [norm, *(module.weight for module in holders), *vectors]
    dense = [module.weight for module in holders if not isinstance(module, MatrixModule)]
    floats = all(tensor.dtype in CODES and tensor.is_floating_point() for tensor in [*dense, *vectors])
    here = all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)
    if not (floats and here):
        return None
    hooks = [*_EVERYWHERE]
    for module in skipped:
        hooks += [module._forward_hooks, module._forward_pre_hooks]
    return _Parts(sizes=dict(step.sizes(model.config)), whole=whole, layers=layers, tensors=tensors, hooks=hooks)


def _is_stock(module: nn.Module) -> bool:
    """Whether a module does what its class in torch or transformers does, or what its matrix says."""
    kind = type(module)
    plain = kind.__module__.split(".")[0] in ("torch", "transformers")
    exact = kind is nn.Linear or not isinstance(module, nn.Linear)
    return "forward" not in vars(module) and (isinstance(module, MatrixModule) or (plain and exact))


def engine_of(model: Any, cache: Any) -> TokenEngine | None:
    """The native one-token step of a model.

    Whether its modules are still those that it was made of is looked at once for each cache: it takes as long as a
    tenth of a token.

    Args:
        model: a causal language model of transformers.
        cache: that will be continued.

    Returns:
        None where its modules must be called: others than stock's stand among them, hooks wait for a call, or
        somebody wants gradients of them.
    """
    own: TokenEngine | None = vars(model).get(_OWN)
    if own is None or not own.knows(cache):
        parts = _parts_of(model)
        if parts is None:
            return None
        if own is None or own.state != parts.state():
            own = TokenEngine(parts)
            vars(model)[_OWN] = own
        own.remember(cache)
    return None if own.must_be_called() else own


class _OfThread(threading.local):
    """What a step writes into: a server's threads may run one model at the same time, each with a cache of its own."""

    def __init__(self) -> None:
        self.memory: dict[int, tuple[torch.Tensor, Any]] = {}  # activations by batch
        self.seen: Any = lambda: None  # the cache of the last step, as long as it lives
        self.checked: list[torch.Tensor] = []  # its windows and states
        self.addresses: list[int] = []  # of their memory
        self.cache: Any = None  # what the native side knows of them


class TokenEngine:
    """Runs single tokens of a model; holds on to the memory that the native side points to.

    Args:
        parts: of the model.
    """

    def __init__(self, parts: _Parts):
        self.state = parts.state()
        self._hooks, self._tensors, self._layers = parts.hooks, parts.tensors, len(parts.layers)
        self._alive: list[Any] = []
        embeddings, head, norm = parts.whole
        self._model = kernels().PackedModel(
            embeddings=self._matrix(embeddings), head=self._matrix(head), final_norm=self._floats(norm), **parts.sizes
        )
        for matrices, vectors in parts.layers:
            self._model.add_layer(
                **{name: self._matrix(module) for name, module in matrices.items()},
                **{name: self._floats(_as_used(name, tensor)) for name, tensor in vectors.items()},
            )
        self.vocabulary: int = self._alive[1].shape[0]
        self._window, self._state = self._model.window, self._model.state
        self._own = _OfThread()

    def __reduce__(self) -> tuple:
        return type(None), ()  # it points to the weights of one model; a copy of the model makes one of its own

    def _matrix(self, module: Any) -> Any:
        matrix = module.matrix if isinstance(module, MatrixModule) else PackedMatrix.dense(module.weight.detach())
        self._alive.append(matrix)
        return matrix.handle

    def _floats(self, tensor: torch.Tensor | None) -> Any:
        if tensor is None:
            return None
        self._alive.append(tensor.detach().float().contiguous())
        return buffer(self._alive[-1])

    def knows(self, cache: Any) -> bool:
        """Whether it is the cache of this thread's last step."""
        return self._own.seen() is cache

    def remember(self, cache: Any) -> None:
        """From now on it is known."""
        self._own.seen = weakref.ref(cache)

    def must_be_called(self) -> bool:
        """Whether the modules have to be, for their hooks or for gradients."""
        wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self._tensors)
        return wanted or any(self._hooks)

    def step(self, tokens: torch.Tensor, cache: Any) -> torch.Tensor:
        """The next logits; the cache moves on by one token.

        Args:
            tokens: integers (b,), each in [0, vocabulary).
            cache: of the tokens before, as a prefill left it.

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

    def _held(self, cache: Any, batch: int) -> Any:
        """The windows and states of all layers; made float32 and contiguous in the cache where they are not."""
        if len(cache.layers) != self._layers:
            raise ValueError(f"the cache has {len(cache.layers)} layers, the model {self._layers}")
        conv = [layer.conv_states for layer in cache.layers]
        states = [layer.recurrent_states for layer in cache.layers]
        held: list[torch.Tensor] = [own[0] for own in conv + states]
        own, addresses = self._own, [*map(_address, held)]
        if len(held[0]) != batch or addresses != own.addresses or [*map(id, held)] != [*map(id, own.checked)]:
            self._check(conv, self._window, batch)
            self._check(states, self._state, batch)
            held = [store[0] for store in conv + states]
            windows, recurrent = [*map(buffer, held[: self._layers])], [*map(buffer, held[self._layers :])]
            own.cache = kernels().TokenCache(model=self._model, batch=batch, windows=windows, states=recurrent)
            own.checked, own.addresses = held, [*map(_address, held)]
        return own.cache

    def _check(self, stores: list[Any], size: int, batch: int) -> None:
        """Looked at once for each cache: 48 tensors cost 0.3 ms, which is a twentieth of a token."""
        for own in stores:
            if own[0].shape[0] != batch or own[0][0].numel() != size:
                raise ValueError(f"the cache holds {tuple(own[0].shape)}, expected {batch} sequences of {size} values")
            if own[0].dtype != torch.float32 or not own[0].is_contiguous():
                own[0] = own[0].float().contiguous()


def _as_used(name: str, tensor: torch.Tensor | None) -> torch.Tensor | None:
    """A tensor of a block as the step computes with it."""
    if name == "A" and tensor is not None:
        return -torch.exp(tensor.detach().float())
    return tensor
