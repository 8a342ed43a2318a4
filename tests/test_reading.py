"""What strangers wrote is read within bounds, wherever it is read: one sentence, never the parser's recursion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import run
from tiny_models import build_model, build_tokenizer

from hf_mamba_prune import PruningConfig, PruningReport
from hf_mamba_prune.files.cards import read_card
from hf_mamba_prune.files.loading import load_model
from hf_mamba_prune.measure.zero_shot import ZeroShot
from hf_mamba_prune.reading import MOST_BYTES, MOST_DEPTH, parse_json, read_front_matter, read_json
from hf_mamba_prune.texts.sources import read_text

DEEP = "[" * 200_000 + "]" * 200_000
DEEPER_THAN_MEANT = "[" * 150 + "]" * 150
OBJECTS = '{"a":' * 150 + "1" + "}" * 150


@pytest.mark.parametrize("text", [DEEP, DEEPER_THAN_MEANT, OBJECTS], ids=["crashes a parser", "lists", "objects"])
def test_what_is_nested_deep_is_one_sentence(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    for read in (
        lambda: parse_json(text, "it"),
        lambda: parse_json(text.encode(), "it"),
        lambda: read_json(tmp_path / "a.json"),
    ):
        with pytest.raises(ValueError, match=f"is nested more than {MOST_DEPTH} deep") as refused:
            read()
        assert len(str(refused.value)) < 300


def test_what_is_as_deep_as_it_may_be_is_read():
    for text in ("[" * 100 + "]" * 100, json.dumps([[{"a": []}]] * 1000)):
        assert parse_json(text, "it") == json.loads(text)


def test_a_file_of_any_size_is_not_read(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(ValueError, match=f"a.json has {MOST_BYTES + 1:,} bytes; expected {MOST_BYTES:,} at most"):
        read_json(tmp_path / "a.json")


@pytest.fixture
def model(tmp_path) -> Path:
    build_model("mamba").save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


NAMES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
         "model.safetensors.index.json",          "generation_config.json")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", [DEEP, "{", "5", "[]", '{"a": ' + DEEPER_THAN_MEANT + "}"], ids=range(5))
def test_no_file_of_a_model_ends_in_a_traceback(model, name, text, capsys):
    if name.endswith("index.json"):
        (model / "model.safetensors").unlink()
    (model / name).write_text(text)
    code = run("evaluate", str(model), "--eval", str(model / "config.json"), "--window", "8")
    shown = capsys.readouterr().err
    assert "recursion" not in shown and "Traceback" not in shown
    assert code in (0, 2) and (code == 0 or "hf-mamba-prune: error: " in shown)
    assert code == 2 or name in ("special_tokens_map.json", "tokenizer_config.json", "generation_config.json")


def test_rows_of_texts_and_tasks_are_read_in_the_same_way(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": ' + DEEP + "}\n")
    with pytest.raises(ValueError, match="a.jsonl, line 2.* is nested more than"):
        read_text(str(tmp_path / "a.jsonl"), "train")
    (tmp_path / "a.jsonl").write_text('{"text": "one two three"}\n{"text": ' + DEEP + "}\n")
    with pytest.raises(ValueError, match="a.jsonl, line 2.* is nested more than"):
        ZeroShot(tasks=(str(tmp_path / "a.jsonl"),)).check()


def test_reports_and_pruning_configs_of_strangers_are_read_in_the_same_way(tmp_path):
    for kind, name in ((PruningReport.load, "report.json"), (PruningConfig.from_pretrained, "pruning_config.json")):
        for text in (DEEP, "{", "[]", "null", '{"format_version": 1}', '{"format_version": 1, "model": 5}'):
            (tmp_path / name).write_text(text)
            with pytest.raises(ValueError, match=f"{name}|unknown|expected") as refused:
                kind(tmp_path)
            assert len(str(refused.value)) < 400


BAD_CARDS = {
    "flow": "---\na: " + DEEP + "\n---\n",
    "deep": "---\na: " + DEEPER_THAN_MEANT + "\n---\n",
    "blocks": "---\n" + "".join(" " * i + "- a:\n" for i in range(400)) + "---\n",
    "not YAML": "---\na: [\n---\n",
    "a list": "---\n- a\n---\n",
    "no end": "---\n" + "a: 1\n" * 100_000,
    "latin": "---\nlicense: caf\u00e9\n---\n".encode("latin-1"),
}


@pytest.mark.parametrize("name", BAD_CARDS)
def test_a_base_card_that_cannot_be_read_is_left_out_and_the_report_says_so(model, name, tmp_path):
    card = BAD_CARDS[name]
    (model / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    found = read_card(model)
    assert (found.license, found.language) == (None, ())
    (line,) = found.left_out
    assert line.startswith("The card of the base model was left out: README.md ") and len(line) < 400
    if name == "flow":
        options = (
            "--score",
            "magnitude",
            "--no-reconstruct",
            "--no-eval",
            "--quiet",
            "--output",
            str(tmp_path / "out"),
        )
        assert run(str(model), *options) == 0
        assert PruningReport.load(tmp_path / "out").warnings == (line,)


def test_a_license_that_is_a_text_is_left_out(tmp_path):
    (tmp_path / "README.md").write_text('---\nlicense: "mit\\n---\\n# Owned"\nlanguage: [en, "x\\ny"]\n---\nText')
    found = read_card(tmp_path)
    assert (found.license, found.language) == (None, ("en",))
    assert [line.split(" that ")[0] for line in found.left_out] == ["The license", "The language"]


def test_a_card_s_front_matter_is_what_stands_between_its_lines(tmp_path):
    path = tmp_path / "README.md"
    for text, values in (
        ("---\r\nlicense: mit\r\nlanguage: en\r\n---\r\n# Text\n---\n", {"license": "mit", "language": "en"}),
        ("\ufeff---\nlicense: mit\n---\n", {"license": "mit"}),
        ("# No front matter\n---\nlicense: mit\n---\n", {}),
        ("---\n---\n", {}),
        ("", {}),
        ("---\nlicense: mit\n---\n" + "\u00e4" * 300_000, {"license": "mit"}),
        ("---\nlicense: mit\n---\n " + "\u00e4" * 300_000, {"license": "mit"}),
    ):
        path.write_bytes(text.encode())
        assert read_front_matter(path) == values
    assert read_card(tmp_path).license == "mit"


def test_a_model_with_a_bad_card_loads(model):
    (model / "README.md").write_text(BAD_CARDS["deep"])
    assert load_model(str(model)).left_out
