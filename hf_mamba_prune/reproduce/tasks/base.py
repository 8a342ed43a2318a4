"""What a benchmark is: where its data comes from, its model's shape, its metric and how it is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import MambaConfig, PreTrainedModel

from hf_mamba_prune.models.heads import MambaForSequenceClassification

Example = dict[str, torch.Tensor]
Collate = Callable[[list[Example]], Example]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large a benchmark is run.

    Args:
        model: fields of its config.
        length: tokens of a sequence, at most; of a forecast, the steps that it sees.
        examples: training examples used, None: all of them.
        steps: of the training of the dense model.
        recover_steps: of the pruned one's, pruning included.
        batch_size: sequences of a step.
        learning_rate: peak.
        reduced: what is smaller than in the published benchmark, for the table.
        evaluated: examples of validation and test that are measured, None: all of them.
    """

    model: dict[str, Any]
    length: int
    steps: int
    recover_steps: int
    batch_size: int
    learning_rate: float
    examples: int | None = None
    evaluated: int | None = None
    reduced: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The data of a benchmark.

    Args:
        train, validation, test: its parts.
        collate: examples -> a batch.
        stand_ins: what is not the published data, for the table.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    collate: Collate
    stand_ins: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Task:
    """One benchmark.

    Args:
        name: as users write it.
        metrics: names of `hf_mamba_prune.measure.metrics`; the first is that of the table.
        source: the sentence that says how to get the data.
        read: folder of the data and scale -> the data; raises FileNotFoundError where it is not there.
        build: scale -> a model with random weights.
        scales: by name, `small` for two cores and `paper` for a GPU.
        higher_is_better: the first metric.
    """

    name: str
    metrics: tuple[str, ...]
    source: str
    read: Callable[[Path, Scale], Splits]
    build: Callable[[Scale], PreTrainedModel]
    scales: dict[str, Scale] = field(default_factory=dict)
    higher_is_better: bool = True

    def data(self, folder: Path, scale: Scale) -> Splits:
        """Read the data.

        Raises:
            ValueError: it is not there; says how to get it.
        """
        try:
            return self.read(folder, scale)
        except FileNotFoundError as error:
            missing = error.filename or error
            raise ValueError(f"{self.name} needs {missing}, which is not there. {self.source}") from error


class Examples(Dataset):
    """Examples made one at a time from what a benchmark keeps in memory."""

    def __init__(self, count: int, make: Callable[[int], Example]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._make(index)


def tokens_and_label(
    ids: Sequence[torch.Tensor] | torch.Tensor, labels: torch.Tensor, limit: int | None = None
) -> Examples:
    """Sequences of token ids (l,) with a class each."""
    count = len(labels) if limit is None else min(limit, len(labels))
    return Examples(count, lambda i: {"input_ids": ids[i].long(), "labels": labels[i].long()})


def pad(examples: list[Example]) -> Example:
    """Stack examples; sequences of ids are padded with 0 on the right and get a mask."""
    batch = {}
    for name in examples[0]:
        values = [example[name] for example in examples]
        if name.endswith("input_ids"):
            lengths = torch.tensor([len(value) for value in values])
            batch[name] = pad_sequence(values, batch_first=True)
            places = torch.arange(batch[name].shape[1])
            batch[name.replace("input_ids", "attention_mask")] = (places < lengths[:, None]).long()
        else:
            batch[name] = torch.stack(values)
    return batch


def build_classifier(classes: int, vocabulary: int, **more: Any) -> Callable[[Scale], PreTrainedModel]:
    """A maker of classifiers over tokens."""

    def build(scale: Scale) -> PreTrainedModel:
        config = MambaConfig(**dict(vocab_size=vocabulary, num_labels=classes) | more | scale.model)
        return MambaForSequenceClassification(config)

    return build


def shuffled(count: int, seed: int = 0) -> torch.Tensor:
    """A fixed order of `count` examples."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
