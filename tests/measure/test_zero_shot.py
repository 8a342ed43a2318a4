"""Zero-shot tasks from files: what the harness finds is what a naive computation finds, in report and card too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import run
from huggingface_hub import ModelCard
from tiny_models import build_model, build_tokenizer

from hf_mamba_prune import PruningReport
from hf_mamba_prune.measure.zero_shot import ZeroShot, _metrics, _shown

WORDS = [{"text": f"the cat in the hat sat on the {word}"} for word in ("mat", "hat", "cat in", "the")]
CHOICES = [
    {"query": f"Question: what is in {place}?\n", "choices": ["the cat", "a hat and then a hat", "it"], "gold": gold}
    for gold, place in enumerate(("the hat", "a line", "the mat"))
]


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """A folder with both kinds of files, a model and a text, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    for name, rows in {"words": WORDS, "choices": CHOICES}.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    build_model("mamba").save_pretrained("model")
    build_tokenizer().save_pretrained("model")
    Path("text.txt").write_text("the cat in the hat sat on the mat\n" * 60, encoding="utf-8")
    return tmp_path


def log_probability(model, tokenizer, context: str, answer: str) -> tuple[float, bool]:
    """Sum over the answer's tokens, and whether each was the likeliest."""
    start = tokenizer(context).input_ids
    ids = torch.tensor(tokenizer(context + answer).input_ids)
    assert ids[: len(start)].tolist() == start
    with torch.no_grad():
        found = model(ids[None]).logits[0, :-1].log_softmax(-1)[len(start) - 1 :]
    wanted = ids[len(start) :]
    return float(found.gather(1, wanted[:, None]).sum()), bool((found.argmax(1) == wanted).all())


def test_a_naive_computation_finds_the_same(files):
    model, tokenizer = build_model("mamba"), build_tokenizer()
    found = {(m.task, m.metric): m for m in ZeroShot(tasks=("words.jsonl", "choices.jsonl")).run(model, tokenizer)}
    assert set(found) == {("words", "perplexity"), ("words", "acc"), ("choices", "acc"), ("choices", "acc_norm")}
    guessed = []
    for row in WORDS:
        context, _, word = row["text"].rpartition(" ")
        guessed.append(log_probability(model, tokenizer, context, f" {word}"))
    total = sum(value for value, _ in guessed)
    perplexity = found["words", "perplexity"]
    assert perplexity.value == pytest.approx(torch.tensor(-total / len(WORDS)).exp().item(), rel=1e-4)
    assert not perplexity.higher_is_better and perplexity.examples == len(WORDS)
    assert found["words", "acc"].value == sum(hit for _, hit in guessed) / len(WORDS)
    right = {"acc": 0, "acc_norm": 0}
    for row in CHOICES:
        context = row["query"].rstrip() + "\nAnswer:"
        values = [log_probability(model, tokenizer, context, f" {choice}")[0] for choice in row["choices"]]
        normed = [value / len(choice) for value, choice in zip(values, row["choices"], strict=True)]
        right["acc"] += values.index(max(values)) == row["gold"]
        right["acc_norm"] += normed.index(max(normed)) == row["gold"]
    for metric, count in right.items():
        measured = found["choices", metric]
        assert measured.value == pytest.approx(count / len(CHOICES))
        error = (measured.value * (1 - measured.value) / (len(CHOICES) - 1)) ** 0.5
        assert measured.standard_error == pytest.approx(error)


def test_they_stand_in_the_report_and_in_the_card(files):
    prune = ("model", "--sparsity", "0.5", "--score", "magnitude", "--no-reconstruct", "--no-eval", "--output", "out")
    assert run(*prune, "--tasks", "words.jsonl,choices.jsonl", "--max-examples", "2", "--quiet") == 0
    report = PruningReport.load("out")
    assert (
        [m.task for m in report.tasks_after]
        == [m.task for m in report.tasks_before]
        == ["words"] * 2 + ["choices"] * 2
    )
    assert all(m.examples == 2 for m in report.tasks_after)
    card = Path("out/README.md").read_text(encoding="utf-8")
    results = {(r.dataset_name, r.metric_type): r for r in ModelCard(card).data.eval_results}
    for before, after in zip(report.tasks_before, report.tasks_after, strict=True):
        result = results[after.task, after.metric]
        assert result.metric_value == after.value and f"dense: {before.value:.4f}" in result.metric_name
    assert "| words | perplexity |" in card and "measured on words, choices" in card


