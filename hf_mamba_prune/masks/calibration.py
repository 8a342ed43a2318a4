"""What does the data say of each weight? Sums over tokens and sequences, gathered in one pass.

Every term of a sum belongs to one token or to one whole sequence, never to a batch, so that neither the batch size nor
(later) the number of ranks changes the result beyond rounding. Only what the score needs is gathered.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_mamba_prune.models.components import Tap
from hf_mamba_prune.models.targets import Target
from hf_mamba_prune.progress import tell, track


class Need(Enum):
    """A sum that a score can ask for."""

    INPUT_SQUARE = "sum over tokens of the squared input"
    INPUT_PRODUCT = "sum over tokens of the input times itself, (in, in)"
    GRADIENT_SUM = "sum over sequences of the gradient"
    GRADIENT_ABSOLUTE = "sum over sequences of the absolute gradient"
    GRADIENT_SQUARE = "sum over sequences of the squared gradient"


GRADIENT_TERMS: dict[Need, Callable[[torch.Tensor], torch.Tensor]] = {
    Need.GRADIENT_SUM: lambda gradient: gradient,
    Need.GRADIENT_ABSOLUTE: torch.abs,
    Need.GRADIENT_SQUARE: torch.square,
}

INPUT_NEEDS = frozenset({Need.INPUT_SQUARE, Need.INPUT_PRODUCT})


@dataclass(kw_only=True)
class TargetStatistics:
    """The sums of one target.

    Input sums are float64. Squares broadcast to (out, in): (1, in) for a linear weight, (channels, taps) for a
    convolution, (channels, 1) for a per-channel factor; products are (in, in), of linear weights only. Gradient sums
    have the weight's shape and are float32: a term is a whole sequence, and over a few thousand of them float32 keeps
    more digits than the gradients themselves have.
    """

    sums: dict[Need, torch.Tensor] = field(default_factory=dict)
    tokens: float = 0
    sequences: float = 0

    def add(self, need: Need, term: torch.Tensor) -> None:
        """Add one term in place."""
        if need in self.sums:
            self.sums[need] += term
        else:
            self.sums[need] = term.clone()

    def fade(self, share: float) -> None:
        """Let a share of what was seen count on beside what will be seen; the means stay."""
        for total in self.sums.values():
            total *= share
        self.tokens *= share
        self.sequences *= share

    def mean_over_tokens(self, need: Need) -> torch.Tensor:
        """The sum divided by the number of tokens seen."""
        return self.sums[need] / self.tokens

    def mean_over_sequences(self, need: Need) -> torch.Tensor:
        """The sum divided by the number of sequences seen."""
        return self.sums[need] / self.sequences


Statistics = dict[str, TargetStatistics]


def calibrate(
    model: PreTrainedModel,
    targets: Sequence[Target],
    sequences: torch.Tensor,
    needs: frozenset[Need],
    batch_size: int = 4,
    bf16: bool = False,
    start: Mapping[str, TargetStatistics] | None = None,
) -> Statistics:
    """Run the sequences through the model and gather what `needs` asks for.

    Args:
        model: a causal language model of a supported type; left as it was found (mode, gradients, hooks).
        targets: whose statistics are wanted.
        sequences: token ids (samples, l), without padding.
        needs: which sums.
        batch_size: sequences per forward pass. Gradients are taken of one sequence at a time, whatever it is.
        bf16: run the model's products in bfloat16; the sums stay as they are.
        start: what the sums go on from, changed in place; None: from nothing.

    Returns:
        Target name -> its statistics; empty when nothing is needed.

    Raises:
        ValueError: a target's component has no input to measure.
        RuntimeError: a target saw no token, or the loss is not finite.
    """
    if not needs:
        return {}
    statistics: Statistics = defaultdict(TargetStatistics, start or {})
    gradient_needs = [need for need in GRADIENT_TERMS if need in needs]
    step = 1 if gradient_needs else batch_size
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        if needs & INPUT_NEEDS:
            stack.enter_context(_input_hooks(model, targets, statistics, needs))
        if gradient_needs:
            stack.enter_context(_gradient_hooks(model, targets, statistics, gradient_needs))
        stack.enter_context(torch.set_grad_enabled(bool(gradient_needs)))
        losses = [
            _run(model, batch.to(model.device), bool(gradient_needs), bf16)
            for batch in track(sequences.split(step), "calibrate", "batch")
        ]
    if gradient_needs:
        tell("calibrate", len(losses), len(losses), loss=sum(filter(None, losses)) / len(losses))
    _refuse_unseen(targets, statistics, needs)
    return dict(statistics)


def _run(model: PreTrainedModel, batch: torch.Tensor, backward: bool, bf16: bool) -> float | None:
    """One pass; with its gradients, the loss."""
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=bf16):
        logits = model(input_ids=batch, use_cache=False).logits
    if not backward:
        return None
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())
    if not torch.isfinite(loss):
        raise RuntimeError(f"the calibration loss is {loss.item()}: the model gives no finite predictions.")
    loss.backward()
    return float(loss.detach())


def _refuse_unseen(targets: Sequence[Target], statistics: Statistics, needs: frozenset[Need]) -> None:
    for target in targets:
        missing = [need.name for need in needs if need not in statistics[target.name].sums]
        if missing:
            raise RuntimeError(
                f"{target.name} saw no token during calibration ({', '.join(missing)}): its row of the architecture "
                "table does not fit this model."
            )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, because in training mode fused kernels pass the taps by; what was on before is put back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def tap_of(target: Target) -> Tap:
    """Where a target's input passes by.

    Raises:
        ValueError: nowhere; names the component.
    """
    if target.tap is None:
        raise ValueError(f"component {target.component!r} has no measurable input: choose a score without one.")
    return target.tap


def check_inputs(targets: Sequence[Target], needs: frozenset[Need]) -> None:
    """Refuse targets whose input is wanted but cannot be measured.

    Raises:
        ValueError: names the component.
    """
    for target in targets if needs & INPUT_NEEDS else ():
        tap_of(target)
        if Need.INPUT_PRODUCT in needs and target.kind != "linear":
            raise ValueError(f"component {target.component!r} is not a linear map: choose a score without products.")


@contextmanager
def _input_hooks(
    model: PreTrainedModel, targets: Sequence[Target], statistics: Statistics, needs: frozenset[Need]
) -> Iterator[None]:
    check_inputs(targets, needs)
    with ExitStack() as stack:
        for target in targets:
            add = partial(_add_input, statistics[target.name], target, needs)
            stack.enter_context(observe(model, tap_of(target), add))
        yield


@contextmanager
def observe(model: nn.Module, tap: Tap, see: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Call `see` with every (b, l, in) tensor that passes the tap, until the context ends; never under autocast."""
    module = model.get_submodule(tap.module)

    def show(x: torch.Tensor) -> None:
        with torch.autocast(x.device.type, enabled=False):
            see(tap.read(x).detach())

    if tap.side == "input":
        handle = module.register_forward_pre_hook(lambda _, args: show(args[0]))
    else:
        handle = module.register_forward_hook(lambda _, args, output: show(output))
    try:
        yield
    finally:
        handle.remove()


