"""All that is known of a run: the only input of figures, card and Space. No torch here: a report is plain data."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hf_mamba_prune.reading import read_json
from hf_mamba_prune.report.facts import (
    CalibrationFacts,
    Count,
    LanguageMetrics,
    ModelFacts,
    RecoveryFacts,
    RepairFacts,
    RoundingFacts,
    SparsityFacts,
    SpeedFacts,
    StepCost,
    TaskMetrics,
    WidthFacts,
)

REPORT_NAME = "report.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class PruningReport:
    """Everything about one run, as `report.json` holds it.

    Args:
        config: `PruningConfig.to_dict()`.
        command: the command line that repeats the run, None when called from Python.
        model: what was pruned.
        sparsity: what came of it.
        calibration: None when the score needs no data.
        before: metrics of the dense model, one for each text.
        after: the same of the pruned model, in the same order.
        tasks_before: zero-shot tasks of the dense model; empty when none was asked for.
        tasks_after: the same of the pruned model, in the same order.
        reconstruction: of the last pruning step, one for each linear weight; empty when it is off.
        recovery: the training; None when there was none.
        rounding: to few bits; None when there was none.
        speeds: dense and packed side by side; empty when it was not packed.
        costs: seconds and memory of every step.
        versions: of the packages that matter.
        hardware: processor, cores, memory, device, kernels.
        warnings: what did not come out as it should have, or was left out, one sentence each.
    """

    config: dict
    model: ModelFacts
    sparsity: SparsityFacts
    calibration: CalibrationFacts | None
    before: tuple[LanguageMetrics, ...]
    after: tuple[LanguageMetrics, ...]
    costs: tuple[StepCost, ...]
    versions: dict[str, str]
    hardware: dict[str, str | int]
    command: str | None = None
    reconstruction: tuple[RepairFacts, ...] = ()
    recovery: RecoveryFacts | None = None
    rounding: RoundingFacts | None = None
    speeds: tuple[SpeedFacts, ...] = ()
    tasks_before: tuple[TaskMetrics, ...] = ()
    tasks_after: tuple[TaskMetrics, ...] = ()
    warnings: tuple[str, ...] = ()
    format_version: int = field(default=FORMAT_VERSION)

    @property
    def parent(self) -> str:
        """What the model was before, in a word: `dense`, unless a hundredth of what may be pruned was zero already."""
        found = self.sparsity.prunable
        return "dense" if found.zeros_before < 0.01 * found.weights else "parent"

    @property
    def zeros_asked(self) -> bool:
        """Whether the run was for zeros; a run that only rounds may leave some, too."""
        return self.rounding is None or self.sparsity.asked > 0

    @property
    def made(self) -> str:
        """What was done to the model, in a word."""
        return "pruned" if self.zeros_asked else "rounded"

    def perplexity_ratio(self) -> float | None:
        """Perplexity after / before on the first text; None when nothing was evaluated."""
        return self.after[0].perplexity / self.before[0].perplexity if self.before and self.after else None

    def to_dict(self) -> dict:
        """Plain JSON values."""
        return asdict(self)

    def save(self, folder: str | os.PathLike) -> Path:
        """Write `report.json` into an existing folder."""
        path = Path(folder) / REPORT_NAME
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike) -> PruningReport:
        """Read `report.json` of a folder.

        Raises:
            ValueError: there is none, it is of another format, or somebody changed its shape.
        """
        path = Path(folder) / REPORT_NAME
        if not path.is_file():
            raise ValueError(f"{folder} holds no {REPORT_NAME}: it was not written by hf-mamba-prune.")
        values = read_json(path)
        version = values.get("format_version") if isinstance(values, dict) else None
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{path} has format {version!r}; this version reads {FORMAT_VERSION}: "
                "use the version of hf-mamba-prune that wrote it."
            )
        try:
            return cls.from_dict(values)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged: it is not a report as hf-mamba-prune writes it ({error})."
            ) from error

    @classmethod
    def from_dict(cls, values: dict) -> PruningReport:
        """The inverse of `to_dict`."""
        values = dict(values)
        language = tuple(values["model"].get("language", ()))
        values["model"] = ModelFacts(**values["model"] | {"language": language})
        values["sparsity"] = _sparsity_from(values["sparsity"])
        if values["calibration"] is not None:
            values["calibration"] = CalibrationFacts(**values["calibration"])
        if values.get("recovery") is not None:
            values["recovery"] = RecoveryFacts(**values["recovery"])
        if values.get("rounding") is not None:
            values["rounding"] = _rounding_from(values["rounding"])
        kinds = {"before": LanguageMetrics, "after": LanguageMetrics, "costs": StepCost, "reconstruction": RepairFacts}
        kinds |= {"speeds": SpeedFacts, "tasks_before": TaskMetrics, "tasks_after": TaskMetrics}
        for key, kind in kinds.items():
            values[key] = tuple(kind(**item) for item in values.get(key, ()))
        values["warnings"] = tuple(values.get("warnings", ()))
        return cls(**values)


def _sparsity_from(values: dict) -> SparsityFacts:
    values = dict(values)
    for key in ("prunable", "model"):
        values[key] = Count(**values[key])
    for key in ("components", "targets"):
        values[key] = tuple(Count(**item) for item in values[key])
    values["at_ceiling"] = tuple(values["at_ceiling"])
    return SparsityFacts(**values)


def _rounding_from(values: dict) -> RoundingFacts:
    components = (WidthFacts(**own | {"rows": tuple(own["rows"])}) for own in values["components"])
    return RoundingFacts(**values | {"components": tuple(components)})
