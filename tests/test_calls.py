"""Calls have names: what goes from module to module says what it is, and no call has many arguments without names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hf_mamba_prune

PACKAGE = Path(hf_mamba_prune.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
MOST = 5
"""Positional arguments of a call; a starred one counts as one."""

BY_POSITION = {"PruningConfig", "TextSource", "Evaluation", "PredictionOutput"}
"""Dataclasses that the README shows by position, and one of transformers' outputs, which must be indexable."""


def trees() -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES]


def crowded(tree: ast.AST) -> list[int]:
    """Lines of calls with too many positional arguments."""
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) > MOST]


def dataclasses_of(tree: ast.AST) -> dict[str, bool]:
    """Name -> whether it is made by keywords only."""
    found = {}
    for node in ast.walk(tree):
        for decorator in node.decorator_list if isinstance(node, ast.ClassDef) else ():
            name = ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator)
            if name == "dataclass":
                keywords = decorator.keywords if isinstance(decorator, ast.Call) else []
                found[node.name] = any(k.arg == "kw_only" and ast.unparse(k.value) == "True" for k in keywords)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_call_has_six_positional_arguments(path):
    assert not crowded(ast.parse(path.read_text(encoding="utf-8"))), "give the rest of them their names"


def test_dataclasses_are_made_with_names():
    found: dict[str, bool] = {}
    for _, tree in trees():
        found |= dataclasses_of(tree)
    assert {name for name, named in found.items() if not named} == BY_POSITION


def test_the_test_sees_what_it_should():
    assert crowded(ast.parse("f(1, 2, 3, 4, 5)\nf(1, 2, 3, 4, 5, 6)\nf(1, 2, 3, 4, 5, *x)\nf(*x, a=1)")) == [2, 3]
    code = "@dataclass(frozen=True, kw_only=True)\nclass A: pass\n@dataclass\nclass B: pass\n"
    assert dataclasses_of(ast.parse(code)) == {"A": True, "B": False}
