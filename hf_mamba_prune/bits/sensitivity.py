"""What a wrong output of a linear map costs: squared gradients of the loss by row, and which tokens they come from.

An error e of output r at token t costs about g^2 e^2 / 2 in nats, where g is the gradient of the token's loss. Labels
are drawn from the model itself, so that the mean of g^2 is the curvature of the divergence to it (the true Fisher
information), and not that of how well it predicts the text. The idea of weighting a layer's Hessian so is that of
GuidedQuant (arXiv 2505.07004).
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
from hf_mamba_prune.progress import track
from hf_mamba_prune.seeds import name_seed

GROUPS = 4
"""Ranges of rows with weights of tokens, and so a Hessian, of their own."""


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Of one target.

    Args:
        rows: (out,) float32, mean of g^2 over tokens, in nats over squared outputs.
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
    return {name: own.sensitivity(sequences.numel()) for name, own in sums.items()}


class _Sums:
    """What was seen of one target.

    A weight that is read without a call of its module is shown its own gradient instead of its outputs': summed over
    a sequence's tokens, whose signs are independent, its square is that of the outputs times that of the inputs.
    """

    def __init__(self, target: Target) -> None:
        self._rows, self._inputs = torch.zeros(target.shape[0]), 0.0
        self._tokens: list[torch.Tensor] = []
        self._shape = target.shape

    def see_output(self, gradient: torch.Tensor) -> None:
        """(b, l, out)"""
        squares = gradient.float().square()
        self._rows += squares.sum((0, 1)).cpu()
        groups = squares.tensor_split(GROUPS, dim=2) if squares.shape[2] >= GROUPS else (squares,)
        self._tokens.append(torch.stack([group.mean(2).cpu() for group in groups]))

    def see_weight(self, parameter: torch.Tensor) -> None:
        """A parameter whose gradient is there."""
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None  # torch calls this when it has just made it
        self._rows += gradient.float().view(self._shape).square().sum(1).cpu()

    def see_input(self, x: torch.Tensor) -> None:
        """(b, l, in) of a weight whose own gradient is shown."""
        self._inputs += float(x.float().square().sum())

    def sensitivity(self, seen: int) -> Sensitivity:
        """After `seen` tokens."""
        if not self._tokens:
            return Sensitivity(rows=self._rows / max(self._inputs, 1e-30), tokens=None)
        tokens = torch.cat(self._tokens, dim=1)
        means = tokens.mean((1, 2), keepdim=True).clamp_min(1e-30)
        return Sensitivity(rows=self._rows / seen, tokens=tokens / means)


def _run(model: PreTrainedModel, batch: torch.Tensor, generator: torch.Generator, bf16: bool) -> None:
    """The gradients of the summed loss of labels that the model drew."""
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=bf16):
        logits = model(input_ids=batch, use_cache=False).logits
    scores = logits.flatten(0, 1).float()
    with torch.no_grad():
        shares = scores.softmax(1)
        if not torch.isfinite(shares).all():
            raise RuntimeError("the model gives no finite predictions on the calibration text.")
        labels = torch.multinomial(shares.cpu(), 1, generator=generator)[:, 0].to(scores.device)
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
            if target.called:
                module = model.get_submodule(target.name.removesuffix(".weight"))
                stack.callback(module.register_forward_hook(_output_hook(own)).remove)
            else:
                weight = model.get_parameter(target.name).requires_grad_(True)
                stack.callback(weight.register_post_accumulate_grad_hook(own.see_weight).remove)
                stack.enter_context(observe(model, tap_of(target), own.see_input))
        yield


def _output_hook(own: _Sums) -> Callable:
    def show(_: nn.Module, __: object, output: torch.Tensor) -> None:
        output.register_hook(own.see_output)

    return show
