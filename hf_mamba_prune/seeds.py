"""Seeds of random choices: the same for the same name, on every machine."""

from __future__ import annotations

import hashlib


def name_seed(name: str, seed: int) -> int:
    """A 63-bit number that is the same on every machine for the same name and seed."""
    digest = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
