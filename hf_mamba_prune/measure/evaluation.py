"""How good is the model? Perplexity as the field reports it, bits per byte and word perplexity of the same losses."""

from __future__ import annotations

import itertools
import math
import sys
import time
from dataclasses import dataclass, field

import evaluate
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mamba_prune.masks.calibration import evaluation_mode
from hf_mamba_prune.measure.metrics import BitsPerByte, Perplexity
from hf_mamba_prune.measure.zero_shot import ZeroShot
from hf_mamba_prune.progress import tell, track
from hf_mamba_prune.report import LanguageMetrics
from hf_mamba_prune.texts.sequences import check_ids
from hf_mamba_prune.texts.sources import TextSource

_HEAD_TOKENS = 256
_FIRST_ROWS, _FIRST_CHARACTERS = 100, 10_000


@dataclass(frozen=True)
class Evaluation:
    """What a model is measured on: rows joined by a blank line, cut into windows.

    With the default stride the windows do not overlap and the first token of each is not predicted, as GPTQ, Wanda and
    SparseSSM count. A smaller stride scores only the last `stride` tokens of each window, given all before them. Bytes
    and words are those of the rows (without the joining lines), in proportion when only part of the text is scored.

    Args:
        texts: each is measured by itself.
        window: tokens the model sees at once, at least 2.
        stride: tokens from one window to the next; None means `window`.
        max_windows: only the first ones of each text, for a quick look.
        tasks: zero-shot tasks, measured by `tasks.run`.

    Raises:
        ValueError: window or stride out of range.
    """

    texts: tuple[TextSource, ...] = ()
    window: int = 2048
    stride: int | None = None
    max_windows: int | None = None
    tasks: ZeroShot = field(default_factory=ZeroShot)

    def __post_init__(self) -> None:
        stride = self.window if self.stride is None else self.stride
        if self.window < 2 or not 1 <= stride <= self.window:
            raise ValueError(
                f"window is {self.window} and stride {stride}; expected window >= 2 and 1 <= stride <= window."
            )
        if self.max_windows is not None and self.max_windows < 1:
            raise ValueError(f"max_windows is {self.max_windows}; expected at least 1.")

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse texts that are too short to be measured, before any work.

        Raises:
            ValueError: a text has fewer than two tokens.
        """
        for text in self.texts:
            # Whole documents until there is surely enough: a long text need not be tokenized twice.
            few = list(itertools.islice((row for row in text.documents if row.strip()), _FIRST_ROWS))
            if len(_token_ids(tokenizer, "\n\n".join(few)[:_FIRST_CHARACTERS])) < 2:
                _refuse_short(text, len(_token_ids(tokenizer, text.joined())))

    def run(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[LanguageMetrics, ...]:
        """Measure a causal language model, in its own dtype, on every text.

        Raises:
            ValueError: a text has fewer than two tokens.
            RuntimeError: the model gives no finite predictions.
        """
        return tuple(self._measure(model, tokenizer, text) for text in self.texts)

    def _measure(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: TextSource
    ) -> LanguageMetrics:
        stride = self.window if self.stride is None else self.stride
        ids = torch.tensor(_token_ids(tokenizer, source.joined()))
        _refuse_short(source, len(ids))
        check_ids(ids, model, f"the evaluation text {source.name}")
        spans = _spans(len(ids), self.window, stride)[: self.max_windows]
        started = time.perf_counter()
        losses = _losses(model, ids, spans)
        seconds = time.perf_counter() - started
        counts = [stop - max(first, 1 + start) for start, stop, first in spans]
        share = spans[-1][1] / len(ids)
        metrics = LanguageMetrics(
            text=source.name,
            perplexity=_compute(Perplexity, losses, counts, "perplexity"),
            bits_per_byte=_compute(BitsPerByte, losses, _units(source_bytes(source), share, losses), "bits_per_byte"),
            word_perplexity=_compute(Perplexity, losses, _units(source_words(source), share, losses), "perplexity"),
            tokens=sum(counts),
            window=self.window,
            stride=stride,
            dtype=str(model.dtype).removeprefix("torch."),
            tokens_per_second=spans[-1][1] / seconds,
        )
        tell("evaluate", perplexity=metrics.perplexity)
        return metrics


def _token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def _refuse_short(text: TextSource, tokens: int) -> None:
    if tokens < 2:
        raise ValueError(f"the evaluation text {text.name} has {tokens} tokens; at least 2 are needed.")


def source_bytes(source: TextSource) -> int:
    """UTF-8 bytes of the rows."""
    return sum(len(row.encode()) for row in source.documents)


def source_words(source: TextSource) -> int:
    """Words of the rows, split at white space."""
    return sum(len(row.split()) for row in source.documents)


def _compute(metric: type[evaluate.Metric], losses: list[float], units: list[int], key: str) -> float:
    # In memory: otherwise the library writes every number into the user's cache first.
    value = metric(keep_in_memory=True).compute(predictions=losses, references=units)[key]
    return min(value, sys.float_info.max)  # JSON knows no infinity


def _units(total: int, share: float, losses: list[float]) -> list[int]:
    """Units beside each loss: only their sum counts."""
    return [max(1, round(total * share))] + [0] * (len(losses) - 1)


def _spans(tokens: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """(start, stop, first scored token) of each window; the last one may be shorter."""
    spans: list[tuple[int, int, int]] = []
    for start in range(0, max(tokens - 1, 0), stride):
        stop = min(start + window, tokens)
        first = start if stride == window or start == 0 else spans[-1][1]
        spans.append((start, stop, first))
        if stop == tokens:
            break
    return [span for span in spans if span[1] - span[0] >= 2]


@torch.no_grad()
def _losses(model: PreTrainedModel, ids: torch.Tensor, spans: list[tuple[int, int, int]]) -> list[float]:
    with evaluation_mode(model):
        return [
            _window_loss(model, ids[start:stop].to(model.device)[None], max(first - start, 1))
            for start, stop, first in track(spans, "evaluate", "window")
        ]


def _window_loss(model: PreTrainedModel, ids: torch.Tensor, first: int) -> float:
    """Summed loss in nats of tokens `first` and later of ids (1, l), given all before them.

    The head runs on a few hundred positions at a time: the logits of a whole window over 50,280 words take 400 MB.
    """
    hidden = model.base_model(ids, use_cache=False).last_hidden_state[0, first - 1 : -1]
    head = model.get_output_embeddings()
    total = 0.0
    for states, wanted in zip(hidden.split(_HEAD_TOKENS), ids[0, first:].split(_HEAD_TOKENS), strict=True):
        logits = head(states.to(head.weight.dtype)).float()
        total += F.cross_entropy(logits, wanted, reduction="sum").double().item()
    if not math.isfinite(total):
        raise RuntimeError(f"the loss of an evaluation window is {total}: the model gives no finite predictions.")
    return total
