"""One whole run from a model's name to a folder on disk: what the command, the demo and the Space start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from hf_mamba_prune import demo, native
from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.files.loading import LoadedModel, fetch, load_model, read_config
from hf_mamba_prune.files.origin import Origin
from hf_mamba_prune.files.saving import check_output, whole_folder, write_checkpoint
from hf_mamba_prune.measure.analysis import LEVELS, Analysis, analyze
from hf_mamba_prune.measure.evaluation import Evaluation
from hf_mamba_prune.measure.speed import compare_speeds
from hf_mamba_prune.measure.zero_shot import ZeroShot
from hf_mamba_prune.packed import check_values, write_packed_model
from hf_mamba_prune.progress import track
from hf_mamba_prune.pruning import needs_data, prune
from hf_mamba_prune.publish.figures import draw_analysis, draw_figures
from hf_mamba_prune.publish.hub import PushChoice, write_card
from hf_mamba_prune.report import PruningReport, SpeedFacts
from hf_mamba_prune.texts.sequences import sample_sequences
from hf_mamba_prune.texts.sources import read_text
from hf_mamba_prune.training.recovery import Recovery


@dataclass(frozen=True)
class ModelChoice:
    """Which model, how it is loaded (the arguments of `loading.load_model`), and whether the native kernels run it."""

    source: str
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    tokenizer: str | None = None
    native: bool = True

    def check(self) -> None:
        """Refuse a wrong id or an unsupported model before texts and weights are fetched."""
        folder, _ = fetch(self.source, self.revision)
        read_config(folder, self.source)

    @contextmanager
    def open(self) -> Iterator[LoadedModel]:
        """Load the model; while the context lasts the native kernels run it on a CPU."""
        loaded = load_model(self.source, self.revision, self.dtype, self.device, self.tokenizer)
        with native.use_native(loaded.model) if self.native else nullcontext():
            yield loaded


@dataclass(frozen=True)
class EvaluationChoice:
    """Which texts and tasks to measure, by name or path, and how; see `evaluation.Evaluation`."""

    texts: tuple[str, ...] = ()
    column: str | None = None
    window: int = 2048
    stride: int | None = None
    max_windows: int | None = None
    tasks: ZeroShot = field(default_factory=ZeroShot)

    def read(self) -> Evaluation:
        """Read the texts; a Hub data set's test split unless its name says another."""
        Evaluation((), self.window, self.stride, self.max_windows)
        self.tasks.check()
        texts = tuple(read_text(text, "test", self.column) for text in self.texts)
        return Evaluation(texts, self.window, self.stride, self.max_windows, self.tasks)


TRAINING_LENGTH = 512
"""Tokens of a training sequence."""


@dataclass(frozen=True)
class RecoveryChoice:
    """How to train after pruning, with the text by name or path; see `recovery.Recovery`."""

    steps: int
    text: str | None = None
    column: str | None = None
    learning_rate: float = 1e-3
    batch_size: int = 8
    distill: bool = True
    gradual: bool = False

    def read(self, otherwise: str | None) -> Recovery:
        """Read the text; a Hub data set's training split unless its name says another."""
        name = self.text or otherwise
        if name is None:
            raise ValueError("recovery trains on a text: give --recover-dataset.")
        text = read_text(name, "train", self.column)
        size = self.batch_size, TRAINING_LENGTH
        return Recovery(text, self.steps, self.learning_rate, *size, self.distill, self.gradual)


