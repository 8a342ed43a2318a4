"""Options that belong together, as groups: a command takes a group as one parameter and shows its options.

Nothing heavy is imported here: the command shows its help and refuses wrong options before torch is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_mamba_prune.command import options as o
from hf_mamba_prune.command.options import DEFAULT
from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.recipes import find_recipe
from hf_mamba_prune.reproduce.methods import METHODS


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model."""

    model: o.Model
    revision: o.Revision = None
    dtype: o.Dtype = "auto"
    device: o.Device = "auto"
    tokenizer: o.Tokenizer = None
    no_native: o.NoNative = False


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """What a model is measured on."""

    evaluation: o.Texts = None
    column: o.Column = None
    window: o.Window = 2048
    stride: o.Stride = None
    max_windows: o.MaxWindows = None


@dataclass(frozen=True, kw_only=True)
class FewTextOptions(TextOptions):
    """The same, by default only the beginning of each text: where a model is measured many times."""

    max_windows: o.MaxWindows = 4


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Zero-shot tasks."""

    tasks: o.Tasks = None
    max_examples: o.MaxExamples = None


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """What scores are measured on."""

    calibration: o.Calibration = "wikitext"
    calibration_samples: o.Samples = DEFAULT.calibration_samples
    calibration_length: o.Length = DEFAULT.calibration_length
    seed: o.Seed = DEFAULT.seed


@dataclass(frozen=True, kw_only=True)
class PruningOptions:
    """How to prune."""

    sparsity: o.Sparsity = None
    bits: o.Bits = None
    size: o.Size = None
    no_zeros: o.NoZeros = False
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
        self._refuse_idle()
        recipe = dict(find_recipe(self.recipe).config)
        recipe |= {"score": self.score} if self.score else {}
        recipe |= {"reconstruct": False} if self.no_reconstruct else {}
        # None leaves a default to the config, which depends on its other fields or on the model.
        given: dict[str, Any] = {
            "sparsity": self.sparsity,
            "bits": self.bits,
            "size": o.parse_size("--size", self.size),
            "allocation": self.allocation,
            "ceiling": self.ceiling,
            "steps": self.steps,
            "calibration_samples": data.calibration_samples,
        }
        return PruningConfig(
            zeros=not self.no_zeros,
            pattern=self.pattern,
            alpha=self.alpha,
            gradient=self.gradient,
            components=o.parse_names(self.components),
            component_sparsity=o.parse_shares(self.component_sparsity),
            schedule=self.schedule,
            damping=self.damping,
            calibration_length=data.calibration_length,
            batch_size=self.batch_size,
            seed=data.seed,
            **given,
            **recipe,
        )

    def _refuse_idle(self) -> None:
        """Refuse, beside a budget, options that only say how weights become zero.

        Raises:
            ValueError: one is given.
        """
        names = ("score", "allocation", "alpha", "gradient", "ceiling", "schedule", "steps", "no_reconstruct")
        given = [f"--{n.replace('_', '-')}" for n in names if getattr(self, n) != getattr(type(self), n)]
        budget = not (self.bits is None and self.size is None)
        if self.no_zeros and not budget:
            raise ValueError("--no-zeros is about what --bits and --size may choose: give one of them.")
        if given and budget:
            raise ValueError(
                f"{', '.join(given)} says how weights become zero, and --bits and --size choose that themselves: "
                "leave it out, or give a --sparsity with --values int1 to int4 instead."
            )


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Where to publish."""

    repo_id: o.RepoId = None
    private: o.Private = False
    create_pr: o.CreatePr = False
    force: o.Force = False

    def given(self) -> dict[str, object]:
        """Those that say something, by name; `force`, which only permits, is not among them."""
        return {"--repo-id": self.repo_id, "--private": self.private, "--create-pr": self.create_pr}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a pruning leaves its result, and where and whether it runs."""

    no_evaluation: o.NoEvaluation = False
    max_hours: o.MaxHours = 4.0
    output: o.Output = None
    overwrite: o.Overwrite = False
    pack: o.Pack = False
    values: o.Values = "auto"
    push: o.Push = False
    push_revision: o.PushBranch = None
    on_hub: o.OnHub = None
    dry_run: o.DryRun = False

    def rounded(self, config: PruningConfig) -> PruningConfig:
        """The config, with the width of codes that `--values` asks for.

        Raises:
            ValueError: unknown values, or a budget asks for something else.
        """
        known = ("auto", "int8", *o.CODED_VALUES)
        if self.values not in (*known, "rounded"):
            raise ValueError(f"--values is {self.values!r}; expected one of {', '.join(known)}.")
        width = o.CODED_VALUES.get(self.values)
        if config.rounds and self.values not in ("auto", "rounded"):
            budget = "--bits" if config.bits is not None else "--size"
            raise ValueError(
                f"{budget} and --values {self.values} are two answers to one question: give {budget} alone, or "
                "--values with a --sparsity."
            )
        if not config.rounds and self.values == "rounded":
            raise ValueError("--values rounded is what --bits and --size pack: give one of them, or leave it out.")
        return config if width is None else replace(config, code_bits=width)


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is printed."""

    as_json: o.Json = False
    quiet: o.Quiet = False
    debug: o.Debug = False


@dataclass(frozen=True, kw_only=True)
class AnalysisOptions:
    """What an analysis does beside measuring."""

    levels: o.Levels = "0.1,0.3,0.5,0.7,0.9"
    score: o.ScoreName = DEFAULT.score
    output: o.AnalysisOutput = None


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """What is packed, how, and where to."""

    model: o.Model
    values: o.PackedValues = "auto"
    revision: o.Revision = None
    dtype: o.Dtype = "auto"
    tokenizer: o.Tokenizer = None
    output: o.PackedOutput = None
    overwrite: o.Overwrite = False


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """What is written with which model."""

    model: o.Model
    prompt: o.Prompt
    max_new_tokens: o.NewTokens = 100
    temperature: o.Temperature = 0.0
    top_k: o.TopK = 50
    seed: o.Seed = 0
    threads: o.Threads = None
    revision: o.Revision = None
    dense: o.Dense = False
    no_native: o.NoNative = False
    debug: o.Debug = False


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What is timed."""

    model: o.Model
    values: o.PackedValues = "auto"
    new_tokens: o.NewTokens = 64
    threads: o.Threads = None
    revision: o.Revision = None
    no_stock: o.NoStock = False


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions:
    """Which benchmark of the paper, and how much of it."""

    task: o.TaskName
    data: o.DataFolder = Path("data")
    output: o.ResultsFolder = Path("reproduced")
    sparsities: o.Sparsities = "0.5,0.6,0.7,0.8"
    methods: o.Methods = ",".join(METHODS)
    scale: o.ScaleName = "small"
    seeds: o.Seeds = 3
    no_components: o.NoComponents = False
