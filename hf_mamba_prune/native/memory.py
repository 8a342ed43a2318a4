"""What one training step frees stays with the process for the next: mapping it anew takes a tenth of the step.

glibc gives blocks back to the system as soon as they are freed, where they are larger than any before them or lie at
the end of its memory. With the GNU C library only, and not where the environment sets its thresholds.
"""

import os

from hf_mamba_prune.native.library import available, kernels

VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")

_kept = False


def keep_freed_memory() -> None:
    """Called with every scan that has gradients; does nothing where memory is kept already."""
    global _kept
    if _kept or not available() or any(name in os.environ for name in VARIABLES):
        return
    kernels().keep_freed_memory(keep=True)
    _kept = True


def give_freed_memory_back() -> None:
    """Ends it until the next such scan, and gives back what is free now."""
    global _kept
    if _kept:
        kernels().keep_freed_memory(keep=False)
        _kept = False


def give_back_what_loading_freed() -> None:
    """Loading frees in many pieces, and what is freed so stays with the process until it is asked for."""
    if available():
        kernels().give_memory_back()