def _add_input(statistics: TargetStatistics, target: Target, needs: frozenset[Need], observed: torch.Tensor) -> None:
    statistics.tokens += observed.shape[0] * observed.shape[1]
    if Need.INPUT_PRODUCT in needs:
        for sequence in observed.float():
            statistics.add(Need.INPUT_PRODUCT, (sequence.T @ sequence).double())
    if Need.INPUT_SQUARE in needs:
        statistics.add(Need.INPUT_SQUARE, _squares(target, observed.double()))


def _squares(target: Target, x: torch.Tensor) -> torch.Tensor:
    """Summed squared inputs (b, l, in) of every weight, in a shape that broadcasts to (out, in)."""
    if target.kind == "conv":
        length = x.shape[1]
        return torch.stack([x[:, : max(0, length - lag)].square().sum((0, 1)) for lag in _lags(target)], dim=1)
    squares = x.square().sum((0, 1))
    return squares[:, None] if target.kind == "channel" else squares[None, :]


def _lags(target: Target) -> range:
    """How far back each tap of a causal convolution looks: the last tap sees the present token."""
    return range(target.shape[1] - 1, -1, -1)


@contextmanager
def _gradient_hooks(
    model: PreTrainedModel, targets: Sequence[Target], statistics: Statistics, needs: Sequence[Need]
) -> Iterator[None]:
    """Let gradients flow to the targets only; each is taken and freed as soon as the backward pass has made it."""
    before = {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()}
    with ExitStack() as stack:
        for name, parameter in model.named_parameters():
            stack.callback(_restore, parameter, *before[name])
            parameter.requires_grad_(False)
            parameter.grad = None
        for target in targets:
            watched = model.get_parameter(target.name)
            watched.requires_grad_(True)
            take = _taker(target, statistics[target.name], needs)
            stack.callback(watched.register_post_accumulate_grad_hook(take).remove)
        yield


def _restore(parameter: nn.Parameter, requires_grad: bool, gradient: torch.Tensor | None) -> None:
    parameter.requires_grad_(requires_grad)
    parameter.grad = gradient


def _taker(target: Target, statistics: TargetStatistics, needs: Sequence[Need]) -> Callable[[torch.Tensor], None]:
    def take(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None  # torch calls this when it has just made it
        gradient = parameter.grad.float().view(target.shape)
        parameter.grad = None
        for need in needs:
            statistics.add(need, GRADIENT_TERMS[need](gradient))
        statistics.sequences += 1

    return take
