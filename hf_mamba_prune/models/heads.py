"""Sequence classification and forecasting on Mamba and Mamba-2, in the transformers way.

The configs are transformers' own (`MambaConfig`, `Mamba2Config`) with a few more fields, so that a saved model has the
usual `model_type`, its blocks are found by the table of architectures, and `AutoModelForSequenceClassification` and
`AutoModelForTimeSeriesPrediction` load it once this package is imported:

    num_labels       classes (classification)
    bidirectional    the same blocks read the sequence forwards and backwards, and their outputs are averaged
    paired           two sequences are compared (`pair_input_ids`), as in LRA's Retrieval
    context_length   steps that a forecast sees
    prediction_length steps that it gives, the horizon
    scaling          forecasts are made on each series less its mean, by its standard deviation
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    Mamba2Model,
    Mamba2PreTrainedModel,
    MambaModel,
    MambaPreTrainedModel,
    PreTrainedModel,
)
from transformers.modeling_outputs import ModelOutput, SequenceClassifierOutput

if TYPE_CHECKING:

    class _Base(PreTrainedModel):
        """What the heads are mixed into: one of transformers' Mamba models."""

        backbone: nn.Module
        _backbone_class: type[PreTrainedModel]

else:
    _Base = object


@dataclass
class PredictionOutput(ModelOutput):
    """What a forecast gives.

    Args:
        loss: mean squared error, when `future_values` were given.
        prediction_outputs: (b, prediction_length, channels), in the units of the input.
        loc, scale: (b, 1, channels), mean and standard deviation of each series' past; None without scaling.
        hidden_states: of every block, when asked for.
    """

    loss: torch.Tensor | None = None
    prediction_outputs: torch.Tensor | None = None
    loc: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class _Reader(_Base):
    """Runs the blocks over a sequence, in one direction or in both."""

    accepts_loss_kwargs = False  # the loss is a mean: the Trainer divides by its accumulation steps

    def read(
        self, embedded: torch.Tensor, mask: torch.Tensor | None = None, output_hidden_states: bool | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """Hidden states of the last block.

        Args:
            embedded: (b, l, d_model), padded on the right.
            mask: (b, l), 1 where there is a token; None: everywhere.
            output_hidden_states: return those of every block too, of the reading forwards.
        """
        options = {"use_cache": False, "output_hidden_states": output_hidden_states}
        found = self.backbone(inputs_embeds=embedded, **options)
        states = found.last_hidden_state
        if getattr(self.config, "bidirectional", False):
            order = _reversal(embedded, mask)
            backwards = self.backbone(inputs_embeds=_take(embedded, order), use_cache=False).last_hidden_state
            states = (states + _take(backwards, order)) / 2
        return states, found.hidden_states


def _reversal(embedded: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(b, l): for each place that of the token that comes there when the tokens, not the padding, turn round."""
    places = torch.arange(embedded.shape[1], device=embedded.device).expand(embedded.shape[:2])
    if mask is None:
        return places.flip(1)
    last = mask.sum(1, keepdim=True).to(places) - 1
    return torch.where(places <= last, last - places, places)


def _take(states: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return states.gather(1, order[..., None].expand_as(states))


class _SequenceClassification(_Reader):
    """Mean of the hidden states, then a linear map; two sequences u and v are joined as (u, v, u - v, u * v) first.

    Raises:
        ValueError: the config asks for something else than one of several classes.
    """

    def __init__(self, config) -> None:
        super().__init__(config)
        if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
            raise ValueError(
                f"this model chooses one of several classes; num_labels={config.num_labels} and "
                f"problem_type={config.problem_type!r} ask for something else."
            )
        self.backbone = self._backbone_class(config)
        if getattr(config, "paired", False):
            self.compare = nn.Linear(4 * config.hidden_size, config.hidden_size)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pair_input_ids: torch.LongTensor | None = None,
        pair_attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        output_hidden_states: bool | None = None,
        **rest: object,
    ) -> SequenceClassifierOutput:
        """Classify sequences.

        Args:
            input_ids: (b, l), padded on the right.
            attention_mask: (b, l), 1 where there is a token; None: everywhere.
            pair_input_ids, pair_attention_mask: the second sequence where the config says `paired`.
            inputs_embeds: (b, l, d_model), instead of `input_ids`.
            labels: (b,) class indices.
            output_hidden_states: of every block, for the first sequence.
            **rest: ignored, as the Trainer may pass what a loss needs.

        Raises:
            ValueError: a pair is missing, or given where none is compared.
        """
        paired = getattr(self.config, "paired", False)
        if paired != (pair_input_ids is not None):
            raise ValueError(f"this model was made with paired={paired}: pair_input_ids do not fit that.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        pooled, states = self._pooled(inputs_embeds, attention_mask, output_hidden_states)
        if paired:
            other, _ = self._pooled(self.get_input_embeddings()(pair_input_ids), pair_attention_mask, False)
            both = torch.cat([pooled, other, pooled - other, pooled * other], dim=-1)
            pooled = F.relu(self.compare(both.to(self.compare.weight.dtype)))
        logits = self.score(pooled.to(self.score.weight.dtype))
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=states)

    def _pooled(self, embedded: torch.Tensor, mask: torch.Tensor | None, output_hidden_states: bool | None):
        states, every = self.read(embedded, mask, output_hidden_states)
        if mask is None:
            return states.mean(1), every
        if bool((mask[:, 1:] > mask[:, :-1]).any()):
            raise ValueError("sequences are padded on the left: set the tokenizer's padding_side to 'right'.")
        weights = mask.to(states.dtype)[..., None]
        return (states * weights).sum(1) / weights.sum(1).clamp_min(1), every


class _Prediction(_Reader):
    """Every series is one token, made of its whole past by a linear map; the blocks mix the series, another linear
    map gives the future of each (arXiv 2403.11144, after iTransformer)."""

    main_input_name = "past_values"

    def __init__(self, config) -> None:
        super().__init__(config)
        self.embed = nn.Linear(config.context_length, config.hidden_size)
        self.backbone = self._backbone_class(config)
        self.project = nn.Linear(config.hidden_size, config.prediction_length)
        self.post_init()

    def forward(
        self,
        past_values: torch.FloatTensor,
        future_values: torch.FloatTensor | None = None,
        output_hidden_states: bool | None = None,
        **rest: object,
    ) -> PredictionOutput:
        """Forecast several series at once.

        Args:
            past_values: (b, context_length, channels).
            future_values: (b, prediction_length, channels), for the loss.
            output_hidden_states: of every block, of the reading forwards.
            **rest: ignored, as the Trainer may pass what a loss needs.
        """
        loc = scale = None
        past = past_values.float()
        if getattr(self.config, "scaling", True):
            loc = past.mean(1, keepdim=True).detach()
            scale = (past.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt().detach()
            past = (past - loc) / scale
        embedded = self.embed(past.transpose(1, 2).to(self.embed.weight.dtype))
        states, every = self.read(embedded, None, output_hidden_states)
        found = self.project(states.to(self.project.weight.dtype)).transpose(1, 2).float()
        found = found if loc is None else found * scale + loc
        loss = None if future_values is None else F.mse_loss(found, future_values.float())
        return PredictionOutput(loss, found, loc, scale, every)


class MambaForSequenceClassification(_SequenceClassification, MambaPreTrainedModel):
    """A Mamba with a classification head; see the module's text for the config."""

    _backbone_class = MambaModel


class Mamba2ForSequenceClassification(_SequenceClassification, Mamba2PreTrainedModel):
    """A Mamba-2 with a classification head; see the module's text for the config."""

    _backbone_class = Mamba2Model


class MambaForPrediction(_Prediction, MambaPreTrainedModel):
    """A Mamba that forecasts several series; see the module's text for the config."""

    _backbone_class = MambaModel


class Mamba2ForPrediction(_Prediction, Mamba2PreTrainedModel):
    """A Mamba-2 that forecasts several series; see the module's text for the config."""

    _backbone_class = Mamba2Model
