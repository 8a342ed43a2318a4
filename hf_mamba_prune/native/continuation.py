"""What follows a cache in a causal language model: single tokens by the native step, several of them one by one.

Stock's Mamba-1 and Falcon-Mamba start several tokens after a cache from an empty state; called one by one they are
right. Its Mamba-2 carries the state on, and is left alone where the native step cannot serve.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, get_args

import torch

from hf_mamba_prune.native.checks import serves
from hf_mamba_prune.native.engine import engine_of
from hf_mamba_prune.native.library import available

_NOT_OF_A_TOKEN = {
    "attention_mask",
    "next_sequence_length",
    "labels",
    "inputs_embeds",
    "is_first_iteration",
    "use_cache",
}


def _continues(model: Any, cache: Any) -> bool:
    """Whether a cache holds tokens, and all that its layers keep is their last state."""
    ends = [] if cache is None else cache.layers[:1] + cache.layers[-1:]  # a prefill goes through all or none
    return cache is not None and all(
        layer.is_recurrent_states_initialized[0] and not layer.record_past for layer in ends
    )


def _hidden(attention_mask: torch.Tensor | None, length: int) -> bool:
    """Whether any of the last tokens, several, is padding."""
    return attention_mask is not None and length > 1 and not bool(attention_mask[:, -length:].all())


def _kept(logits_to_keep: int | torch.Tensor) -> slice | torch.Tensor:
    return slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep


def continue_cache(stock: Callable, carries_on: bool) -> Callable:
    """The forward of a causal language model that is right and fast after a cache; before one it is stock's.

    Args:
        stock: its forward.
        carries_on: whether that is right with several tokens after a cache.
    """
    output = get_args(stock.__annotations__["return"])[-1]
    names = list(stock.__annotations__)  # in the order of the parameters

    @functools.wraps(stock)
    def forward(self: Any, *positional: Any, **named: Any) -> Any:
        named = dict(zip(names, positional, strict=False)) | named
        tokens = named["input_ids"] if named.get("input_ids") is not None else named.get("inputs_embeds")
        cache = named.get("cache_params")
        if cache is None or tokens is None or not serves(tokens) or not _continues(self, cache):
            return stock(self, **named)
        length = tokens.shape[1]
        hidden = _hidden(named.get("attention_mask"), length)
        if hidden and not carries_on:
            raise ValueError("tokens after a cache are padded: give those of each length to a call of their own")
        steps = None if hidden else _native_logits(self, cache, named)
        if steps is None and (length == 1 or carries_on):
            return stock(self, **named)
        if steps is None:
            return _one_by_one(stock, self, output, named)
        use_cache = named.get("use_cache")
        kept = cache if (use_cache if use_cache is not None else self.config.use_cache) else None
        found = output(logits=steps[:, _kept(named.get("logits_to_keep", 0))], cache_params=kept)
        return found if _by_name(self, named) else found.to_tuple()

    return forward


def _by_name(model: Any, named: dict[str, Any]) -> bool:
    return model.config.return_dict if named.get("return_dict") is None else named["return_dict"]


def _native_logits(model: Any, cache: Any, named: dict[str, Any]) -> torch.Tensor | None:
    """(b, l, vocabulary) by native steps; None where they do not give what was asked for."""
    states = named.get("output_hidden_states")
    more = named.get("labels") is not None or (model.config.output_hidden_states if states is None else states)
    activated = model.config.hidden_act in ("silu", "swish")  # which is all that the step knows
    if more or not activated or named.get("input_ids") is None or not available():
        return None
    engine = engine_of(model, cache)
    if engine is None:
        return None
    steps = [engine.step(tokens, cache) for tokens in named["input_ids"].unbind(1)]
    return torch.stack(steps, dim=1) if len(steps) > 1 else steps[0][:, None]


def _one_by_one(stock: Callable, model: Any, output: type, named: dict[str, Any]) -> Any:
    """Several tokens after a cache, each by a call of stock's."""
    source = "inputs_embeds" if named.get("input_ids") is None else "input_ids"
    labels = named.pop("labels", None)
    kept = _kept(named.pop("logits_to_keep", 0))
    step = named | {"attention_mask": None, "return_dict": True, "logits_to_keep": 0}
    outs = [stock(model, **step | {source: token}) for token in named[source].split(1, dim=1)]
    logits = torch.cat([out.logits for out in outs], dim=1)[:, kept]
    hidden = None
    if outs[0].hidden_states is not None:
        hidden = tuple(torch.cat(states, dim=1) for states in zip(*(out.hidden_states for out in outs), strict=True))
    loss = None
    if labels is not None:
        loss = model.loss_function(logits=logits, labels=labels, vocab_size=model.config.vocab_size)
    found = output(loss=loss, logits=logits, cache_params=outs[-1].cache_params, hidden_states=hidden)
    return found if _by_name(model, named) else found.to_tuple()


def prepare_token(stock: Callable) -> Callable:
    """What generation calls before each token: one token and the cache, which stock takes long to say."""

    @functools.wraps(stock)
    def prepare_inputs_for_generation(self: Any, input_ids: torch.Tensor, *positional: Any, **named: Any) -> Any:
        cache = named.get("cache_params")
        first = positional or named.get("is_first_iteration") or named.get("next_sequence_length") != 1
        if first or not _continues(self, cache):
            return stock(self, input_ids, *positional, **named)
        rest = {name: value for name, value in named.items() if name not in _NOT_OF_A_TOKEN}
        return rest | {"input_ids": input_ids[:, -1:], "use_cache": True}

    return prepare_inputs_for_generation
