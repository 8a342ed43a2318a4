"""What the user asks for: one frozen, validated object that goes through the command, the Trainer and the Space."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from hf_mamba_prune.reading import read_json
from hf_mamba_prune.schedules import SCHEDULES, steps_for

CONFIG_NAME = "pruning_config.json"
SCORE_NAMES = ("magnitude", "gradient-magnitude", "fisher", "wanda", "obs", "random")
ALLOCATION_NAMES = ("uniform", "per-row", "global", "owl", "sensitivity")
GRADIENT_NAMES = ("absolute", "signed")
MEASURE_NAMES = ("training", "calibration")

_TRAINING = ("start", "end", "decay", "regrow", "ce_weight", "kl_weight", "hidden_weight", "temperature")


def closest(kind: str, given: str, known: tuple[str, ...]) -> str:
    """The text of an error for an unknown name, with the nearest right one first."""
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listed = f" Known: {', '.join(known)}." if len(known) <= 25 else ""
    return f"unknown {kind} {given!r}.{hint}{listed}"


@dataclass(frozen=True)
class PruningConfig:
    """How a model is pruned. Every field is plain JSON, so that a saved config repeats the run.

    Args:
        sparsity: share of the prunable weights to set to zero, 0 <= sparsity < 1; default: that of `pattern`, or 0.5.
        bits: per projection weight in the packed file, all told, 0.3 to 6.5: each projection is rounded in the way
            that serves the whole best, its rows to widths of their own or the weights that a mask keeps to one;
            embeddings and head to 3 to 6 bits, which may cost a twentieth of what that does; None: not at all.
        size: of the packed file in bytes, instead of `bits`; all of it is divided where it is worth most.
        zeros: whether `bits` or `size` may choose masks. Without them a packed model decodes faster and, below
            about 2.5 bits, loses more at the same size.
        code_bits: 1 to 4, width of the codes that the kept weights of a sparse model are rounded to, instead of both.
        pattern: `"unstructured"`, or `"N:M"` (keep N of every M neighbours in a row; sets the sparsity itself).
        score: which weight matters, one of `SCORE_NAMES`.
        allocation: where the sparsity goes, one of `ALLOCATION_NAMES`.
        alpha: exponent of the gradient in `gradient-magnitude`, 0 or more; 0 is plain magnitude (arXiv 2505.08299).
        gradient: how gradients are aggregated over sequences in `gradient-magnitude`: the sum of each sequence's
            absolute gradient, or the absolute value of the signed sum.
        ceiling: highest sparsity that a global ranking may give to one tensor, 0 < ceiling <= 1; default: every tensor
            keeps at least a third of the average share, which is 0.9 at a sparsity of 0.7.
        components: the components to prune; empty means the architecture's defaults.
        component_sparsity: fixed sparsity of single components; the others take up the rest, so that the total holds.
        schedule: how the sparsity rises when `steps` > 1, a key of `schedules.SCHEDULES`.
        steps: pruning steps, default 8, more above 70 % (80 %: 12, 90 %: 16), 1 with an N:M pattern. Each measures
            scores on another eighth of the calibration sequences and lets what earlier steps saw count on, and
            reconstructs on another quarter of them; in fewer steps the parts are larger, a single step sees all.
        reconstruct: after each step the kept linear weights take over what the pruned ones did, by least squares, and
            after the last one all that is left but embeddings is tuned, see `repair.tuning`.
        damping: of the least squares, as a share of the mean squared input, 0 or more.
        calibration_samples: number of calibration sequences, at least 1; default, filled in by `for_weights`: 128, and
            64 for a model of more than 64 million weights, whose calibration takes minutes. Tuning reads up to four
            times as many.
        calibration_length: tokens per calibration sequence, at least 2.
        calibration_bf16: run the products of the calibration in bfloat16, whatever the model's dtype; None: on a CPU
            that has instructions for them. Sums and least squares stay float32 and float64.
        batch_size: sequences per forward pass of the calibration; changes speed and memory, never the result.
        start, end: in training, the shares of the run between which the sparsity rises, 0 <= start < end <= 1.
        measure: in training, where scores come from: `"training"`, a decayed average of the training gradients (the
            paper's), or `"calibration"`, a pass over calibration sequences at each pruning step.
        decay: of that average, per optimizer step, 0 <= decay < 1.
        regrow: in training, share of the kept weights that each pruning step but the last exchanges for masked ones
            with a large gradient, 0 <= regrow < 1.
        ce_weight, kl_weight, hidden_weight: weights of a distillation's parts, see `distillation.distill`.
        temperature: of its Kullback-Leibler divergence, above 0.
        seed: seed of every random choice (calibration windows, ties, `random` scores).

    Raises:
        ValueError: a value is out of range, unknown, or contradicts another.
    """

    # None stands for a default that depends on the other fields, which have their values once the object is made, or
    # on the model.
    sparsity: float = None  # type: ignore[assignment]
    bits: float | None = None
    size: int | None = None
    zeros: bool = True
    code_bits: int | None = None
    pattern: str = "unstructured"
    score: str = "fisher"
    allocation: str = None  # type: ignore[assignment]
    alpha: float = 1.0
    gradient: str = "absolute"
    ceiling: float = None  # type: ignore[assignment]
    components: tuple[str, ...] = ()
    component_sparsity: Mapping[str, float] = field(default_factory=dict)
    schedule: str = "cubic"
    steps: int = None  # type: ignore[assignment]
    reconstruct: bool = True
    damping: float = 0.01
    calibration_samples: int = None  # type: ignore[assignment]
    calibration_length: int = 512
    calibration_bf16: bool | None = None
    batch_size: int = 4
    start: float = 0.0
    end: float = 0.5
    measure: str = "training"
    decay: float = 0.95
    regrow: float = 0.0
    ce_weight: float = 0.0
    kl_weight: float = 1.0
    hidden_weight: float = 0.0
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_types()
        self._check_names()
        self._check_numbers()
        n_of_m = self.n_of_m
        sparsity, allocation = self.sparsity, self.allocation
        if n_of_m is not None:
            own = 1 - n_of_m[0] / n_of_m[1]
            if sparsity is not None and not math.isclose(sparsity, own, abs_tol=1e-9):
                raise ValueError(
                    f"pattern {self.pattern} means a sparsity of {own:.4g}, but sparsity is {sparsity}: it keeps "
                    f"{n_of_m[0]} of every {n_of_m[1]} weights, so leave the sparsity out, or the pattern."
                )
            if allocation not in (None, "uniform") or self.component_sparsity:
                raise ValueError(f"pattern {self.pattern} fixes every row: only allocation 'uniform' goes with it.")
            sparsity, allocation = own, "uniform"
        if sparsity is None:
            sparsity = 0.5 if self.bits is None and self.size is None else 0.0
        object.__setattr__(self, "sparsity", float(sparsity))
        if self.steps is None:
            object.__setattr__(self, "steps", 1 if n_of_m else steps_for(self.sparsity))
        if self.ceiling is None:
            object.__setattr__(self, "ceiling", 1 - (1 - self.sparsity) / 3)
        object.__setattr__(self, "allocation", allocation or "global")
        object.__setattr__(self, "components", tuple(self.components))
        object.__setattr__(self, "component_sparsity", dict(self.component_sparsity))

    def for_weights(self, weights: int) -> PruningConfig:
        """With the defaults of a model of so many weights in the place of those that are not given."""
        if self.calibration_samples is not None:
            return self
        return replace(self, calibration_samples=128 if weights <= 64e6 else 64)

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """(N, M) of an N:M pattern, None for unstructured."""
        if self.pattern == "unstructured":
            return None
        found = re.fullmatch(r"(\d+):(\d+)", self.pattern)
        if found is None or not 0 < int(found[1]) < int(found[2]):
            raise ValueError(
                f"pattern is {self.pattern!r}; expected 'unstructured' or N:M with 0 < N < M, like '2:4'."
            )
        return int(found[1]), int(found[2])

    def _check_names(self) -> None:
        choices = (
            ("score", self.score, SCORE_NAMES),
            ("schedule", self.schedule, tuple(SCHEDULES)),
            ("allocation", self.allocation or "global", ALLOCATION_NAMES),
            ("gradient", self.gradient, GRADIENT_NAMES),
            ("measure", self.measure, MEASURE_NAMES),
        )
        for kind, given, known in choices:
            if given not in known:
                raise ValueError(closest(kind, str(given), known))

    def _check_types(self) -> None:
        """What JSON can hold wrongly."""
        number, whole = (int, float), int
        kinds: dict[str, type | tuple[type, ...]] = dict.fromkeys(("pattern", "score", "schedule", "gradient"), str)
        kinds |= dict.fromkeys(("alpha", "damping", *_TRAINING), number) | {"seed": whole, "reconstruct": bool}
        kinds |= {"measure": str, "zeros": bool}
        kinds |= {"components": (list, tuple), "component_sparsity": Mapping}
        kinds |= {} if self.ceiling is None else {"ceiling": number}
        kinds |= {} if self.calibration_bf16 is None else {"calibration_bf16": bool}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                expected = "a number" if kind is number else getattr(kind, "__name__", "a list")
                raise ValueError(f"{name} is {value!r}; expected {expected}.")

    def _check_numbers(self) -> None:
        shares = [("sparsity", self.sparsity)] if self.sparsity is not None else []
        shares += [(f"component_sparsity of {name}", value) for name, value in self.component_sparsity.items()]
        for name, value in shares:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
                raise ValueError(f"{name} is {value}; expected a number from 0 up to, but not including, 1.")
        if self.ceiling is not None and not 0 < self.ceiling <= 1:
            raise ValueError(f"ceiling is {self.ceiling}; expected 0 < ceiling <= 1.")
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise ValueError(f"alpha is {self.alpha}; expected a finite number, 0 or more.")
        if not (math.isfinite(self.damping) and self.damping >= 0):
            raise ValueError(f"damping is {self.damping}; expected a finite number, 0 or more.")
        self._check_training()
        self._check_rounding()
        for name, low in (("steps", 1), ("calibration_samples", 1), ("calibration_length", 2), ("batch_size", 1)):
            value = getattr(self, name)
            if value is None and name in ("steps", "calibration_samples"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{name} is {value}; expected a whole number of at least {low}.")

    def _check_rounding(self) -> None:
        given = [name for name in ("bits", "size", "code_bits") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are two answers to one question: give one of them.")
        for name, low, high in (("bits", 0.3, 6.5), ("code_bits", 1, 4), ("size", 1, 1 << 50)):
            value, kind = getattr(self, name), (int, float) if name == "bits" else int
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high
            ):
                raise ValueError(f"{name} is {value!r}; expected {low} to {high:g}.")
        if not self.zeros and self.bits is None and self.size is None:
            raise ValueError("zeros is False, which is about what bits or size may choose: give one of them.")
        sparse = self.sparsity or self.component_sparsity or self.pattern != "unstructured"
        if given and given != ["code_bits"] and sparse:
            raise ValueError(
                f"{given[0]} says how small the model becomes, and a sparsity or pattern does too: leave out one of "
                "them, or round the kept weights of a sparse model by code_bits (--values int1 to int4)."
            )

    @property
    def rounds(self) -> bool:
        """Whether weights are rounded to few bits."""
        return self.bits is not None or self.size is not None or self.code_bits is not None

    def _check_training(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise ValueError(f"start is {self.start} and end is {self.end}; expected 0 <= start < end <= 1.")
        for name in ("decay", "regrow"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number from 0 up to, not including, 1.")
        weights = self.ce_weight, self.kl_weight, self.hidden_weight
        if not (all(math.isfinite(weight) and weight >= 0 for weight in weights) and sum(weights) > 0):
            raise ValueError(f"ce_weight, kl_weight, hidden_weight are {weights}; expected numbers >= 0, one above 0.")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature is {self.temperature}; expected a finite number above 0.")

    def to_dict(self) -> dict:
        """Plain JSON values; `from_dict` gives an equal config back."""
        return asdict(self) | {"components": list(self.components)}

    @classmethod
    def from_dict(cls, values: Mapping) -> PruningConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: a key is unknown or a value is wrong.
        """
        known = tuple(f.name for f in fields(cls))
        for key in values:
            if key not in known:
                raise ValueError(closest("key of a pruning config", str(key), known))
        return cls(**values)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write `pruning_config.json` into `folder`, which is made when it is missing."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        (Path(folder) / CONFIG_NAME).write_text(text, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, revision: str | None = None) -> PruningConfig:
        """Read the config of a pruned model from a folder or a Hub repository.

        Raises:
            ValueError: the folder or repository has no such file, or it is not a pruning config.
        """
        path: Path | None = Path(source) / CONFIG_NAME
        if not Path(source).is_dir():
            path = _downloaded(str(source), revision)
        if path is None or not path.is_file():
            raise ValueError(f"{source} holds no {CONFIG_NAME}: it was not pruned by hf-mamba-prune.")
        values = read_json(path)
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds a {type(values).__name__}; expected an object.")
        return cls.from_dict(values)


def _downloaded(repo: str, revision: str | None) -> Path | None:
    """The config's file in a Hub repository, None when the repository has none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, CONFIG_NAME, revision=revision))
    except RemoteEntryNotFoundError:
        return None
