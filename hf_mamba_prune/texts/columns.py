"""Which column of a data set is its text, chosen once, and what a value of it says."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import pyarrow

Kind = Literal["text", "list", "chat"]
Record = tuple[str, Mapping[str, Any]]
"""(where it stands, as errors say it; its values by column)."""

_SEEN = 100
"""Records that are looked at before a column is chosen, where no schema says what they hold."""
_SPEAKER, _SAID = ("role", "from"), ("content", "value")


def texts_of(records: Iterable[Record], wanted: str | None, where: str, numbers: bool = True) -> Iterator[str]:
    """The texts of records without a schema: the same column of all, a missing value is an empty text.

    Args:
        records: of one file or data set.
        wanted: the column; None: see `choose`.
        where: the source, for errors.
        numbers: whether numbers are told from texts; False in a file of nothing but texts, where they are by their
            looks.

    Raises:
        ValueError: no such column, none or several that could be the text, or a value that is no text.
    """
    source = iter(records)
    first = list(itertools.islice(source, _SEEN))
    if not first:
        return
    kinds: dict[str, Kind] = {}
    for name in dict.fromkeys(name for _, record in first for name in record):
        values = [value for _, record in first if (value := record.get(name)) is not None]
        kind: Kind | None = _kind_of(values[0]) if values else "text" if name == "text" else None
        if kind and (numbers or name == wanted or not all(_is_number(value) for value in values)):
            kinds[name] = kind
    column = choose(kinds, wanted, where)
    for place, record in itertools.chain(first, source):
        yield text_of(record.get(column), place, column)


def choose(kinds: Mapping[str, Kind], wanted: str | None, where: str) -> str:
    """The column that holds the text: the wanted one; `text`; the only chat; the only text; the only list of texts.

    Raises:
        ValueError: there is no such column, or not one that could be meant.
    """
    if wanted is not None:
        if wanted not in kinds:
            raise ValueError(f"{where} has no text column {wanted!r}; it has: {', '.join(kinds) or 'none'}.")
        return wanted
    if "text" in kinds:
        return "text"
    for kind in ("chat", "text", "list"):
        found = [name for name, own in kinds.items() if own == kind]
        if len(found) == 1:
            return found[0]
        if found:
            break
    raise ValueError(f"{where} has {len(kinds)} text columns ({', '.join(kinds)}): name one with --column.")


def kinds_of(schema: pyarrow.Schema) -> dict[str, Kind]:
    """The columns of a schema that could be a text."""
    found = ((field.name, _kind_of_type(field.type)) for field in schema)
    return {name: kind for name, kind in found if kind is not None}


def _kind_of_type(kind: pyarrow.DataType) -> Kind | None:
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    if str(kind) in ("string", "large_string", "string_view"):
        return "text"
    if not str(kind).startswith(("list", "large_list", "fixed_size_list")):
        return None
    item = kind.value_type
    if pyarrow.types.is_struct(item):
        names = {item.field(i).name for i in range(item.num_fields)}
        return "chat" if names & {*_SPEAKER} and names & {*_SAID} else None
    return "list" if _kind_of_type(item) == "text" else None


def _kind_of(value: object) -> Kind | None:
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(item, str) for item in value):
        return "list"
    return "chat" if all(isinstance(item, dict) and _said(item) is not None for item in value) else None


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return str(value).strip() == ""
    return True


def _said(message: Mapping[str, Any]) -> str | None:
    """What a message of a chat says; None where it is none."""
    if not any(name in message for name in _SPEAKER):
        return None
    value = next((message[name] for name in _SAID if name in message), None)
    if isinstance(value, list):  # parts, of which pictures say nothing
        value = "\n".join(
            part["text"] for part in value if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return value if isinstance(value, str) else "" if value is None else None


def text_of(value: object, place: str, column: str) -> str:
    """One value as a text: lines of a list one below the other, messages of a chat a blank line apart.

    Raises:
        ValueError: it is none of these.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        said = [item if isinstance(item, str) else _said(item) if isinstance(item, dict) else None for item in value]
        if None not in said:
            parts = [str(part) for part in said]
            return ("\n" if all(isinstance(item, str) for item in value) else "\n\n").join(parts)
    raise ValueError(f"{place}: the column {column!r} holds a {type(value).__name__}; expected a text.")
