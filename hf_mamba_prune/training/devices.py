"""Ways of training, on one device or many, under which masks would not hold: refused before the first step."""

from __future__ import annotations

import os

from accelerate.utils import DistributedType
from transformers import TrainingArguments

DIVIDED = (
    "FSDP2 divides the weights of a model, and those that were rounded to few bits are trained whole on every device: "
    "use DDP, or one process."
)


def _fsdp_version(args: TrainingArguments) -> int:
    """Of the arguments, or else of `accelerate launch`, which hands it on so and takes 1 where nothing is said."""
    return args.fsdp_plugin_args["fsdp_version"] if args.fsdp else int(os.environ.get("FSDP_VERSION", "1"))


def check_grids(args: TrainingArguments) -> None:
    """Refuse ways of training under which weights that were rounded to few bits would leave their grids.

    Raises:
        ValueError: says what to use instead.
    """
    if args.distributed_state.distributed_type == DistributedType.FSDP or args.fsdp:
        raise ValueError(DIVIDED)
    if args.load_best_model_at_end:
        raise ValueError(
            "load_best_model_at_end puts back the weights of an earlier step without the scales of their grids: leave "
            "it out for a model that was rounded to few bits."
        )


def check_arguments(args: TrainingArguments) -> None:
    """Refuse optimizers and ways of training on many devices that would break the masks.

    Raises:
        ValueError: says what to use instead.
    """
    kind = args.distributed_state.distributed_type
    optimizer = str(getattr(args.optim, "value", args.optim))
    if optimizer.startswith("schedule_free"):
        raise ValueError(
            f"optim={optimizer!r} puts weights of its own into the model for each evaluation, without the masks: use "
            "another optimizer, such as adamw_torch."
        )
    if args.n_gpu > 1:
        raise ValueError(
            "nn.DataParallel copies the model at each step: start with `accelerate launch` (DDP) instead."
        )
    if kind == DistributedType.DEEPSPEED or args.deepspeed:
        raise ValueError("DeepSpeed keeps weights of its own beside the model's: use DDP through `accelerate launch`.")
    if (kind == DistributedType.FSDP or args.fsdp) and _fsdp_version(args) != 2:
        raise ValueError(
            "FSDP1 flattens the weights, and masks have no place in what comes out: use FSDP2 (`fsdp_version: 2` in "
            "the config of accelerate, or `fsdp_config={'fsdp_version': 2}`), or DDP."
        )