def test_tasks_alone_need_no_text(files, capsys):
    assert run("evaluate", "model", "--tasks", "words.jsonl") == 0
    shown = capsys.readouterr().out
    assert "Zero-shot tasks" in shown and "words" in shown and "bits per byte" not in shown


def test_a_packed_model_is_asked_too(files, capsys):
    assert run("pack", "model", "--output", "model/packed", "--quiet") == 0
    for model in ("model", "model/packed"):
        assert run("evaluate", model, "--eval", "text.txt", "--window", "64", "--tasks", "words.jsonl", "--json") == 0
    dense, packed = capsys.readouterr().out.split("\n}\n")[:2]
    tasks = [json.loads(shown + "}")["tasks"] for shown in (dense, packed)]
    assert tasks[0] == tasks[1]


BAD = {
    "there is no task file": "none.jsonl",
    "line 1, is not JSON": b"{",
    "line 2: expected": b'{"text": "a b"}\n{"query": "a", "choices": ["b", "c"], "gold": 0}\n',
    "line 1: expected": b'{"query": "a", "choices": ["b", "c"], "gold": 2}\n',
    "has no rows": b"",
    "Did you mean 'piqa'": "piqua",
    "two task files have the same name": "words.jsonl,other/words.jsonl",
}


@pytest.mark.parametrize("message", BAD)
def test_what_cannot_be_asked_is_refused_before_the_work(files, capsys, message):
    task = BAD[message]
    if isinstance(task, bytes):
        Path("bad.jsonl").write_bytes(task)
        task = "bad.jsonl"
    assert run("model", "--tasks", task, "--output", "out") == 2
    assert message in capsys.readouterr().err and not Path("out").exists()


@pytest.mark.parametrize("row", [dict(choices=[4, 5]), dict(choices=["b"]), dict(gold=True), dict(query=1)])
def test_rows_that_the_harness_would_stumble_over_are_refused(files, row):
    Path("bad.jsonl").write_text(json.dumps(dict(query="a", choices=["b", "c"], gold=0) | row) + "\n")
    with pytest.raises(ValueError, match=r"bad.jsonl, line 1: expected 'text', or 'query', 'choices' \(two strings"):
        ZeroShot(tasks=("bad.jsonl",)).check()


def test_a_question_in_the_harness_own_form_and_other_columns_change_nothing(files):
    model, tokenizer = build_model("mamba"), build_tokenizer()
    own = [row | {"query": row["query"].rstrip() + "\nAnswer:", "id": at or "x"} for at, row in enumerate(CHOICES)]
    Path("own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own), encoding="utf-8")
    asked, again = (ZeroShot(tasks=(name,)).run(model, tokenizer) for name in ("choices.jsonl", "own.jsonl"))
    assert [metric.value for metric in asked] == [metric.value for metric in again]


def test_rows_are_lines_and_texts_have_no_blanks_around_them(files):
    rows = [{"text": "the cat\u2028in the hat  "}, {"text": " on the mat"}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    Path("odd.jsonl").write_text(lines + "\n\n", encoding="utf-8")
    model, tokenizer = build_model("mamba"), build_tokenizer()
    (perplexity, _) = ZeroShot(tasks=("odd.jsonl",)).run(model, tokenizer)
    wanted = [
        log_probability(model, tokenizer, *pair)[0] for pair in (("the cat\u2028in the", " hat"), ("on the", " mat"))
    ]
    assert perplexity.examples == 2
    assert perplexity.value == pytest.approx(torch.tensor(-sum(wanted) / 2).exp().item(), rel=1e-4)


def test_groups_and_ways_of_cutting_are_told_apart():
    found = {
        "results": {
            "group": {"acc,none": 0.5},
            "one": {"acc,none": 0.4},
            "two": {"acc,none": 0.6},
            "three": {"exact_match,strict": 0.1, "exact_match,flexible": 0.2},
        },
        "n-samples": {name: {"effective": 10} for name in ("one", "two", "three")},
        "group_subtasks": {"group": ["one", "two"]},
        "higher_is_better": {"group": {"acc": True}, "three": {"exact_match": True}},
    }
    assert _shown(found, ("group", "three")) == ["group", "three"]
    assert _shown(found, ("tag",)) == ["one", "two", "three"]
    group = _metrics("group", "acc,none", 0.5, found)
    assert (group.metric, group.examples) == ("acc", 20)
    assert _metrics("three", "exact_match,strict", 0.1, found).metric == "exact_match (strict)"
