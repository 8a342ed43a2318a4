"""The training script of the README runs as it stands, with a small model and text in place of the Hub's."""

from __future__ import annotations

import re
from pathlib import Path

from datasets import Dataset
from tiny_models import build_model, build_tokenizer

from hf_mamba_prune import find_targets

README = Path(__file__).parents[1] / "README.md"


def test_the_training_script_ends_at_its_sparsity(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    (script,) = [block for block in blocks if "PruningTrainer(" in block]
    assert len([line for line in script.splitlines() if line]) <= 22
    build_model("mamba").save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    rows = Dataset.from_dict({"text": ["", *(f" The thing number {i} in the other .\n" for i in range(30))]})
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: rows)
    monkeypatch.chdir(tmp_path)
    for old, new in (
        ("state-spaces/mamba-130m-hf", str(tmp_path / "model")),
        ("max_steps=500,", "max_steps=20, use_cpu=True, report_to='none', disable_tqdm=True,"),
    ):
        assert old in script
        script = script.replace(old, new)
    space: dict[str, object] = {}
    exec(script, space)
    saved = type(space["model"]).from_pretrained(tmp_path / "mamba-130m-sparse")
    targets = find_targets(saved)
    assert sum(int((t.weight(saved) == 0).sum()) for t in targets) == round(0.7 * sum(t.size for t in targets))
