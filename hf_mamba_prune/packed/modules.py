"""The modules that hold packed weights, a linear map and an embedding, and the parameter that both hold. On a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from hf_mamba_prune.codings.blobs import from_blob
from hf_mamba_prune.codings.storage import in_memory
from hf_mamba_prune.native.checks import tracks
from hf_mamba_prune.native.packed import MatrixModule, PackedMatrix
from hf_mamba_prune.native.tiles import product, transposed_product


class PackedWeight(nn.Parameter):
    """A blob as the parameter that modules call `weight`: memory, copies and files hold the bytes.

    Stock's mixers and heads read three things of a weight and must find those of the matrix (out, in): its size, its
    dtype, which is that of the activations, and its product by `@`. A tied head holds the same object.
    """

    def __new__(cls, blob: torch.Tensor, requires_grad: bool = False) -> PackedWeight:
        weight = super().__new__(cls, blob, False)
        weight.matrix  # noqa: B018  # refuses what is no packed weight
        return weight

    @property
    def matrix(self) -> PackedMatrix:
        """What the kernels compute on; read and checked anew when the bytes were exchanged."""
        blob = self.detach()
        state = blob.data_ptr(), blob.numel(), 0 if self.is_inference() else self._version
        if self.__dict__.get("_state") != state:
            self._matrix = from_blob(blob).matrix()
            self._state = state
        return self._matrix

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return torch.float32

    def size(self, dim: int | None = None) -> Any:
        shape = torch.Size(self.matrix.shape)
        return shape if dim is None else shape[dim]

    def numel(self) -> int:
        """Of the matrix, zeros too; `nelement`, `nbytes` and `element_size` are those of the bytes."""
        return self.size().numel()

    def __matmul__(self, steps: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """(..., in, l) -> (..., out, l), a transposed view of (..., l, out) memory, as the scan reads it."""
        dense = self.matrix.rows(0, self.size(0), torch.bfloat16 if steps.dtype == torch.bfloat16 else torch.float32)
        return F.linear(steps.transpose(-1, -2), dense.to(steps.dtype)).transpose(-1, -2)

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        return memo.setdefault(id(self), PackedWeight(self.detach().clone()))

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return PackedWeight, (self.detach(),)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PackedWeight({tuple(self.size())}, {self.matrix.dtype}, {self.matrix.count:,} kept)"


class _Product(torch.autograd.Function):
    """x W^T with gradients of x alone: the weight stays as it is."""

    @staticmethod
    def forward(ctx: Any, vectors: torch.Tensor, matrix: PackedMatrix) -> torch.Tensor:
        ctx.matrix, ctx.dtype = matrix, vectors.dtype
        return product(matrix, vectors)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return transposed_product(ctx.matrix, gradients[0]).to(ctx.dtype), None


class _Holder(MatrixModule):
    """What both modules do with the bytes under their weight's name."""

    weight: Any  # a PackedWeight, and before it is loaded a parameter of as many bytes

    @property
    def matrix(self) -> PackedMatrix:
        """What the kernels compute on."""
        return self.weight.matrix

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        moved = fn(torch.zeros(1))
        if moved.device.type != "cpu" or moved.dtype != torch.float32:
            raise RuntimeError(
                f"a packed model runs on the CPU with float32 activations, not as {moved.dtype} on {moved.device}: "
                "call dequantize() first, or load it with quantization_config=PackedConfig(unpack=True)"
            )
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: Any) -> None:
        """Other bytes of the same matrix, which may be fewer or more."""
        name, (metadata, strict, missing, unexpected, errors) = f"{prefix}weight", rest
        others = {key: value for key, value in state_dict.items() if key != name}
        absent: list[str] = []
        super()._load_from_state_dict(
            others, prefix, metadata, strict, missing_keys=absent, unexpected_keys=unexpected, error_msgs=errors
        )
        missing.extend(key for key in absent if key != name or name not in state_dict)
        if name in state_dict:
            try:
                loaded = PackedWeight(in_memory(state_dict[name].detach().clone()))
                if loaded.size() != self.weight.size():
                    raise ValueError(f"it is {tuple(loaded.size())}, expected {tuple(self.weight.size())}")
            except ValueError as error:
                errors.append(f"{name}: {error}")
            else:
                self.weight.data = loaded.data


class PackedLinear(_Holder, nn.Linear):
    """`nn.Linear` on a packed weight.

    Args:
        like: the module in whose place it stands.
        weight: its bytes, or on the meta device as many as will be loaded.
    """

    def __init__(self, like: nn.Linear, weight: nn.Parameter):
        nn.Module.__init__(self)
        self.in_features, self.out_features = like.in_features, like.out_features
        self.weight = weight
        self.bias = like.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out). A few tokens, and all with codes, from what is held; others by unpacked tiles."""
        vectors = x.reshape(-1, self.in_features)
        out = _Product.apply(vectors, self.matrix) if tracks(vectors) else product(self.matrix, vectors)
        if self.bias is not None:
            out = out + self.bias if tracks(out, self.bias) else out.add_(self.bias)
        return out.view(*x.shape[:-1], self.out_features)


class PackedEmbedding(_Holder):
    """`nn.Embedding` on a packed weight (vocabulary, d_model); transformers must not resize it as one."""

    def __init__(self, like: nn.Embedding, weight: nn.Parameter):
        super().__init__()
        self.num_embeddings, self.embedding_dim = like.num_embeddings, like.embedding_dim
        self.weight = weight

    @torch.no_grad()
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 (...) -> (..., d_model) float32."""
        return self.matrix.take(ids)


def packed_like(module: nn.Linear | nn.Embedding, weight: nn.Parameter) -> PackedLinear | PackedEmbedding:
    """The packed counterpart of a linear map or an embedding."""
    return PackedEmbedding(module, weight) if isinstance(module, nn.Embedding) else PackedLinear(module, weight)


def packed_modules(model: nn.Module) -> dict[str, PackedLinear | PackedEmbedding]:
    """Those of a model, by name."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, PackedLinear | PackedEmbedding)
    }
