"""How a packed model is described in its config.json, and what a reader may choose."""

from __future__ import annotations

from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_mamba_prune.codings.tensors import DTYPES

METHOD = "hf-mamba-prune"
VERSION = 6
READABLE = (2, 3, 4, 5, 6)
"""Versions of the format that are read: 3 added codes of a few bits, 4 changed the order of those under masks, 5
changed what codes of 5 bits stand for, 6 deflates what files hold."""
CHOICES = ("auto", "int8", "rounded")


class PackedConfig(QuantizationConfigMixin):
    """The packed form as a quantization method of transformers.

    Args:
        values: of the kept weights when a dense model is packed: `auto` as they are, `int8`, with one scale a row, or
            `rounded`, the codes of the levels that pruning rounded them to.
        unpack: for loading. True gives the dense model, bit for bit what was packed (int8: rounded). False keeps the
            weights packed. None keeps them packed where kernels run them faster than dense ones, on a CPU.
        version: of the format.
        dtype: of the weights that were packed, `bfloat16` for instance. Activations are float32 while they are packed.
        sha256: of the index in the shards, which holds the checksum of every tensor and what the kernels rely on.

    Raises:
        ValueError: another version, or a field or value that there is not.
    """

    def __init__(
        self,
        values: str = "auto",
        unpack: bool | None = None,
        version: int = VERSION,
        dtype: str | None = None,
        sha256: str | None = None,
        quant_method: str = METHOD,
        **unknown: Any,
    ):
        if version not in READABLE:
            raise ValueError(
                f"the checkpoint is of version {version!r} of the packed format and this is {VERSION}: install a "
                "version of hf-mamba-prune that reads it"
            )
        known = quant_method == METHOD and unpack in (None, True, False) and dtype in (None, *DTYPES)
        if unknown or not known:
            shown = unknown or {"quant_method": quant_method, "unpack": unpack, "dtype": dtype}
            raise ValueError(f"a packed model's quantization_config does not take {shown}")
        check_values(values)
        self.quant_method = METHOD  # type: ignore[assignment]  # transformers' own methods are an enum
        self.values, self.version, self.dtype, self.sha256 = values, version, dtype, sha256
        self.unpack = unpack

    @property
    def dequantize(self) -> bool:
        """transformers' own word for `unpack`: it then forgets, after loading, that the model was packed."""
        return bool(self.unpack)

    def get_loading_attributes(self) -> dict[str, bool | None]:
        """What `from_pretrained(quantization_config=...)` takes from the reader and not from the checkpoint."""
        return {"unpack": self.unpack}

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds."""
        return {name: value for name, value in vars(self).items() if name != "unpack"}


def check_values(values: str) -> None:
    """Raises ValueError unless `values` is one of `CHOICES`."""
    if values not in CHOICES:
        raise ValueError(f"values of a packed checkpoint are {values!r}; expected one of {', '.join(CHOICES)}")
