"""What the card of a model says of it: license and languages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hf_mamba_prune.reading import is_word, read_front_matter


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Of a model's card.

    Args:
        license: its identifier, None without one.
        language: codes.
        left_out: why the card, or a part of it, was not read; empty where all was.
    """

    license: str | None = None
    language: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def read_card(folder: Path) -> CardFacts:
    """License and languages in the front matter of `README.md`; a card that cannot be read is left out."""
    path = folder / "README.md"
    if not path.is_file():
        return CardFacts()
    try:
        found = read_front_matter(path)
    except (ValueError, OSError) as error:
        return CardFacts(left_out=(f"The card of the base model was left out: {error}",))
    license, language = found.get("license"), found.get("language")
    languages = language if isinstance(language, list) else [language]
    known = tuple(word for word in languages if isinstance(word, str) and is_word(word))
    left = [
        f"The {name} that the base model's card names was left out: it is not an identifier."
        for name, wrong in (
            ("license", license is not None and not is_word(license)),
            ("language", language is not None and len(known) < len(languages)),
        )
        if wrong
    ]
    return CardFacts(license=license if is_word(license) else None, language=known, left_out=tuple(left))
