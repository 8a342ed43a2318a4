"""The task heads in transformers' auto classes, without importing a model until one of them is looked up."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HEADS = {
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING": "ForSequenceClassification",
    "MODEL_FOR_TIME_SERIES_PREDICTION_MAPPING": "ForPrediction",
}
_MODELS = ("Mamba", "Mamba2")


class _Registered(dict[type, type]):
    """What `register` has added to a mapping from config classes to model classes, and the heads of this package.

    To name them, `register` would need their classes, and so the modeling files of transformers: three seconds for
    whoever only wanted to import.
    """

    def __init__(self, registered: dict[type, type], ending: str) -> None:
        super().__init__(registered)
        self._ending = ending

    def __contains__(self, config: object) -> bool:
        name = getattr(config, "__name__", "").removesuffix("Config")
        if not super().__contains__(config) and name in _MODELS and isinstance(config, type):
            head = getattr(import_module("hf_mamba_prune.models.heads"), name + self._ending)
            if head.config_class is config:
                self[config] = head
        return super().__contains__(config)


def register_heads(registries: Any) -> None:
    """Let the auto classes find the heads.

    Args:
        registries: transformers' module of auto models.
    """
    for name, ending in _HEADS.items():
        mapping = getattr(registries, name)
        if not isinstance(mapping._extra_content, _Registered):
            mapping._extra_content = _Registered(mapping._extra_content, ending)
