"""Every module imports only from its own layer or those above it, as the design says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hf_mamba_prune

PACKAGE = Path(hf_mamba_prune.__file__).parent
NAME = "hf_mamba_prune"

LAYERS = {
    1: "config schedules report progress recipes demo",
    2: "architectures distributed",
    3: "scores masks slots divisions allocation selection reconstruction calibration native",
    4: """
        pruning evaluation analysis checkpoint packed runtime heads tasks trainer distillation loading
        counting environment texts sequences metrics original_layout blocks repair plan
        sensitivity stability gradual masking recovery speed zero_shot
        origin training_report training_bar card figures reproduce
    """,
    5: "hub results job cloud",
    6: "cli packed_commands hub_commands reproduce_command console options groups summary __main__ __init__",
}
LAYER = {name: number for number, names in LAYERS.items() for name in names.split()}
MODULES = sorted(PACKAGE.rglob("*.py"))

# Who alone may import a package, and what some parts may not.
ONLY_IN = {"accelerate": {"trainer"}, "gradio": set(), "typer": {"cli", "options", "summary", "demo"}}
HEAVY = {"transformers", "datasets", "evaluate", "huggingface_hub"}
NOT_IN = {name: {"torch", "numpy", "transformers", "datasets", "evaluate"} for name in LAYERS[1].split()}
NOT_IN |= {name: HEAVY for name in f"{LAYERS[2]} {LAYERS[3]}".split() if name != "native"}


def piece(path: Path) -> str:
    """The part of the package that a file belongs to: a module's name or that of the folder at the top."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Full names of what a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import; write the full name"
            # "from hf_mamba_prune import native" names a module, "from hf_mamba_prune.config import X" need not.
            yield from ([f"{NAME}.{alias.name}" for alias in node.names] if node.module == NAME else [node.module])


def own(path: Path) -> set[str]:
    """The parts of the package that a file imports."""
    names = (name.split(".") for name in imported(path))
    return {parts[1] if len(parts) > 1 else "__init__" for parts in names if parts[0] == NAME}


def test_every_part_of_the_package_has_a_layer():
    unknown = {piece(path) for path in MODULES} - set(LAYER)
    assert not unknown, f"add {', '.join(sorted(unknown))} to LAYERS in {Path(__file__).name}, beside its peers"
    assert len(LAYER) == sum(len(names.split()) for names in LAYERS.values())


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_upwards(path):
    layer = LAYER[piece(path)]
    unknown = own(path) - set(LAYER)
    assert not unknown, f"imports {unknown}, which have no layer"
    below = {name for name in own(path) if LAYER[name] > layer}
    assert not below, f"layer {layer} imports {below} of a layer below"
    outside = {name.split(".")[0] for name in imported(path)} - {NAME}
    refused = outside & NOT_IN.get(layer, set()) | {
        n for n in outside if piece(path) not in ONLY_IN.get(n, {piece(path)})
    }
    assert not refused, f"layer {layer} imports {refused}"


def test_no_part_imports_itself_through_others():
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        graph.setdefault(piece(path), set()).update(own(path) - {piece(path)})
    TopologicalSorter(graph).prepare()


def test_the_test_sees_what_it_should(tmp_path):
    inner = "    from hf_mamba_prune.cli import app\n    from hf_mamba_prune import native, config\n"
    (tmp_path / "m.py").write_text("import torch\ndef f():\n" + inner)
    assert set(imported(tmp_path / "m.py")) == {"torch", f"{NAME}.cli", f"{NAME}.native", f"{NAME}.config"}
    assert own(tmp_path / "m.py") == {"cli", "native", "config"}
