"""Recipes: which score, reconstruction and training go together."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from hf_mamba_prune.config import closest

_NONE: MappingProxyType = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a name stands for.

    Args:
        config: fields of the `PruningConfig` that differ from its defaults.
        training: arguments of `RecoveryChoice`; 0 steps: none.
        least_steps: of the training, below which the recipe makes no sense.
    """

    config: MappingProxyType
    training: MappingProxyType
    least_steps: int = 0

    def trained(self, steps: int | None) -> dict[str, object] | None:
        """Arguments of `RecoveryChoice`, None without training.

        Args:
            steps: None: the recipe's own.

        Raises:
            ValueError: too few.
        """
        values = dict(self.training) | ({} if steps is None else {"steps": steps})
        if values["steps"] < self.least_steps:
            raise ValueError(f"{steps} training steps are too few: this recipe needs at least {self.least_steps}.")
        return values if values["steps"] else None


RECIPES = {
    "quick": Recipe(config=_NONE, training=MappingProxyType({"steps": 0})),
    # Distillation alone never passes the dense model; with a share of the text's own loss 500 steps do, up to 60 %.
    "standard": Recipe(
        config=MappingProxyType({"ce_weight": 0.5}), training=MappingProxyType({"steps": 500, "distill": True})
    ),
    "paper": Recipe(
        config=MappingProxyType({"score": "gradient-magnitude", "reconstruct": False}),
        training=MappingProxyType({"steps": 500, "distill": False, "gradual": True}),
        least_steps=1,
    ),
}


def find_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in RECIPES:
        raise ValueError(closest("recipe", name, tuple(RECIPES)))
    return RECIPES[name]
