"""What others named (folders, columns, licenses, users) as it may leave the program: to a terminal or into a card.

Everything for people passes here once: `command.console` and the command's error line use `for_terminal`, the card's
template runs every value through `for_markdown` unless it stands in code. Machines read JSON, which escapes itself.
"""

from __future__ import annotations

import re
from urllib.parse import quote

_CONTROL = r"\x00-\x08\x0b-\x1f\x7f-\x9f"
_UNSEEN = "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff"
"""Turns the direction of a line, ends it, or is no character at all: bytes of a file name that are not UTF-8."""

_NOT_FOR_TERMINALS = re.compile(f"[{_CONTROL}{_UNSEEN}]")
_NOT_FOR_TEXT = re.compile(rf"[{_CONTROL}\t\n{_UNSEEN}]+")
_MARKS = re.compile(r"([\\`*\[\]<>|~&])")
_OUTER_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_BLOCK = re.compile(r"^(#|[-+=](?=\s|[-+=]|$)|\d+(?=[.)](\s|$)))")
_LINK = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*)(:)(?=//)|\b(www)(\.)")


class Plain(str):
    """Text that is escaped for where it stands: the card's template leaves it alone."""


def for_terminal(text: str) -> str:
    """Text in which control characters, but newline and tab, are spelled: `\\x1b` moves no cursor.

    Args:
        text: of any origin.
    """
    return _NOT_FOR_TERMINALS.sub(lambda found: _spelled(found[0]), text)


def _spelled(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def in_line(value: object) -> str:
    """A value as one line without control characters, for front matter and code."""
    return " ".join(_NOT_FOR_TEXT.sub(" ", str(value)).split(" ")).strip()


def for_markdown(value: object) -> str:
    """A value as one line of Markdown that reads as it is: no heading, link, table cell, code or HTML of its own."""
    if isinstance(value, Plain):
        return value
    text = _MARKS.sub(r"\\\1", re.sub(r" +", " ", in_line(value)))
    text = _OUTER_UNDERSCORE.sub(r"\\_", text)
    text = _LINK.sub(lambda found: "\\".join(part for part in found.groups() if part), text)
    return _BLOCK.sub(lambda found: f"\\{found[1]}" if not found[1].isdigit() else f"{found[1]}\\", text)


def for_code(value: object) -> Plain:
    """A value inside code: one line, which cannot end a fence or an inline span."""
    return Plain(in_line(value).replace("`", "'"))


def for_string(value: object) -> Plain:
    """A value between the double quotes of a Python string."""
    return Plain(for_code(value).replace("\\", "\\\\").replace('"', '\\"'))


def for_address(value: object) -> Plain:
    """A Hub id as a part of an address."""
    return Plain(quote(in_line(value), safe="/"))
