"""JSON and YAML from anywhere, read in one way: bounded in size and depth, and whatever is wrong is one sentence.

What a stranger wrote may be nested a million deep: Python's parsers, and all that copies or writes the values later,
would end in "maximum recursion depth exceeded".
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

MOST_DEPTH = 100
"""Lists and objects inside one another; configs, indices and tokenizers have fewer than ten."""
MOST_BYTES = 256 << 20
"""Of one JSON file: the largest tokenizers have some thirty million."""
MOST_CARD_BYTES = 1 << 18
"""Of a card's front matter, which a parser in Python takes seconds for."""

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


def parse_json(text: str | bytes, what: str) -> Any:
    """The value that a JSON text holds.

    Args:
        text: UTF-8.
        what: names it in the error.

    Raises:
        ValueError: it is not JSON, or is nested deeper than `MOST_DEPTH`.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(_too_deep(what)) from error
    except ValueError as error:  # also UnicodeDecodeError
        raise ValueError(f"{what} is not JSON: {error}.") from error
    opened = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if opened > MOST_DEPTH and _depth_above(value, MOST_DEPTH):
        raise ValueError(_too_deep(what))
    return value


def read_json(path: Path, what: str | None = None) -> Any:
    """The value that a JSON file holds.

    Args:
        path: of the file, which exists.
        what: names it in the error; default: its path.

    Raises:
        ValueError: see `parse_json`; or it is larger than `MOST_BYTES`.
    """
    what = what or str(path)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{what} has {path.stat().st_size:,} bytes; expected {MOST_BYTES:,} at most.")
    return parse_json(path.read_bytes(), what)


def read_front_matter(path: Path) -> dict[str, Any]:
    """What stands between the first two lines `---` of a card; empty where a card begins otherwise.

    Raises:
        ValueError: it is not YAML, not a mapping, too long, or nested deeper than `MOST_DEPTH`.
    """
    import yaml

    with path.open("rb") as file:
        head = file.read(MOST_CARD_BYTES + 1)
    try:
        text = head.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        if len(head) <= MOST_CARD_BYTES or error.start < MOST_CARD_BYTES - 4:
            raise ValueError(f"{path.name} is not UTF-8: {error}.") from error
        text = head[: error.start].decode("utf-8-sig").replace("\r\n", "\n")
    if not text.startswith("---\n"):
        return {}
    found = re.match(r"---\n(.*?)^---[ \t]*$", text, flags=re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError(f"{path.name} has a front matter without an end in its first {MOST_CARD_BYTES:,} bytes.")
    try:
        values = yaml.load(found[1], Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except RecursionError as error:
        raise ValueError(_too_deep(path.name)) from error
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(
            f"{path.name} has a front matter that is not YAML: {' '.join(str(error).split())}."
        ) from error
    if values is not None and not isinstance(values, dict):
        raise ValueError(f"{path.name} has a front matter that is a {type(values).__name__}; expected a mapping.")
    if _depth_above(values, MOST_DEPTH):
        raise ValueError(_too_deep(path.name))
    return values or {}


def _too_deep(what: str) -> str:
    return f"{what} is nested more than {MOST_DEPTH} deep, which nothing that is meant to be read is."


def _depth_above(value: object, limit: int) -> bool:
    """Whether lists and mappings stand more than `limit` deep in one another; level by level, without recursion."""
    level, seen = [value], set()
    for _ in range(limit + 1):
        below: list[object] = []
        for item in level:
            if isinstance(item, list | dict) and id(item) not in seen:  # YAML can name one part many times
                seen.add(id(item))
                below += item.values() if isinstance(item, dict) else item
        level = [item for item in below if isinstance(item, list | dict)]
        if not level:
            return False
    return True


def is_word(value: object) -> bool:
    """Whether a value may stand as a license or language in a card: a short identifier, not somebody's text."""
    return isinstance(value, str) and _WORD.fullmatch(value) is not None
