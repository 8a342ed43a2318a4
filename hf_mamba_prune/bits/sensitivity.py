"""What a wrong output of a linear map costs: squared gradients of the loss by row, and which tokens they come from.

A change v of row r of a weight costs about E[(G v)^2] / 2 in nats, where G is the gradient of a sequence's loss with
respect to the row: a sum over its tokens, whose terms add up where an error is carried on by the state. Beside what
the same change makes of the outputs, E[(v x)^2], that is what a squared error of an output costs. Labels are drawn
from the model itself, so that all this is the curvature of the divergence to it (the true Fisher information), and not
that of how well it predicts the text. Weighting the tokens of a layer's Hessian by the squared gradients of its
outputs is the idea of GuidedQuant (arXiv 2505.07004).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_mamba_prune.masks.calibration import evaluation_mode, observe, tap_of
from hf_mamba_prune.models.targets import Target
from hf_mamba_prune.native.memory import give_freed_memory_back
from hf_mamba_prune.progress import track
from hf_mamba_prune.seeds import name_seed

GROUPS = 4
"""Ranges of rows with weights of tokens, and so a Hessian, of their own, where a weight has rows enough for them."""


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Of one target.

    Args:
        rows: (out,) float32, twice the nats per token that a squared error of the row's output costs, as a mean over
            the directions of the input.
        tokens: (groups, samples, l) float32, mean of g^2 over the rows of a group, relative to its mean over tokens;
            groups are ranges of rows as near to one size as may be. None where the target is no module that is called,
            so that its outputs pass by nowhere.
    """

    rows: torch.Tensor
    tokens: torch.Tensor | None


def measure_sensitivity(
    model: PreTrainedModel, targets: Sequence[Target], sequences: torch.Tensor, seed: int, bf16: bool = False
) -> dict[str, Sensitivity]:
    """Run the sequences forward and back, one at a time.

    Args:
        model: a causal language model of a supported type; left as it was found.
        targets: linear maps.
        sequences: token ids (samples, l), without padding.
        seed: of the labels.
        bf16: run the model's products in bfloat16.

    Returns:
        By target name.

    Raises:
        RuntimeError: the loss is not finite.
    """
    sums = {target.name: _Sums(target) for target in targets}
    generator = torch.Generator().manual_seed(name_seed("labels", seed))
    with evaluation_mode(model), _watched(model, targets, sums):
        for batch in track(sequences.split(1), "sensitivity", "sequence"):
            _run(model, batch.to(model.device), generator, bf16)
    give_freed_memory_back()  # what follows needs other sizes
    return {name: own.sensitivity() for name, own in sums.items()}


class _Sums:
    """What was seen of one target."""

    def __init__(self, target: Target) -> None:
        self._weights, self._inputs = torch.zeros(target.shape), torch.zeros(target.shape[1])
        self._tokens: list[torch.Tensor] = []
        self._shape = target.shape

    def see_output(self, gradient: torch.Tensor) -> None:
        """(b, l, out)"""
        groups = GROUPS if GROUPS * self._shape[0] >= self._shape[1] else 1
        parts = gradient.float().square().tensor_split(groups, dim=2)
        self._tokens.append(torch.stack([part.mean(2).cpu() for part in parts]))

    def see_weight(self, parameter: torch.Tensor) -> None:
        """A parameter whose gradient over one sequence is there."""
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None  # torch calls this when it has just made it
        gradient = gradient.float().view(self._shape).cpu()
        self._weights.addcmul_(gradient, gradient)

    def see_input(self, x: torch.Tensor) -> None:
        """(b, l, in)"""
        self._inputs += x.float().square().sum((0, 1)).cpu()

    def sensitivity(self) -> Sensitivity:
        """Of all that was seen."""
        seen = self._inputs > 0
        rows = (self._weights[:, seen] / self._inputs[seen]).mean(1) if seen.any() else torch.zeros(self._shape[0])
        if not self._tokens:
            return Sensitivity(rows=rows, tokens=None)
        tokens = torch.cat(self._tokens, dim=1)
        means = tokens.mean((1, 2), keepdim=True).clamp_min(1e-30)
        return Sensitivity(rows=rows, tokens=tokens / means)


def _run(model: PreTrainedModel, batch: torch.Tensor, generator: torch.Generator, bf16: bool) -> None:
    """The gradients of the summed loss of labels that the model drew."""
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=bf16):
        logits = model(input_ids=batch, use_cache=False).logits
    scores = logits.flatten(0, 1).float()
    with torch.no_grad():
        sums = scores.softmax(1).cumsum_(1).cpu()
        if not torch.isfinite(sums[:, -1]).all():
            raise RuntimeError("the model gives no finite predictions on the calibration text.")
        drawn = torch.rand(len(sums), 1, generator=generator) * sums[:, -1:]
        labels = torch.searchsorted(sums, drawn).clamp_max_(sums.shape[1] - 1)[:, 0].to(scores.device)
    F.cross_entropy(scores, labels, reduction="sum").backward()


@contextmanager
def _watched(model: PreTrainedModel, targets: Sequence[Target], sums: Mapping[str, _Sums]) -> Iterator[None]:
    """Gradients flow from the embeddings on; those of the targets' outputs are shown."""
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with ExitStack() as stack:
        for name, parameter in model.named_parameters():
            stack.callback(parameter.requires_grad_, before[name])
            parameter.requires_grad_(False)
        source = model.get_input_embeddings()
        stack.callback(source.register_forward_hook(lambda _, __, output: output.requires_grad_(True)).remove)
        for target in targets:
            own = sums[target.name]
            weight = model.get_parameter(target.name).requires_grad_(True)
            stack.callback(weight.register_post_accumulate_grad_hook(own.see_weight).remove)
            stack.enter_context(observe(model, tap_of(target), own.see_input))
            if target.called:
                module = model.get_submodule(target.name.removesuffix(".weight"))
                stack.callback(module.register_forward_hook(_output_hook(own)).remove)
        yield


def _output_hook(own: _Sums) -> Callable:
    def show(_: nn.Module, __: object, output: torch.Tensor) -> None:
        output.register_hook(own.see_output)

    return show
