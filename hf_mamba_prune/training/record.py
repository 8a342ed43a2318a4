"""What a training by `PruningTrainer` did, as a report: the card of `push_to_hub` is made of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from transformers import PreTrainedModel

from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.files.origin import Origin, model_facts, shown_name
from hf_mamba_prune.hub_answers import UNREADABLE
from hf_mamba_prune.measure.counting import ZeroCounter
from hf_mamba_prune.measure.environment import hardware
from hf_mamba_prune.measure.versions import versions
from hf_mamba_prune.publish.extras import write_extras
from hf_mamba_prune.report import PruningReport, RecoveryFacts, SparsityFacts, TaskMetrics
from hf_mamba_prune.training.gradual import GradualPruner

if TYPE_CHECKING:
    from hf_mamba_prune.training.trainer import PruningTrainer


class TrainingRecord:
    """Notes what a model is before the training; writes report, figures and card after it.

    Args:
        model: a transformers model of a supported type, not wrapped.
        config: how it is pruned.
        pruner: its masks.
    """

    def __init__(self, model: PreTrainedModel, config: PruningConfig, pruner: GradualPruner) -> None:
        self._config = config
        name = model.name_or_path or type(model).__name__
        self._id = name
        self._facts = model_facts(model, Origin(id=name))
        self._zeros = ZeroCounter(model, pruner.targets)

    def count(self, pruner: GradualPruner) -> SparsityFacts:
        """The zeros now; where FSDP2 divides the weights, every rank must ask."""
        at_ceiling = pruner.budget.at_ceiling if pruner.budget else ()
        return self._zeros.facts(pruner.model, self._config.sparsity, pruner.masked(), at_ceiling)

    def write(
        self,
        trainer: PruningTrainer,
        sparsity: SparsityFacts,
        license: str | None = None,
        language: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
    ) -> PruningReport:
        """Write `report.json`, the figures and the card into the trainer's output folder.

        Args:
            trainer: after the training.
            sparsity: what `count` found.
            license: default: that of the base model's repository.
            language: of the model.
            dataset: that it was trained on; default: what a data set of the Hub says of itself.
        """
        facts = self._facts
        languages = (language,) if isinstance(language, str) else tuple(language or ())
        from_hub, found = _repository(self._id)
        report = PruningReport(
            config=self._config.to_dict(),
            model=replace(facts, license=license or found, language=languages, from_hub=from_hub),
            sparsity=sparsity,
            calibration=None,
            before=(),
            after=(),
            costs=(),
            versions=versions(),
            hardware=hardware(trainer.args.device),
            recovery=_training(trainer, dataset),
            tasks_after=_evaluations(trainer),
        )
        folder = Path(str(trainer.args.output_dir))
        return write_extras(folder, report, trainer.hub_model_id)


def _training(trainer: PruningTrainer, dataset: str | list[str] | None) -> RecoveryFacts | None:
    """The training, None when no loss was logged."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if not losses:
        return None
    names = [shown_name(name) for name in ([dataset] if isinstance(dataset, str) else dataset or [])]
    names = names or [getattr(getattr(trainer.train_dataset, "info", None), "dataset_name", None) or ""]
    return RecoveryFacts(
        text=", ".join(names),
        steps=trainer.state.global_step,
        tokens=int(trainer.state.num_input_tokens_seen),
        learning_rate=trainer.args.learning_rate,
        distilled=getattr(trainer, "teacher", None) is not None,
        gradual=bool(trainer.pruner.events),
        first_loss=losses[0],
        last_loss=losses[-1],
    )


def _evaluations(trainer: PruningTrainer) -> tuple[TaskMetrics, ...]:
    """The last loss on the evaluation set, or that of the best model where the trainer went back to it."""
    state = trainer.state
    found = [entry for entry in state.log_history if "eval_loss" in entry]
    if not found:
        return ()
    ended = max((at for at, entry in enumerate(state.log_history) if "train_runtime" in entry), default=0)
    asked_since = any("eval_loss" in entry for entry in state.log_history[ended:])
    if trainer.args.load_best_model_at_end and state.best_model_checkpoint and not asked_since:
        found = [entry for entry in found if entry["step"] == state.best_global_step]
    examples = round(found[-1].get("eval_samples_per_second", 0) * found[-1].get("eval_runtime", 0))
    return (
        TaskMetrics(
            task="evaluation set",
            metric="loss",
            value=found[-1]["eval_loss"],
            standard_error=None,
            examples=examples,
            higher_is_better=False,
        ),
    )


def _repository(model: str) -> tuple[bool, str | None]:
    """Whether a model's name is a repository that the Hub has, and the license that its card names."""
    if Path(model).is_dir():
        return False, None
    try:
        card = HfApi().model_info(model).card_data
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx2.TransportError, *UNREADABLE):
        return False, None
    found = None if card is None else card.get("license")
    return True, found if isinstance(found, str) else None
