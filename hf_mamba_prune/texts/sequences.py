"""Token sequences for calibration: random windows of a text, packed to one length."""

from __future__ import annotations

import hashlib

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mamba_prune.report import CalibrationFacts
from hf_mamba_prune.seeds import name_seed
from hf_mamba_prune.texts.sources import TextSource

SCORE_PARTS, REPAIR_PARTS = 8, 4
"""Into how many parts the steps of a run divide the calibration: scores remember earlier steps, repairs do not."""


def sample_sequences(
    source: TextSource, tokenizer: PreTrainedTokenizerBase, samples: int, length: int, seed: int
) -> torch.Tensor:
    """Draw windows of tokens: each starts in a random row and runs on into the rows that follow it.

    Rows that end in a newline are lines of one text and are joined as they are, others are documents and get a blank
    line between them. A window that starts in a long document starts anywhere in it.

    Args:
        source: the text; a row is taken as the start of at most one window while there are enough rows.
        tokenizer: of the model.
        samples: number of windows.
        length: tokens of each.
        seed: of the draw.

    Returns:
        (samples, length) int64.

    Raises:
        ValueError: the text is too short for a single window.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = [i for i, row in enumerate(source.documents) if row.strip()]
    windows: list[torch.Tensor] = []
    while len(windows) < samples:
        before = len(windows)
        for choice in torch.randperm(len(rows), generator=generator).tolist():
            window = _window(source.documents, rows[choice], tokenizer, length, generator)
            if window is not None:
                windows.append(window)
            if len(windows) == samples:
                break
        if len(windows) == before:
            raise ValueError(
                f"the text {source.name} is too short: it has {source.characters} characters, which make no sequence "
                f"of {length} tokens. Give more text, or for a calibration a smaller --calibration-length."
            )
    return torch.stack(windows)


def calibration_facts(
    source: str, measured: torch.Tensor | None, learned: torch.Tensor | None
) -> CalibrationFacts | None:
    """What a run read of its calibration text: token ids (samples, l); None where nothing was measured on it."""
    if measured is None:
        return None
    digest = hashlib.sha256(measured.numpy().tobytes()).hexdigest()
    samples, length = measured.shape
    count = 0 if learned is None else len(learned)
    return CalibrationFacts(source=source, samples=samples, length=length, tokens_sha256=digest, learned=count)


def check_ids(ids: torch.Tensor, model: PreTrainedModel, what: str) -> None:
    """Refuse tokens that a model has no embedding for: its tokenizer is another's, or grew without it.

    Args:
        ids: of any shape.
        model: a causal language model.
        what: was tokenized, as the error says it.

    Raises:
        ValueError: an id is beyond the last row.
    """
    vocabulary = int(model.config.vocab_size)  # packed models hold no parameter to ask
    highest = int(ids.max()) if ids.numel() else -1
    if highest >= vocabulary:
        raise ValueError(
            f"{what} has token ids up to {highest}, and the model's vocabulary has {vocabulary} (ids up to "
            f"{vocabulary - 1}): give the tokenizer that belongs to it with --tokenizer, or resize its embeddings."
        )


def part_of_step(sequences: torch.Tensor, step: int, steps: int, parts: int, seed: int) -> torch.Tensor:
    """What one pruning step sees: a random part, another one in each step until all were seen.

    Args:
        sequences: (samples, l).
        step: from 1 to `steps`.
        steps: of the run; with fewer than `parts` the parts are larger.
        parts: `SCORE_PARTS` or `REPAIR_PARTS`.
        seed: of the division.

    Returns:
        (samples / parts, l).
    """
    parts = min(steps, parts, len(sequences))
    turn, part = divmod(step - 1, parts)
    order = torch.Generator().manual_seed(name_seed(f"turn {turn}", seed))
    return sequences[torch.randperm(len(sequences), generator=order)[part::parts]]


def _window(
    rows: tuple[str, ...], start: int, tokenizer: PreTrainedTokenizerBase, length: int, generator: torch.Generator
) -> torch.Tensor | None:
    """One window from row `start` on, None when the text ends too early."""
    text, stop, reach = "", start, 8 * length
    while True:
        while len(text) < reach and stop < len(rows):
            row = rows[stop]
            text += row if row.endswith("\n") else row + "\n\n" if row else " \n"
            stop += 1
        # A long document is cut before it is tokenized: only what the window can need.
        first = len(rows[start])
        offset = int(torch.randint(max(1, first - reach + 1), (1,), generator=generator))
        ids = tokenizer(text[offset : offset + reach], add_special_tokens=False, verbose=False).input_ids
        if len(ids) >= length:
            return torch.tensor(ids[:length])
        if stop == len(rows) and offset + reach >= len(text):
            return None
        reach *= 2
