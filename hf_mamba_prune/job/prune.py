"""Prune a model into a folder: what that reads and costs, what of it is refused, and the run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mamba_prune import demo
from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.files.loading import LoadedModel
from hf_mamba_prune.files.origin import Origin
from hf_mamba_prune.files.saving import amended, check_output, whole_folder, write_checkpoint
from hf_mamba_prune.job.choices import TRAINING_LENGTH, EvaluationChoice, ModelChoice, RecoveryChoice, text_errors
from hf_mamba_prune.measure.evaluation import Evaluation
from hf_mamba_prune.measure.speed import compare_speeds
from hf_mamba_prune.packed.checkpoint import write_packed_model
from hf_mamba_prune.packed.config import check_values
from hf_mamba_prune.plan import Plan, make_plan
from hf_mamba_prune.progress import track
from hf_mamba_prune.pruning import prepare, reads_calibration
from hf_mamba_prune.publish.extras import attempt, write_extras
from hf_mamba_prune.publish.hub import PushChoice, write_card
from hf_mamba_prune.report import REPORT_NAME, PruningReport, SpeedFacts
from hf_mamba_prune.texts.sequences import sample_sequences
from hf_mamba_prune.texts.sources import TextSource, read_text
from hf_mamba_prune.training.recovery import Recovery


@dataclass(frozen=True, kw_only=True)
class PruningJob:
    """Prune a model into a folder.

    Args:
        model: what to prune.
        config: how.
        output: the folder to write; appears whole or not at all.
        calibration: text file or Hub data set; not read when nothing is measured on it.
        column: of the calibration's text.
        evaluation: what to measure before and after.
        overwrite: replace an earlier result of this tool.
        command: the command line that repeats the run, for the report.
        recovery: how to train after pruning; None: not at all. Its text is that of the calibration by default.
        pack: values of a packed checkpoint in `packed/`, as in `PackedConfig`; None: none is written.
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

    def calibration_text(self) -> str | None:
        """Name of the text that is measured on; None where none is."""
        gradual = self.recovery is not None and self.recovery.gradual
        return self.calibration if reads_calibration(self.config, gradual) else None

    def training_text(self) -> str | None:
        """Name of the text that is trained on; None where none is."""
        return None if self.recovery is None else self.recovery.text or self.calibration

    def sources(self) -> list[str]:
        """Every model, text and task that it reads, by name or path."""
        named = [self.model.source, self.model.tokenizer, self.calibration_text(), self.training_text()]
        named += [*self.evaluation.texts, *self.evaluation.tasks.tasks]
        return list(dict.fromkeys(name for name in named if name))

    def plan(self, skeleton: PreTrainedModel | None = None) -> Plan:
        """What it would do and what that would cost, from the model's config alone.

        Args:
            skeleton: of the model, where it is at hand.

        Raises:
            ValueError: no such model, or the config does not fit it.
            RuntimeError: the Hub refuses.
        """
        training = None if self.recovery is None else self.recovery.size
        return make_plan(skeleton or self.model.skeleton(), self.config, training, self.model.source)

    def prepare(self, plan: Plan | None = None) -> PreparedJob:
        """Read all but the weights, and refuse whatever can be refused without them; nothing is written.

        Args:
            plan: of this job, where it is at hand.

        Raises:
            ValueError: a wrong name, file, number or combination.
            RuntimeError: the Hub or the disk refuses.
        """
        check_output(self.output, self.overwrite)
        if self.pack is not None:
            check_values(self.pack)
        if self.pack == "rounded" and not self.config.rounds:
            raise ValueError("pack is 'rounded', and the config rounds nothing: give it bits, size or code_bits.")
        self.evaluation.check()
        if self.recovery is not None:
            self.recovery.check()
        self.model.check()
        plan = plan or self.plan()
        push = self.push and self.push.addressed(default_output(self.model.source, self.config).name)
        tokenizer = self.model.read_tokenizer()
        evaluation = self.evaluation.read()  # first: a default that cannot be had is the commonest fault
        calibration, recovery = self._read_texts(tokenizer)
        evaluation.check(tokenizer)
        return PreparedJob(
            job=replace(self, push=push),
            plan=plan,
            tokenizer=tokenizer,
            calibration=calibration,
            evaluation=evaluation,
            recovery=recovery,
        )

    def _read_texts(self, tokenizer: PreTrainedTokenizerBase) -> tuple[TextSource | None, Recovery | None]:
        """What is measured on and what is trained on, each long enough; a text that is both is read once."""
        calibration, training = None, None
        name, seed = self.calibration_text(), self.config.seed
        if name is not None:
            with text_errors(name):
                calibration = read_text(name, "train", self.column)
            sample_sequences(calibration, tokenizer, 1, self.config.calibration_length, seed)
        elif reads_calibration(self.config, self.recovery is not None and self.recovery.gradual):
            raise ValueError("scores and reconstruction are measured on data: give --calibration.")
        if self.recovery is None:
            return calibration, None
        name = self.training_text()
        if name is None:
            raise ValueError("recovery trains on a text: give --recover-dataset.")
        same = calibration is not None and (name, self.recovery.column) == (self.calibration, self.column)
        training = calibration if calibration is not None and same else read_text(name, "train", self.recovery.column)
        sample_sequences(training, tokenizer, 1, TRAINING_LENGTH, seed)
        return calibration, self.recovery.on(training)

    def run(self) -> PruningReport:
        """Do it; nothing is written before the model is pruned and measured.

        Raises:
            ValueError: a wrong name, file, number or combination.
            RuntimeError: the Hub or the disk refuses, or the model is broken.
        """
        return self.prepare().run()


