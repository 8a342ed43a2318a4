"""The bar of this package, on standard error, in place of the Trainer's."""

from __future__ import annotations

from transformers import TrainerCallback

from hf_mamba_prune.progress import tell, track


class TrainingBar(TrainerCallback):
    """Shows steps and loss of a training.

    Args:
        what: is going on.
    """

    def __init__(self, what: str) -> None:
        self._what = what

    def on_train_begin(self, args, state, control, **rest) -> None:
        self._bar = track(range(state.max_steps), self._what, "step")

    def on_step_end(self, args, state, control, **rest) -> None:
        self._bar.update()
        tell(self._what, state.global_step, state.max_steps)

    def on_log(self, args, state, control, logs=None, **rest) -> None:
        if logs is not None and "loss" in logs:
            self._bar.set_postfix(loss=f"{logs['loss']:.3f}")
            heard = {name: logs[name] for name in ("loss", "sparsity") if name in logs}
            tell(self._what, state.global_step, state.max_steps, **heard)

    def on_train_end(self, args, state, control, **rest) -> None:
        self._bar.close()
