"""What a visitor asks for. Everything that comes from outside is checked here, before anything else sees it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from hf_mamba_prune import (
    RECIPES,
    EvaluationChoice,
    ModelChoice,
    PruningConfig,
    PruningJob,
    RecoveryChoice,
    demo,
)

BUNDLED = "mamba-wiki-3m"
KNOWN = (BUNDLED, "state-spaces/mamba-130m-hf", "state-spaces/mamba-370m-hf", "AntonV/mamba2-130m-hf")
TEXTS = {"bundled Wikipedia": str(demo.CALIBRATION), "WikiText-103": "wikitext"}
STEPS = 120
"""Of a training here: a few minutes of a small model."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_FOLDER = re.compile(r"(?<![\w:/])(?:/[\w.@%+~-]+){2,}/?")
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{16,}")


class Refusal(ValueError):
    """A request that is not carried out; says why, and never repeats what was written."""


def refuse_tokens(*texts: str) -> None:
    """Nobody should type a secret into a text field.

    Raises:
        Refusal: somebody did.
    """
    if any(_TOKEN.search(text) for text in texts):
        raise Refusal("That looks like an access token. Never paste one here: sign in instead, and revoke this one.")


def check_id(text: str) -> str:
    """The id of a model, or the name of the bundled one.

    Raises:
        Refusal: neither.
    """
    if not isinstance(text, str):
        raise Refusal("Expected a model's id, like state-spaces/mamba-130m-hf.")
    refuse_tokens(text)
    text = text.strip()
    if text == BUNDLED:
        return text
    if not _ID.fullmatch(text) or ".." in text or "--" in text or text.endswith((".git", ".")):
        raise Refusal("That is no model's id. Expected user/name, like state-spaces/mamba-130m-hf.")
    if Path(text).exists():
        raise Refusal("That is no model on the Hub.")
    return text


def sentence(error: BaseException, model: str) -> str:
    """An error of the package for the visitor, without folders of this machine."""
    text = _FOLDER.sub("its folder", str(error).replace(str(demo.MODEL), BUNDLED))
    text = " ".join(text.split()) or type(error).__name__
    return (text if text.startswith(model) else text[:1].upper() + text[1:])[:600]


def source_of(model: str) -> str:
    """What the package loads: a Hub id, or the folder of the bundled model."""
    return str(demo.MODEL) if model == BUNDLED else model


@dataclass(frozen=True)
class Order:
    """One pruning.

    Args:
        model: Hub id, or `BUNDLED`.
        sparsity: of the prunable weights, 0.1 to 0.9.
        recipe: `quick`, `standard` or `paper`.
        text: a key of `TEXTS`, which scores are measured on and training reads.
        samples: sequences of 512 tokens of it, 8 to 256.
        seed: of every random choice.

    Raises:
        Refusal: a value is out of range or unknown.
    """

    model: str = BUNDLED
    sparsity: float = 0.7
    recipe: str = "quick"
    text: str = "bundled Wikipedia"
    samples: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", check_id(self.model))
        for name, value, low, high in (
            ("sparsity", self.sparsity, 0.1, 0.9),
            ("samples", self.samples, 8, 256),
            ("seed", self.seed, 0, 2**31 - 1),
        ):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise Refusal(f"The {name} must be a number from {low:g} to {high:g}.")
        object.__setattr__(self, "samples", int(self.samples))
        object.__setattr__(self, "seed", int(self.seed))
        for name, value, known in (("recipe", self.recipe, RECIPES), ("text", self.text, TEXTS)):
            if not isinstance(value, str) or value not in known:
                raise Refusal(f"The {name} must be one of: {', '.join(known)}.")

    @property
    def name(self) -> str:
        """Of the result: `mamba-130m-hf-pruned-70`."""
        return f"{self.model.split('/')[-1]}-pruned-{round(100 * self.sparsity)}"

    def config(self) -> PruningConfig:
        """How to prune."""
        fields = RECIPES[self.recipe].config
        return PruningConfig(self.sparsity, calibration_samples=self.samples, seed=self.seed, **fields)

    def recovery(self) -> RecoveryChoice | None:
        """How to train afterwards; None: not at all."""
        training = RECIPES[self.recipe].trained(None if self.recipe == "quick" else STEPS)
        return training and RecoveryChoice(**training)

    def arguments(self) -> list[str]:
        """Of the command that does the same elsewhere."""
        parts = [self.model, "--sparsity", f"{self.sparsity:g}", "--recipe", self.recipe]
        parts += ["--calibration-samples", str(self.samples), "--seed", str(self.seed), "--pack", "--values", "int8"]
        return [*parts, *(("--recover-steps", str(STEPS)) if self.recipe != "quick" else ())]

    def job(self, output: Path) -> PruningJob:
        """The whole run, from the model's name to a folder."""
        return PruningJob(
            model=ModelChoice(source=source_of(self.model), device="cpu"),
            config=self.config(),
            output=output,
            calibration=TEXTS[self.text],
            evaluation=EvaluationChoice(texts=(str(demo.EVALUATION),)),
            command=shlex.join(["hf-mamba-prune", *self.arguments()]),
            recovery=self.recovery(),
            pack="int8",
        )
