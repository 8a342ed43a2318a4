"""Which files of a result folder this tool wrote: nothing else is ever replaced."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from hf_mamba_prune.report import REPORT_NAME

_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
_MODEL = (
    "config.json", "generation_config.json", "model.safetensors", "model-?????-of-?????.safetensors",
    "model.safetensors.index.json", "packed-?????-of-?????.safetensors", "packed.json", *_TOKENIZER,
)  # fmt: skip
_OWN = (
    REPORT_NAME, "README.md", "pruning_config.json", "figures/sparsity.png", "figures/quality.png", *_MODEL,
    *(f"packed/{name}" for name in _MODEL),
)  # fmt: skip


def foreign_files(folder: Path) -> list[str]:
    """Files, links and empty folders within a folder that no result has, by their path in it, sorted."""
    found = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir())
    ]
    return sorted(name for name in found if not any(fnmatchcase(name, own) for own in _OWN) and name != "figures")


def named(files: list[str]) -> str:
    """The first few, for a sentence."""
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(files[:3]) + more
