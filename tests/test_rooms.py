"""Every room imports only from the rooms below it, the ground stays light, and files and functions stay small."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hf_mamba_prune

NAME = "hf_mamba_prune"
PACKAGE = Path(hf_mamba_prune.__file__).parent
ROOT = PACKAGE.parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
PYTHON = SOURCES + [path for folder in ("tests", "benchmarks", "space_app") for path in (ROOT / folder).rglob("*.py")]
NATIVE = sorted(path for path in (PACKAGE / "native" / "src").rglob("*") if path.suffix in (".h", ".cpp"))

GROUND = {"config", "schedules", "recipes", "report", "progress", "reading", "seeds", "hub_answers"}
"""What stands at the package's top and needs neither torch nor transformers."""

STORY = {"pruning", "job", "plan"}

MAY_IMPORT = {
    "demo": set(),
    "models": GROUND,
    "texts": GROUND,
    "native": GROUND | {"models"},
    "masks": GROUND | {"models", "native"},
    "codings": GROUND | {"models", "native"},
    "packed": GROUND | {"models", "native", "codings"},
    "repair": GROUND | {"models", "masks", "native"},
    "bits": GROUND | {"models", "masks", "native", "codings", "repair"},
    "files": GROUND | {"models", "codings", "packed"},
    "measure": GROUND | {"models", "texts", "masks", "native", "packed"},
    "publish": GROUND | {"texts", "measure"},
    "training": GROUND | {"models", "texts", "masks", "native", "codings", "repair", "files", "measure", "publish"},
    "pruning": GROUND | {"models", "texts", "masks", "native", "files", "measure", "repair", "bits", "training"},
    "plan": GROUND | {"models", "texts", "masks", "repair", "bits", "measure", "pruning"},
    "job": GROUND
    | {"models", "texts", "masks", "native", "packed", "files", "measure", "publish", "training", "demo"}
    | {"pruning", "plan"},
    "reproduce": GROUND | {"models", "texts", "masks", "native", "measure", "training", "demo"},
}
"""What each room, and each module of the story, may import; inside a room and inside the ground all may."""

EVERYTHING = {"command", "registration", "__init__", "__main__"}

ONLY_IN = {"accelerate": {"training"}, "gradio": set(), "typer": {"command"}}
HEAVY = {"transformers", "datasets", "evaluate", "huggingface_hub"}
NOT_IN = {name: HEAVY - {"huggingface_hub"} | {"torch", "numpy"} for name in GROUND | {"demo"}}
NOT_IN |= {room: HEAVY - {"transformers"} for room in ("masks", "repair")} | {"codings": HEAVY}


def piece(path: Path) -> str:
    """The room of a file, or its name where it stands at the package's top."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Full names of what a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}: relative import; write the full name"
            # "from hf_mamba_prune import native" names a room, "from hf_mamba_prune.config import X" need not.
            yield from ([f"{NAME}.{alias.name}" for alias in node.names] if node.module == NAME else [node.module])


def rooms_of(names: Iterator[str]) -> set[str]:
    """The rooms and top modules among full names; the package itself is `__init__`."""
    parts = (name.split(".") for name in names)
    return {own[1] if len(own) > 1 else "__init__" for own in parts if own[0] == NAME}


def test_the_list_names_what_there_is_and_nothing_else():
    there = {piece(path) for path in SOURCES}
    listed = GROUND | set(MAY_IMPORT) | EVERYTHING
    assert there == listed, f"not in both: {there ^ listed}; {Path(__file__).name} holds the list of rooms"
    assert set().union(*MAY_IMPORT.values(), *ONLY_IN.values(), NOT_IN) <= there


def test_the_package_s_top_stays_small():
    modules = [path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= 12, modules


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_what_its_room_may(path):
    room = piece(path)
    found = set(imported(path))
    if room not in EVERYTHING:
        refused = rooms_of(iter(found)) - {room} - MAY_IMPORT.get(room, GROUND)
        assert not refused, f"{room} imports {refused}"
    outside = {name.split(".")[0] for name in found}
    assert not outside & NOT_IN.get(room, set())
    assert not {name for name in outside & ONLY_IN.keys() if room not in ONLY_IN[name]}


def test_no_room_imports_itself_through_others():
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        graph.setdefault(piece(path), set()).update(rooms_of(imported(path)) - {piece(path)})
    TopologicalSorter(graph).prepare()


def test_every_room_says_what_it_is():
    for folder in {path.parent for path in SOURCES} - {PACKAGE}:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert text, folder


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_within_their_limits(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} at line {node.lineno}"


def native_functions(text: str) -> Iterator[tuple[int, int]]:
    """(line, lines) of every function in C++: a body whose opening brace follows a parameter list, not a statement."""
    code = re.sub(r'"(\\.|[^"\\\n])*"|\'(\\.|[^\'\\])\'|//[^\n]*|^[ \t]*#[^\n]*', "", text, flags=re.M)
    opened: list[tuple[int, bool]] = []
    head = ""
    for number, line in enumerate(code.splitlines(), 1):
        for character in line + " ":
            if character == "{":
                statement = re.match(r"\s*(else\s+)?(for|if|while|switch|do|else)\b", head)
                opened.append((number, not statement and bool(re.search(r"\)[\s\w:<>*&>-]*$", head))))
            elif character == "}" and opened:
                start, is_function = opened.pop()
                if is_function:
                    yield start, number - start + 1
            head = "" if character in "{};" else head + character


@pytest.mark.parametrize("path", NATIVE, ids=lambda path: path.name)
def test_native_files_and_functions_stay_within_their_limits(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 350
    assert not [(start, length) for start, length in native_functions(text) if length > 60]


def test_the_test_sees_what_it_should(tmp_path):
    inner = "    from hf_mamba_prune.command.cli import app\n    from hf_mamba_prune import native, config\n"
    (tmp_path / "m.py").write_text("import torch\ndef f():\n" + inner)
    found = set(imported(tmp_path / "m.py"))
    assert found == {"torch", f"{NAME}.command.cli", f"{NAME}.native", f"{NAME}.config"}
    assert rooms_of(iter(found)) == {"command", "native", "config"}
    body = "  x();\n" * 61
    code = f"namespace a {{\nstatic int f(int a,\n      int b) {{\n{body}}}\nvoid g() {{ if (a) {{\n}} }}\n}}\n"
    assert [length for _, length in native_functions(code)] == [63, 2]
