"""How like the dense model another is, beside perplexity: divergence, greedy agreement and repetition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_mamba_prune import TextSource
from hf_mamba_prune.texts.sequences import sample_sequences

SEQUENCES, LENGTH = 48, 512
"""That the divergence is measured on."""
PROMPTS, PROMPT, TOKENS = 32, 64, 64
"""Prompts, their length, and the tokens that follow each."""
_BATCH = 4


def log_probabilities(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False).logits.log_softmax(-1)


def continuation(model: PreTrainedModel, prompts: torch.Tensor) -> torch.Tensor:
    """int64 (PROMPTS, TOKENS), greedy."""
    whole = torch.ones_like(prompts)
    found = model.generate(
        prompts, attention_mask=whole, do_sample=False, max_new_tokens=TOKENS, min_new_tokens=TOKENS, pad_token_id=0
    )
    return found[:, prompts.shape[1] :]


def repetition(tokens: torch.Tensor) -> float:
    """Share of runs of four tokens that stood in the same text before."""
    repeated = total = 0
    for row in tokens.tolist():
        runs = [tuple(row[at : at + 4]) for at in range(len(row) - 3)]
        repeated, total = repeated + len(runs) - len(set(runs)), total + len(runs)
    return repeated / total


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a dense model does on one text.

    Args:
        ids: (SEQUENCES, LENGTH), and what it predicts there, log-probabilities in bfloat16, in batches.
        likeliest: the likeliest tokens there.
        prompts: (PROMPTS, PROMPT), and how it goes on.
    """

    ids: torch.Tensor
    predicted: list[torch.Tensor]
    likeliest: torch.Tensor
    prompts: torch.Tensor
    follows: torch.Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: PreTrainedModel, tokenizer: Any, text: TextSource) -> Reference:
        ids = sample_sequences(text, tokenizer, SEQUENCES, LENGTH, 1)
        prompts = sample_sequences(text, tokenizer, PROMPTS, PROMPT, 2)
        predicted, likeliest = [], []
        for part in ids.split(_BATCH):
            found = log_probabilities(model, part)
            predicted.append(found.bfloat16())
            likeliest.append(found.argmax(-1))
        return cls(
            ids=ids,
            predicted=predicted,
            likeliest=torch.cat(likeliest),
            prompts=prompts,
            follows=continuation(model, prompts),
        )

    @torch.no_grad()
    def likeness(self, model: PreTrainedModel) -> dict[str, float]:
        """What it does beside the dense model.

        Returns:
            `kl`: divergence in nats a token, and `first`: share of places of the text where both find the same token
            likeliest. `agree`: share of greedy tokens of both's own texts that are the same in the same place.
            `repeated`, `repeated_dense`: `repetition` of both.
        """
        total, same = 0.0, 0
        likeliest = self.likeliest.split(_BATCH)
        for part, dense, first in zip(self.ids.split(_BATCH), self.predicted, likeliest, strict=True):
            wanted = dense.float()
            found = log_probabilities(model, part)
            total += float((wanted.exp() * (wanted - found)).sum())
            same += int((first == found.argmax(-1)).sum())
        follows = continuation(model, self.prompts)
        return {
            "kl": total / self.ids.numel(),
            "first": same / self.ids.numel(),
            "agree": float((follows == self.follows).float().mean()),
            "repeated": repetition(follows),
            "repeated_dense": repetition(self.follows),
        }