@dataclass(frozen=True)
class PruningJob:
    """Prune a model into a folder.

    Args:
        model: what to prune.
        config: how.
        output: the folder to write; appears whole or not at all.
        calibration: text file or Hub data set; not read when the score needs no data.
        evaluation: what to measure before and after.
        overwrite: replace an earlier result of this tool.
        command: the command line that repeats the run, for the report.
        recovery: how to train after pruning; None: not at all. Its text is that of the calibration by default.
        pack: values of a packed checkpoint in `packed/`, `auto` or `int8`; None: none is written.
        push: to the Hub, when all is done; None: not.
    """

    model: ModelChoice
    config: PruningConfig
    output: Path
    calibration: str | None = None
    column: str | None = None
    evaluation: EvaluationChoice = field(default_factory=EvaluationChoice)
    overwrite: bool = False
    command: str | None = None
    recovery: RecoveryChoice | None = None
    pack: str | None = None
    push: PushChoice | None = None

    def sources(self) -> list[str]:
        """Every model, text and task that it reads, by name or path."""
        training = self.recovery.text if self.recovery else None
        named = (self.model.source, self.model.tokenizer, self.calibration, training)
        return [name for name in (*named, *self.evaluation.texts, *self.evaluation.tasks.tasks) if name]

    def run(self) -> PruningReport:
        """Do it; nothing is written before everything else has succeeded.

        Raises:
            ValueError: a wrong name, file, number or combination.
            RuntimeError: the Hub or the disk refuses, or the model is broken.
        """
        check_output(self.output, self.overwrite)
        if self.pack is not None:
            check_values(self.pack)
        self.evaluation.tasks.check()
        self.model.check()
        if not needs_data(self.config) or (self.recovery is not None and self.recovery.gradual):
            calibration = None
        elif self.calibration is None:
            raise ValueError("scores and reconstruction are measured on data: give --calibration.")
        else:
            calibration = read_text(self.calibration, "train", self.column)
        evaluation = self.evaluation.read()
        recovery = None if self.recovery is None else self.recovery.read(self.calibration)
        with self.model.open() as loaded:
            card = loaded.license, loaded.language
            origin = Origin(loaded.id, loaded.revision, self.command, loaded.saved_dtype, *card)
            report = prune(loaded.model, loaded.tokenizer, self.config, calibration, evaluation, origin, recovery)
        with whole_folder(self.output, self.overwrite) as folder:
            write_checkpoint(folder, loaded.model, loaded.tokenizer, self.config, loaded.saved_dtype)
            if self.pack is not None:
                report = replace(report, speeds=self._packed(loaded, folder))
            report.save(folder)
            draw_figures(report, folder / "figures")
            write_card(folder, self.push.repo if self.push else None)
        return report

    def _packed(self, loaded: LoadedModel, folder: Path) -> tuple[SpeedFacts, ...]:
        """Write the packed checkpoint beside the dense one, and measure both."""
        packed = folder / "packed"
        packed.mkdir()
        write_packed_model(packed, loaded.model, loaded.tokenizer, loaded.saved_dtype, self.pack)
        return tuple(track(compare_speeds(folder, packed), "measure speed", "model", 3))


def demo_job(output: Path, sparsity: float) -> PruningJob:
    """Prune the bundled model into `output`, which may hold an earlier demo, and pack it.

    Args:
        output: folder to write.
        sparsity: of the prunable weights, 0 <= sparsity < 1.
    """
    return PruningJob(
        ModelChoice(str(demo.MODEL)),
        PruningConfig(sparsity, calibration_samples=64),
        output,
        str(demo.CALIBRATION),
        evaluation=EvaluationChoice((str(demo.EVALUATION),)),
        overwrite=True,
        command=f"hf-mamba-prune demo --sparsity {sparsity}",
        pack="int8",
    )


@dataclass(frozen=True)
class AnalysisJob:
    """Analyse a model into a folder: `analysis.json` and a figure.

    Args:
        model: what to analyse; it is not changed.
        config: score, seed and calibration.
        output: the folder to write; it must not hold anything yet.
        calibration: text file or Hub data set that the scores are measured on.
        evaluation: the held text.
        levels: sparsities, each above 0 and at most 1.
    """

    model: ModelChoice
    config: PruningConfig
    output: Path
    calibration: str
    column: str | None
    evaluation: EvaluationChoice
    levels: tuple[float, ...] = LEVELS

    def run(self) -> Analysis:
        """Do it.

        Raises:
            ValueError: a wrong name, file or number, or the folder holds something.
            RuntimeError: the Hub or the disk refuses, or the model is broken.
        """
        for level in self.levels:
            if not 0 < level <= 1:
                raise ValueError(f"a level is {level}; expected a sparsity above 0, at most 1.")
        check_output(self.output, overwrite=False)
        self.model.check()
        calibration = read_text(self.calibration, "train", self.column)
        evaluation = self.evaluation.read()
        config = self.config
        with self.model.open() as loaded:
            shape = config.calibration_samples, config.calibration_length
            sequences = sample_sequences(calibration, loaded.tokenizer, *shape, config.seed)
            found = analyze(loaded.model, loaded.tokenizer, sequences, evaluation, config, self.levels)
        with whole_folder(self.output) as folder:
            found.save(folder)
            draw_analysis(found, folder)
        return found
