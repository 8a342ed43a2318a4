"""Native CPU kernels for Mamba and Mamba-2, and their pure-torch twins: the one door to both."""

from hf_mamba_prune.native.conv import causal_conv1d
from hf_mamba_prune.native.decode import causal_conv1d_update, chunk_state_update, selective_state_update
from hf_mamba_prune.native.library import (
    active_instruction_set,
    available,
    force_instruction_set,
    info,
    instruction_sets,
)
from hf_mamba_prune.native.magnitudes import between, keep_above, radix_histogram, range_histogram, tie_positions
from hf_mamba_prune.native.plug import NativeHandle, plugged, use_native
from hf_mamba_prune.native.scan import chunk_scan, selective_scan

__all__ = [
    "NativeHandle",
    "active_instruction_set",
    "available",
    "between",
    "causal_conv1d",
    "causal_conv1d_update",
    "chunk_scan",
    "chunk_state_update",
    "force_instruction_set",
    "info",
    "instruction_sets",
    "keep_above",
    "plugged",
    "radix_histogram",
    "range_histogram",
    "selective_scan",
    "selective_state_update",
    "tie_positions",
    "use_native",
]