@dataclass(frozen=True, kw_only=True)
class PreparedJob:
    """A job that has read all but the weights, which alone can still refuse it.

    Args:
        job: with the full id of the repository that it pushes to.
        plan: what it will do and cost.
        tokenizer: of the model.
        calibration: the text that is measured on; None where none is.
        evaluation: with the texts.
        recovery: with the text; None without training.
    """

    job: PruningJob
    plan: Plan
    tokenizer: PreTrainedTokenizerBase
    calibration: TextSource | None
    evaluation: Evaluation
    recovery: Recovery | None

    def run(self, begin: Callable[[], object] | None = None) -> PruningReport:
        """Load the weights, prune, and write the folder; once it stands, the speeds are measured on it.

        What fails after the pruning (packed checkpoint, figures, card, speeds) is a warning in the report.

        Args:
            begin: called when the weights are loaded, nothing is left to refuse and nothing is changed yet.

        Raises:
            ValueError: the weights do not fit or are damaged.
            RuntimeError: the disk refuses, or the model is broken.
        """
        job = self.job
        with job.model.open(self.tokenizer) as loaded:
            ready = prepare(
                model=loaded.model,
                tokenizer=loaded.tokenizer,
                config=job.config,
                calibration=self.calibration,
                evaluation=self.evaluation,
                origin=_origin(loaded, job.command),
                recovery=self.recovery,
            )
            if begin is not None:
                begin()
            report = ready.run()
        repo = job.push.repo if job.push else None
        with whole_folder(job.output, job.overwrite) as folder:
            write_checkpoint(folder, loaded.model, loaded.tokenizer, job.config, loaded.saved_dtype)
            report.save(folder)
            if job.pack is not None:
                report = _packed(report, loaded, folder / "packed", job.pack)
            report = write_extras(folder, report, repo)
        if (job.output / "packed").is_dir():
            report = _with_speeds(report, job.output, repo)
        return report


def _origin(loaded: LoadedModel, command: str | None) -> Origin:
    return Origin(
        id=loaded.id,
        revision=loaded.revision,
        command=command,
        saved_dtype=loaded.saved_dtype,
        license=loaded.license,
        left_out=loaded.left_out,
        language=loaded.language,
    )


def _packed(report: PruningReport, loaded: LoadedModel, folder: Path, values: str) -> PruningReport:
    """Write the packed checkpoint, all of it or nothing."""

    def pack() -> None:
        write_packed_model(folder, loaded.model, loaded.tokenizer, loaded.saved_dtype, values)

    tried = attempt(report, "The packed checkpoint", pack)
    if tried != report:
        shutil.rmtree(folder, ignore_errors=True)
    return tried


def _with_speeds(report: PruningReport, output: Path, repo: str | None) -> PruningReport:
    """Measure dense and packed, and write that into a result that stands: a measurement may use up all memory."""
    speeds: list[SpeedFacts] = []
    held = (output / REPORT_NAME).read_bytes()

    def measure() -> None:
        speeds.extend(list(track(compare_speeds(output, output / "packed"), "measure speed", "model", 3)))

    def amend() -> None:
        if (output / REPORT_NAME).read_bytes() != held:
            raise RuntimeError("another run replaced the result meanwhile")
        with amended(output) as folder:
            found.save(folder)
            write_card(folder, repo)

    found = replace(attempt(report, "The comparison of speeds", measure), speeds=tuple(speeds))
    return attempt(found, "The report with the speeds", amend)


def default_output(model: str, config: PruningConfig) -> Path:
    """`state-spaces/mamba-370m` at 0.7 -> `mamba-370m-pruned-70` in the current folder; at 2.5 bits, -2.5-bits."""
    name = Path(model).name or "model"
    if config.bits is not None:
        return Path(f"{name}-{config.bits:g}-bits")
    if config.size is not None:
        return Path(f"{name}-{config.size / 1e6:.4g}MB")
    return Path(f"{name}-pruned-{round(100 * config.sparsity)}")


def demo_job(output: Path, sparsity: float) -> PruningJob:
    """Prune the bundled model into `output`, which may hold an earlier demo, and pack it.

    Args:
        output: folder to write.
        sparsity: of the prunable weights, 0 <= sparsity < 1.
    """
    return PruningJob(
        model=ModelChoice(source=str(demo.MODEL)),
        config=PruningConfig(sparsity, calibration_samples=64),
        output=output,
        calibration=str(demo.CALIBRATION),
        evaluation=EvaluationChoice(texts=(str(demo.EVALUATION),)),
        overwrite=True,
        command=f"hf-mamba-prune demo --sparsity {sparsity}",
        pack="int8",
    )
