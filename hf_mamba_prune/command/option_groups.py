"""Options that several commands share, as groups: a command takes a group as one parameter and shows its options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import get_type_hints

from hf_mamba_prune.command import options as o
from hf_mamba_prune.command.options import DEFAULT
from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.job import EvaluationChoice, ModelChoice, RecoveryChoice
from hf_mamba_prune.measure.zero_shot import ZeroShot
from hf_mamba_prune.publish.hub import PushChoice
from hf_mamba_prune.recipes import find_recipe


@dataclass(frozen=True)
class ModelOptions:
    """Which model."""

    model: o.Model
    revision: o.Revision = None
    dtype: o.Dtype = "auto"
    device: o.Device = "auto"
    tokenizer: o.Tokenizer = None
    no_native: o.NoNative = False

    def choice(self) -> ModelChoice:
        """The same for a job."""
        return ModelChoice(self.model, self.revision, self.dtype, self.device, self.tokenizer, not self.no_native)


@dataclass(frozen=True)
class TextOptions:
    """What a model is measured on."""

    evaluation: o.Texts = None
    column: o.Column = None
    window: o.Window = 2048
    stride: o.Stride = None
    max_windows: o.MaxWindows = None

    def choice(self, skip: bool = False, tasks: ZeroShot | None = None) -> EvaluationChoice:
        """The same for a job; without the texts where they are skipped."""
        texts = () if skip else tuple(self.evaluation or ["wikitext"])
        return EvaluationChoice(texts, self.column, self.window, self.stride, self.max_windows, tasks or ZeroShot())


@dataclass(frozen=True)
class FewTextOptions(TextOptions):
    """The same, by default only the beginning of each text: where a model is measured many times."""

    max_windows: o.MaxWindows = 4


@dataclass(frozen=True)
class TaskOptions:
    """Zero-shot tasks."""

    tasks: o.Tasks = None
    max_examples: o.MaxExamples = None

    def choice(self) -> ZeroShot:
        """The same for an evaluation."""
        return ZeroShot(o.parse_names(self.tasks), self.max_examples)


@dataclass(frozen=True)
class CalibrationOptions:
    """What scores are measured on."""

    calibration: o.Calibration = "wikitext"
    calibration_samples: o.Samples = DEFAULT.calibration_samples
    calibration_length: o.Length = DEFAULT.calibration_length
    seed: o.Seed = DEFAULT.seed


@dataclass(frozen=True)
class PruningOptions:
    """How to prune."""

    sparsity: o.Sparsity = None
    recipe: o.Recipe = "quick"
    pattern: o.Pattern = DEFAULT.pattern
    score: o.RecipeScore = None
    allocation: o.Allocation = None
    alpha: o.Alpha = DEFAULT.alpha
    gradient: o.Gradient = DEFAULT.gradient
    ceiling: o.Ceiling = None
    components: o.Components = None
    component_sparsity: o.ComponentSparsity = None
    schedule: o.Schedule = DEFAULT.schedule
    steps: o.Steps = None
    no_reconstruct: o.NoReconstruct = False
    damping: o.Damping = DEFAULT.damping
    batch_size: o.BatchSize = DEFAULT.batch_size

    def config(self, data: CalibrationOptions) -> PruningConfig:
        """The same as a config.

        Raises:
            ValueError: a number out of range, an unknown name, or options that exclude each other.
        """
        recipe = dict(find_recipe(self.recipe).config)
        recipe |= {"score": self.score} if self.score else {}
        recipe |= {"reconstruct": False} if self.no_reconstruct else {}
        return PruningConfig(
            sparsity=self.sparsity,
            pattern=self.pattern,
            allocation=self.allocation,
            alpha=self.alpha,
            gradient=self.gradient,
            ceiling=self.ceiling,
            components=o.parse_names(self.components),
            component_sparsity=o.parse_shares(self.component_sparsity),
            schedule=self.schedule,
            steps=self.steps,
            damping=self.damping,
            calibration_samples=data.calibration_samples,
            calibration_length=data.calibration_length,
            batch_size=self.batch_size,
            seed=data.seed,
            **recipe,
        )


@dataclass(frozen=True)
class RecoveryOptions:
    """How to train after pruning."""

    recover_steps: o.RecoverSteps = None
    recover_lr: o.RecoverRate = 1e-3
    recover_batch: o.RecoverBatch = 8
    recover_dataset: o.RecoverText = None

    def given(self) -> dict[str, object]:
        """Those beside the number of steps that say something else than their default, by name."""
        return {
            "--recover-lr": self.recover_lr != type(self).recover_lr,
            "--recover-batch": self.recover_batch != type(self).recover_batch,
            "--recover-dataset": self.recover_dataset,
        }

    def choice(self, recipe: str, column: str | None) -> RecoveryChoice | None:
        """The same for a job; None without training.

        Raises:
            ValueError: an unknown recipe, or one without the training that it needs.
        """
        training = find_recipe(recipe).trained(self.recover_steps)
        return training and RecoveryChoice(
            text=self.recover_dataset,
            column=column,
            learning_rate=self.recover_lr,
            batch_size=self.recover_batch,
            **training,
        )


@dataclass(frozen=True)
class PushOptions:
    """Where to publish."""

    repo_id: o.RepoId = None
    private: o.Private = False
    create_pr: o.CreatePr = False
    force: o.Force = False

    def given(self) -> dict[str, object]:
        """Those that say something, by name; `force`, which only permits, is not among them."""
        return {"--repo-id": self.repo_id, "--private": self.private, "--create-pr": self.create_pr}

    def choice(self, revision: str | None, overwrite: bool) -> PushChoice:
        """The same for a push."""
        return PushChoice(self.repo_id, self.private, self.create_pr, revision, overwrite, self.force)


@dataclass(frozen=True)
class OutputOptions:
    """What is printed."""

    as_json: o.Json = False
    quiet: o.Quiet = False
    debug: o.Debug = False


def flattened(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one parameter for each field of the groups that it takes; it is called with the groups."""
    kinds = get_type_hints(command, include_extras=True)
    kinds.pop("return", None)
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if is_dataclass(kinds[name]):
            parameters += _fields(kinds[name])
        else:
            parameters.append(parameter.replace(annotation=kinds[name], kind=inspect.Parameter.KEYWORD_ONLY))

    def flat(**values: object) -> None:
        groups = {
            name: kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            for name, kind in kinds.items()
            if is_dataclass(kind)
        }
        command(**groups, **values)

    flat.__name__, flat.__doc__ = command.__name__, command.__doc__
    flat.__signature__ = inspect.Signature(parameters)
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


def _fields(kind: type) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=hints[field.name],
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
        )
        for field in fields(kind)
    ]
