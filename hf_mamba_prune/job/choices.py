"""What a run works with, by name or path: the model, the texts that it is measured on, the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mamba_prune import native
from hf_mamba_prune.files.loading import LoadedModel, fetch, load_model, load_skeleton, load_tokenizer_of, read_config
from hf_mamba_prune.files.placing import find_device, find_dtype
from hf_mamba_prune.measure.evaluation import Evaluation
from hf_mamba_prune.measure.zero_shot import ZeroShot
from hf_mamba_prune.plan import TrainingSize
from hf_mamba_prune.texts.sources import TextSource, read_text
from hf_mamba_prune.training.recovery import Recovery

DEFAULT_TEXT = "wikitext"
"""What the command reads where no text is named."""


@contextmanager
def text_errors(name: str) -> Iterator[None]:
    """Of the default text, which the user may not know of, an error says how to name another."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if name != DEFAULT_TEXT:
            raise
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        raise kind(
            f"{str(error).rstrip('.')}; {name} is the default of --calibration and of --eval: name a text of your own "
            "with each of them, or measure nothing with --no-eval."
        ) from error


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which model, how it is loaded (the arguments of `loading.load_model`), and whether the native kernels run it."""

    source: str
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    tokenizer: str | None = None
    native: bool = True

    def check(self) -> None:
        """Refuse a wrong id, an unsupported model, a wrong dtype or device before texts and weights are fetched."""
        find_dtype(self.dtype)
        find_device(self.device)
        folder, _ = fetch(self.source, self.revision)
        read_config(folder, self.source)

    def on_cpu(self) -> bool:
        """Whether it will run on a CPU.

        Raises:
            ValueError: torch cannot use the device here.
        """
        return find_device(self.device).type == "cpu"

    def skeleton(self) -> PreTrainedModel:
        """The model without its weights, see `loading.load_skeleton`."""
        return load_skeleton(self.source, self.revision)

    def read_tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer alone, see `loading.load_tokenizer_of`."""
        return load_tokenizer_of(self.source, self.revision, self.tokenizer)

    @contextmanager
    def open(self, tokenizer: PreTrainedTokenizerBase | None = None) -> Iterator[LoadedModel]:
        """Load the model; while the context lasts the native kernels run it on a CPU.

        Args:
            tokenizer: where it is read already.
        """
        loaded = load_model(self.source, self.revision, self.dtype, self.device, tokenizer or self.tokenizer)
        with native.use_native(loaded.model) if self.native else nullcontext():
            yield loaded


@dataclass(frozen=True, kw_only=True)
class EvaluationChoice:
    """Which texts and tasks to measure, by name or path, and how; see `evaluation.Evaluation`."""

    texts: tuple[str, ...] = ()
    column: str | None = None
    window: int = 2048
    stride: int | None = None
    max_windows: int | None = None
    tasks: ZeroShot = field(default_factory=ZeroShot)

    def check(self) -> None:
        """Refuse wrong numbers and tasks before a text is read."""
        self._evaluation(())
        self.tasks.check()

    def read(self) -> Evaluation:
        """Read the texts; a Hub data set's test split unless its name says another."""
        self.check()
        texts = []
        for name in self.texts:
            with text_errors(name):
                texts.append(read_text(name, "test", self.column))
        return self._evaluation(tuple(texts))

    def _evaluation(self, texts: tuple[TextSource, ...]) -> Evaluation:
        return Evaluation(
            texts=texts, window=self.window, stride=self.stride, max_windows=self.max_windows, tasks=self.tasks
        )


TRAINING_LENGTH = 512
"""Tokens of a training sequence."""


@dataclass(frozen=True, kw_only=True)
class RecoveryChoice:
    """How to train after pruning, with the text by name or path; see `recovery.Recovery`."""

    steps: int
    text: str | None = None
    column: str | None = None
    learning_rate: float = 1e-3
    batch_size: int = 8
    distill: bool = True
    gradual: bool = False

    @property
    def size(self) -> TrainingSize:
        """How much it trains."""
        tokens = self.batch_size * TRAINING_LENGTH
        return TrainingSize(steps=self.steps, batch_tokens=tokens, distill=self.distill, gradual=self.gradual)

    def check(self) -> None:
        """Refuse wrong numbers before a text is read."""
        self.on(TextSource("", ()))

    def on(self, text: TextSource) -> Recovery:
        """The same, with a text that is read.

        Raises:
            ValueError: a number is out of range.
        """
        return Recovery(
            text=text,
            steps=self.steps,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            length=TRAINING_LENGTH,
            distill=self.distill,
            gradual=self.gradual,
        )
