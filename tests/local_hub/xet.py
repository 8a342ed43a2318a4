"""The content store of the Hub as hf_xet speaks to it: a token for it, xorbs of chunks, and shards that name files.

Layouts are those of the public Xet specification. Chunks come as they are, without compression: the environment of
:func:`client.environment` asks hf_xet for that.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .access import readable, require_user
from .wire import Answer, HubError, Request

if TYPE_CHECKING:
    from . import LocalHub

TOKEN_SECONDS = 3600
ENTRY = 48
HASH = 32
BOOKEND = b"\xff" * HASH
WITH_VERIFICATION, WITH_METADATA = 1 << 31, 1 << 30


def write_token(hub: LocalHub, request: Request) -> Answer:
    """GET /api/{kind}/{repo}/xet-write-token/{rev}: where the store is, and a token that only it takes"""
    readable(hub, request)
    user = require_user(request)
    if user.role != "write":
        raise HubError(403, "You must use a write token to upload to a repository.")
    store, token, end = hub.store_url or f"{hub.storage_url}/cas", f"xet-{user.name}", int(time.time()) + TOKEN_SECONDS
    hub.store_tokens[token] = user.token
    headers = {"X-Xet-Cas-Url": store, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(end)}
    return Answer.json({"casUrl": store, "accessToken": token, "exp": end}, headers=headers)


def known_chunk(hub: LocalHub, request: Request) -> Answer:
    """GET /cas/v1/chunks/{prefix}/{hash}: no chunk was ever seen elsewhere"""
    raise HubError(404, "This chunk is not known.")


def upload_xorb(hub: LocalHub, request: Request) -> Answer:
    """POST /cas/v1/xorbs/{prefix}/{hash}"""
    hub.xorbs[request.params["hash"]] = list(chunks(request.body.read()))
    return Answer.json({"was_inserted": True})


def upload_shard(hub: LocalHub, request: Request) -> Answer:
    """POST /cas/v1/shards: its files are put together from xorbs, and kept where LFS objects lie"""
    for sha256, parts in files(request.body.read()):
        if any(xorb not in hub.xorbs for xorb, _, _ in parts):
            raise HubError(400, "A file of the shard has parts that were not sent.")
        content = [b"".join(hub.xorbs[xorb][first:end]) for xorb, first, end in parts]
        found, _ = hub.blobs.receive(content)
        if found != sha256:
            raise HubError(400, "The content's SHA-256 is not the one announced.")
    return Answer.json({"result": 1})


def chunks(xorb: bytes) -> Iterator[bytes]:
    """Yield the chunks of a serialized xorb: each has a version, its size (3 bytes), a scheme, its size unpacked."""
    at = 0
    while at + 8 <= len(xorb):
        if xorb[at] != 0:  # what follows the chunks is not needed
            return
        size, scheme = int.from_bytes(xorb[at + 1 : at + 4], "little"), xorb[at + 4]
        if scheme:
            raise HubError(400, f"The local store unpacks nothing, and a chunk came with scheme {scheme}.")
        yield xorb[at + 8 : at + 8 + size]
        at += 8 + size


def files(shard: bytes) -> Iterator[tuple[str, list[tuple[str, int, int]]]]:
    """Yield the SHA-256 of each file of a shard and its parts: (xorb, first chunk, end chunk)."""
    at = ENTRY
    while shard[at : at + HASH] != BOOKEND:
        flags, count = struct.unpack_from("<II", shard, at + HASH)
        parts = []
        for i in range(count):
            entry = at + (1 + i) * ENTRY
            first, end = struct.unpack_from("<II", shard, entry + HASH + 8)
            parts.append((hex_hash(shard[entry : entry + HASH]), first, end))
        at += (1 + count + (count if flags & WITH_VERIFICATION else 0)) * ENTRY
        if not flags & WITH_METADATA:
            raise HubError(400, "A file of the shard has no SHA-256.")
        yield hex_hash(shard[at : at + HASH]), parts
        at += ENTRY


def hex_hash(value: bytes) -> str:
    """Return a hash as the store writes it: four little-endian numbers of 64 bits."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", value))
