"""Names of other people's things as they leave the program: they say what they are and do nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import run
from huggingface_hub import ModelCard
from local_hub import ALICE
from pushing import TEXT
from rich.table import Table
from tiny_models import build_model, build_tokenizer

from hf_mamba_prune import PruningReport
from hf_mamba_prune.command.console import SafeConsole
from hf_mamba_prune.files.origin import shown_command, shown_name
from hf_mamba_prune.publish.card import render_card
from hf_mamba_prune.publish.escapes import for_code, for_markdown, for_string, for_terminal

CARD = next((Path(__file__).resolve().parents[2] / "model_cards").glob("*/report.json"))
EVIL = "a\n# Owned [x](http:evil)\n|b `c` <script> http://evil www.evil.org ~~d~~ \x1b[31m"


def test_a_terminal_gets_no_control_characters_and_text_as_it_is():
    assert for_terminal("caf\u00e9 \u2192\t\n\U0001f600") == "caf\u00e9 \u2192\t\n\U0001f600"
    spelled = r"\x1b[2J \x07 \x0d \x9b \x7f \u202e \udcff"
    assert for_terminal("\x1b[2J \x07 \r \x9b \x7f \u202e \udcff") == spelled
    for_terminal("\udcff").encode()


NAMES = (
    "a\x1b]0;owned\x07b",
    "a[/]b",
    "a[bold red]b",
    "[link=http://evil]x[/link]",
    ":smile: \\[/x]",
    "[@click=evil()]x",
)


@pytest.mark.parametrize("name", NAMES)
def test_the_console_shows_names_as_they_are(capsys, name):
    console = SafeConsole(width=200, emoji=False)
    console.print(f"Saved in [bold]{name}[/].")
    table = Table()
    table.add_column(name)
    table.add_row(name)
    console.print(table)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\x07" not in shown
    if "[bold" not in name:
        assert shown.count(for_terminal(name)) == 3


USUAL = "in_proj x_proj.B 3.5 -0.25 +- 1 50.00% Intel(R) @ 2 GHz"


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        (USUAL, USUAL),
        ("a\n# b", "a # b"),
        ("# a", r"\# a"),
        ("- a", r"\- a"),
        ("1. a", r"1\. a"),
        ("---", r"\---"),
        ("[x](http:evil)", r"\[x\](http:evil)"),
        ("a|b`c`<b>&lt;*d*", r"a\|b\`c\`\<b\>\&lt;\*d\*"),
        ("_a_ b_c", r"\_a\_ b_c"),
        ("see http://evil and www.evil.org", r"see http\://evil and www\.evil.org"),
        ("\x1b[31m", r"\[31m"),
    ],
)  # fmt: skip
def test_markdown_reads_as_the_text(text, markdown):
    assert for_markdown(text) == markdown


def test_code_is_one_line_that_ends_nothing():
    assert for_code("a\n```\n# b") == "a ''' # b"
    assert for_string('a")\nimport os; os.system("x\\') == 'a\\") import os; os.system(\\"x\\\\'


def evil(report: PruningReport) -> PruningReport:
    """A report in which everything that others name is hostile."""
    model = replace(report.model, id=EVIL, license="mit\n---\n# Owned", language=("en", EVIL), revision=None)
    metrics = tuple(replace(m, text=EVIL) for m in report.after)
    tasks = tuple(replace(task, task=EVIL) for task in report.tasks_after)
    parts = tuple(replace(count, name=EVIL) for count in report.sparsity.components)
    return replace(
        report, model=model, before=metrics, after=metrics, tasks_before=tasks, tasks_after=tasks, command=EVIL,
        calibration=replace(report.calibration, source=EVIL), sparsity=replace(report.sparsity, components=parts),
        hardware=report.hardware | {"processor": EVIL}, versions={"torch": "2" + EVIL}, config={"a": EVIL},
    )  # fmt: skip


def test_no_name_writes_into_the_card():
    report = PruningReport.load(CARD.parent)
    harmless = render_card(replace(report, model=replace(report.model, id="a", license="mit")))
    card = render_card(evil(report))
    assert "\x1b" not in card and "\n# Owned" not in card
    assert card.count("\n# ") == harmless.count("\n# ") and card.count("\n## ") == harmless.count("\n## ")
    body = card.split("\n---\n", 1)[1]
    text = "".join(part for part in body.split("```")[::2])  # outside fences
    outside = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    for mark in (r"(?<!\\)<script", r"(?<!\\)\]\(http:evil", r"[^\\]http://evil", r"www\.evil", r"(?<!\\)\|b"):
        assert not re.search(mark, outside), mark
    rows = [line.replace(r"\|", "") for line in outside.splitlines() if line.startswith("|")]
    wanted = [line for line in harmless.splitlines() if line.startswith("|")]
    assert [row.count("|") for row in rows] == [row.count("|") for row in wanted]
    data = ModelCard(card).data
    assert data.license is None and data.language == ["en"]
    assert set(yaml.safe_load(card.split("---")[1])) <= {
        "library_name", "pipeline_tag", "language", "tags", "model-index", "base_model", "base_model_relation",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("state-spaces/mamba-370m", "state-spaces/mamba-370m"),
        ("Salesforce/wikitext:wikitext-103-raw-v1:test", "Salesforce/wikitext:wikitext-103-raw-v1:test"),
        ("/home/jane/secret/model", "model"),
        ("/home/jane/secret/model/", "model"),
        ("./secret/text.txt", "text.txt"),
        ("~/secret/text.txt", "text.txt"),
        ("secret/plans/text.txt", "text.txt"),
        ("C:\\Users\\jane\\text.txt", "text.txt"),
        ("wikitext", "wikitext"),
        ("0.7", "0.7"),
        ("x" * 5000, "x" * 5000),
    ],
)
def test_a_path_is_shown_by_its_last_part_and_a_hub_id_whole(name, shown):
    assert shown_name(name) == shown


def test_a_command_is_shown_without_its_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("secret").mkdir()
    Path("secret/text.txt").touch()
    command = (
        "hf-mamba-prune secret/text.txt --calibration=/home/jane/a.txt --eval './my plans/b.txt' "
        "--tasks piqa,/x/y/z.jsonl "
        "--output secret/out --component-sparsity=in_proj=0.5 --tokenizer EleutherAI/gpt-neox-20b --sparsity .7"
    )
    assert shown_command(command) == (
        "hf-mamba-prune text.txt --calibration=a.txt --eval b.txt --tasks piqa,z.jsonl --output out "
        "--component-sparsity=in_proj=0.5 --tokenizer EleutherAI/gpt-neox-20b --sparsity .7"
    )
    assert shown_command(None) is None


HOME, SECRET, PLANS = "jane-home", "secret \x1b[31mproject", "a\n# Owned [x](http:evil)\n|b"


@pytest.fixture
def odd(tmp_path, monkeypatch, local_hub) -> Path:
    """A model, a text, a task and a tokenizer in folders whose names nobody should see, or that would do harm."""
    local_hub.attach(monkeypatch, tmp_path / "cache", ALICE.token)
    place = tmp_path / HOME / SECRET
    (place / PLANS).mkdir(parents=True)
    (place / "inner/deeper").mkdir(parents=True)
    monkeypatch.chdir(place)
    build_model("mamba").save_pretrained(place / PLANS / "model")
    build_tokenizer().save_pretrained(place / "inner/deeper/words")
    (place / PLANS / "text.txt").write_text(TEXT, encoding="utf-8")
    (place / "inner/deeper/more.txt").write_text(TEXT, encoding="utf-8")
    rows = [json.dumps({"text": "the cat in the hat"})] * 2
    (place / "inner/task.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return place


def test_what_is_published_of_a_run_in_odd_folders_shows_none_of_them(odd, speeds_here, local_hub, capsys):
    texts = (
        "--calibration",
        str(odd / PLANS / "text.txt"),
        "--eval",
        "inner/deeper/more.txt",
        "--tasks",
        "inner/task.jsonl",
    )
    small = ("--calibration-samples", "3", "--calibration-length", "16", "--steps", "1", "--window", "32", "--force")
    where = ("--tokenizer", "inner/deeper/words", "--output", str(odd / "inner/result"))
    recover = ("--recipe", "standard", "--recover-steps", "2", "--recover-dataset", f"{PLANS}/text.txt")
    assert run(f"{PLANS}/model", *texts, *small, *where, *recover, "--pack", "--push", "--repo-id", "alice/out") == 0
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out.replace("\x1b[1m", "").replace("\x1b[0m", "") and "\x1b[31m" not in shown.err
    files = local_hub.files("alice/out")
    titles = [commit.title + commit.message for commit in local_hub.commits("alice/out")]
    assert titles and not any(word in title for word in (HOME, "secret", "Owned") for title in titles)
    assert {"README.md", "report.json", "config.json", "tokenizer_config.json", "packed/config.json"} <= set(files)
    for path, content in files.items():
        for word in (HOME, "secret", "project", "Owned", "inner", "deeper", "evil", str(odd), "pytest"):
            assert word.encode() not in content, (
                path,
                word,
                content[max(0, content.find(word.encode()) - 80) :][:200],
            )
    report = PruningReport.from_dict(json.loads(files["report.json"]))
    assert report.model.id == "model" and report.calibration.source == "text.txt"
    assert report.command.startswith("hf-mamba-prune model --calibration text.txt --eval more.txt --tasks task.jsonl")


def test_errors_about_odd_names_reach_the_terminal_spelled(odd, capsys):
    for command in (
        ("evaluate", f"./{SECRET}\x1b[2J"),
        ("info", f"{PLANS}/text.txt"),
        ("evaluate", f"{PLANS}/model", "--eval", "\x1b[2J.txt"),
    ):
        assert run(*command) == 2
        shown = capsys.readouterr().err
        assert "\x1b" not in shown and "hf-mamba-prune: error: " in shown
    Path("odd.jsonl").write_text(json.dumps({"\x1b[2Ja": "x", "b": "y"}), encoding="utf-8")
    assert run("evaluate", f"{PLANS}/model", "--eval", "odd.jsonl", "--tokenizer", "inner/deeper/words") == 2
    shown = capsys.readouterr().err
    assert r"\x1b[2Ja" in shown and "\x1b" not in shown
