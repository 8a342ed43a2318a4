"""Embeddings and head in few bits: a head is repaired on what it sees, rows that are only looked up have no inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mamba_prune.codings.blobs import BlobHead, to_blob
from hf_mamba_prune.codings.grids import coded_tensor
from hf_mamba_prune.codings.tensors import PackedTensor, pack_tensor, unpack_tensor
from hf_mamba_prune.masks.calibration import evaluation_mode
from hf_mamba_prune.masks.sensitivity import mean_loss
from hf_mamba_prune.native.codes import bytes_of_rows
from hf_mamba_prune.repair.levels import level_table
from hf_mamba_prune.repair.rounding import round_weight

WIDTH = 6
"""Bits where no size says otherwise: on a trained model 6 cost 0.0013 nats a token, 5 cost 0.005 and 4 cost 0.016."""
_WIDTHS = (4, 5, 6, None)
_SEEN, _ROWS = 8, 4096
_DAMPING = 1.0
"""Much, as a tied head's rows are also looked up. Of 0.1, 0.3, 1 and 30 it loses least at 6 bits: 0.0013 nats per
token of another text, where nearest levels lose 0.0019."""
_ENTRY, _FILLED = 220, 620
"""Bytes that the header and index of a file take for a tensor, and with what fills up its parts for a packed one."""


@dataclass(frozen=True, kw_only=True)
class OuterWeights:
    """How all that is no projection of a block is held.

    Args:
        tensors: embeddings and head by parameter name; empty where they stay as they are.
        bits: width of their codes, None where they stay.
        file_bytes: of a packed checkpoint without its projections' codes.
        rise: of the loss by them, nats per token; 0 where it was not measured.
    """

    tensors: Mapping[str, PackedTensor]
    bits: int | None
    file_bytes: int = 0
    rise: float = 0.0

    @classmethod
    def choices(cls, model: PreTrainedModel, dtype: torch.dtype, sequences: torch.Tensor) -> Iterator[OuterWeights]:
        """One after the other, each measured on the first sequences."""
        dense = mean_loss(model, sequences[:_SEEN])
        parameters, seen = _parameters(model), _head_inputs(model, sequences)
        others = _other_bytes(model, dtype)
        for bits in _WIDTHS:
            tensors = {
                name: _rounded(weight, seen.get(name), bits, dtype)
                for name, weight in parameters.items()
                if bits is not None
            }
            held = tensors or {name: pack_tensor(weight.detach().to(dtype)) for name, weight in parameters.items()}
            before = {name: weight.detach().clone() for name, weight in parameters.items()}
            try:
                for name, packed in tensors.items():
                    parameters[name].data.copy_(unpack_tensor(packed))
                rise = mean_loss(model, sequences[:_SEEN]) - dense if tensors else 0.0
            finally:
                for name, weight in before.items():
                    parameters[name].data.copy_(weight)
            size = others + sum(to_blob(packed).numel() for packed in held.values())
            yield cls(tensors=tensors, bits=bits, file_bytes=size, rise=rise)


def outer_weights(model: PreTrainedModel, dtype: torch.dtype, sequences: torch.Tensor) -> OuterWeights:
    """Embeddings and head in codes of the default width."""
    seen = _head_inputs(model, sequences)
    tensors = {name: _rounded(weight, seen.get(name), WIDTH, dtype) for name, weight in _parameters(model).items()}
    return OuterWeights(tensors=tensors, bits=WIDTH)


def least_bytes(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """What a packed file takes beside its projections, with embeddings and head in the narrowest codes.

    Args:
        model: may be on the meta device.
        dtype: of all that is not packed.
    """
    bits = torch.tensor([min(bits for bits in _WIDTHS if bits is not None)])
    whole = 0
    for weight in _parameters(model).values():
        rows, columns = weight.shape
        count = rows * int(bytes_of_rows(columns, bits))
        head = BlobHead(shape=(rows, columns), dtype="float32", coding="mixed", masked=False, count=count)
        whole += head.starts()[-1]
    return _other_bytes(model, dtype) + whole


def _parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Embeddings and head, a tied pair once, by name."""
    wanted = {id(model.get_input_embeddings().weight)}
    head = model.get_output_embeddings()
    if head is not None:
        wanted.add(id(head.weight))
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in wanted}


def _other_bytes(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """What a packed file holds beside linear maps and embeddings."""
    whole = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding)}
    own = [parameter for parameter in model.parameters() if id(parameter) not in whole]
    maps = sum(isinstance(module, nn.Linear) for module in model.modules())
    return sum(parameter.numel() for parameter in own) * dtype.itemsize + maps * _FILLED + len(own) * _ENTRY


@torch.no_grad()
def _head_inputs(model: PreTrainedModel, sequences: torch.Tensor) -> dict[str, torch.Tensor]:
    """(in, in), E[x x^T] over tokens of the first sequences, under the name of the head's weight."""
    head = model.get_output_embeddings()
    if head is None:
        return {}
    sums, count = torch.zeros(head.weight.shape[1], head.weight.shape[1]), 0

    def see(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        nonlocal count
        x = arguments[0].detach().flatten(0, -2).float().cpu()
        sums.addmm_(x.T, x)
        count += len(x)

    handle = head.register_forward_pre_hook(see)
    try:
        with evaluation_mode(model):
            for batch in sequences[:_SEEN].split(1):
                model(input_ids=batch.to(model.device), use_cache=False)
    finally:
        handle.remove()
    return {name: sums / count for name, own in _parameters(model).items() if own is head.weight}


def _rounded(weight: torch.Tensor, hessian: torch.Tensor | None, bits: int, dtype: torch.dtype) -> PackedTensor:
    rows, columns = weight.shape
    system = (torch.eye(columns) if hessian is None else hessian)[None]
    codes, scales = torch.empty(weight.shape, dtype=torch.uint8), torch.empty(rows, dtype=torch.bfloat16)
    widths = torch.full((rows,), bits, dtype=torch.uint8)
    for first in range(0, rows, _ROWS):
        own = slice(first, first + _ROWS)
        found = round_weight(weight[own].detach().float().cpu(), system, widths[own], _DAMPING, by_column=False)
        codes[own], scales[own] = found.codes, found.scales
    return coded_tensor(codes, widths, level_table(), scales=scales, column_scales=None, dtype=dtype)
