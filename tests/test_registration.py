"""Importing the package costs little, and transformers' registries know of it in whichever order both are imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hf_mamba_prune
from hf_mamba_prune import registration

HEAVY = "torch numpy transformers datasets evaluate matplotlib huggingface_hub accelerate"


def python(code: str) -> str:
    """What a fresh Python prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, hf_mamba_prune; print([name for name in {HEAVY!r}.split() if name in sys.modules])"
    assert python(code) == "[]"


def test_every_public_name_is_found_and_is_what_a_type_checker_sees():
    assert set(hf_mamba_prune.__all__) == set(hf_mamba_prune._ROOMS) <= set(dir(hf_mamba_prune))
    for name, room in hf_mamba_prune._ROOMS.items():
        assert getattr(hf_mamba_prune, name) is getattr(sys.modules[f"hf_mamba_prune.{room}"], name)
    with pytest.raises(AttributeError, match="has no attribute 'prnue'"):
        hf_mamba_prune.prnue  # noqa: B018


@pytest.mark.parametrize(
    "imports",
    [
        "import hf_mamba_prune, transformers",
        "from transformers import AutoModelForSequenceClassification; import hf_mamba_prune, transformers",
        pytest.param("import transformers, hf_mamba_prune", marks=pytest.mark.slow),
    ],
)
def test_auto_classes_know_the_heads_in_whichever_order(imports):
    code = (
        f"{imports}\n"
        "config = transformers.MambaConfig(num_hidden_layers=1, hidden_size=8, vocab_size=9, num_labels=2)\n"
        "print(type(transformers.AutoModelForSequenceClassification.from_config(config)).__module__)"
    )
    assert python(code) == "hf_mamba_prune.models.heads"


def test_every_registry_is_a_module_of_transformers():
    for registry in registration._TOLD:
        assert registry in sys.modules
