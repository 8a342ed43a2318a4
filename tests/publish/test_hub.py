"""Pushing to the Hub and back, through the real client against a Hub on the loopback that can fail."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import datasets
import local_hub as hubs
import pushing
import pyarrow
import pyarrow.parquet
import pytest
import torch
from conftest import run
from huggingface_hub import HfApi, ModelCard
from local_hub import ALICE, BOB
from original_checkpoints import write_original
from pushing import PRUNE, REPO
from tiny_models import build_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    MambaConfig,
    MambaForCausalLM,
    TrainingArguments,
)

import hf_mamba_prune
from hf_mamba_prune import (
    MambaForSequenceClassification,
    PruningConfig,
    PruningReport,
    PruningTrainer,
    find_targets,
)
from hf_mamba_prune.command.hub import repeat_command
from hf_mamba_prune.packed.checkpoint import is_packed
from hf_mamba_prune.publish.card import render_card
from hf_mamba_prune.publish.hub import PushChoice

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
local_hub, place, pruned, result = hubs.local_hub, pushing.place, pushing.pruned, pushing.result


def titles(local_hub, repo: str = REPO) -> list[str]:
    return [commit.title for commit in local_hub.commits(repo)]


def test_push_makes_one_commit_that_comes_back_bit_for_bit(place, speeds_here, local_hub, capsys):
    assert run(*PRUNE, "--push", "--pack", "--quiet") == 0
    assert len(titles(local_hub)) == 2 and titles(local_hub)[-1] == "initial commit"
    held = set(local_hub.files(REPO))
    local = {path.relative_to("out").as_posix() for path in Path("out").rglob("*") if path.is_file()}
    assert held == local | {".gitattributes"}
    assert {
        "README.md",
        "report.json",
        "pruning_config.json",
        "figures/sparsity.png",
        "packed/model.safetensors",
    } <= held
    here = AutoModelForCausalLM.from_pretrained("out").state_dict()
    code = (
        "import sys, torch, hf_mamba_prune\n"
        "from transformers import AutoModelForCausalLM\n"
        "torch.save(AutoModelForCausalLM.from_pretrained(sys.argv[1]).state_dict(), 'plain.pt')\n"
        "packed = AutoModelForCausalLM.from_pretrained(sys.argv[1], subfolder='packed')\n"
        "again = packed.dequantize() if packed.is_quantized else packed\n"
        "torch.save(again.state_dict(), 'packed.pt')\n"
    )
    root = str(Path(hf_mamba_prune.__file__).parent.parent)
    env = local_hub.env(place / "other", ALICE.token) | {"PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", code, REPO], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("plain.pt", "packed.pt"):
        there = torch.load(name)
        assert there.keys() == here.keys()
        assert all(torch.equal(there[key], here[key]) for key in here), name
    assert PruningConfig.from_pretrained(REPO) == PruningConfig.from_pretrained("out")


def test_evaluate_repeats_the_cards_numbers_and_pruning_again_keeps_the_zeros(place, local_hub, capsys):
    assert run(*PRUNE, "--push", "--quiet") == 0
    report = PruningReport.load("out")
    card = ModelCard.load(REPO)
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found["perplexity"] == report.after[0].perplexity
    assert run("evaluate", REPO, "--eval", "text.txt", "--window", "32", "--json") == 0
    assert json.loads(capsys.readouterr().out)["metrics"][0]["perplexity"] == pytest.approx(found["perplexity"])
    again = ("--sparsity", "0.8", "--score", "magnitude", "--no-reconstruct", "--no-eval", "--output", "more")
    assert run(REPO, *again) == 0
    first, second = (AutoModelForCausalLM.from_pretrained(name).state_dict() for name in ("out", "more"))
    for name, weight in first.items():
        if name.endswith("proj.weight"):
            assert not second[name][weight == 0].any()
    assert PruningReport.load("more").model.id == REPO


def test_what_is_not_asked_for_is_not_downloaded(place, speeds_here, local_hub, monkeypatch, capsys):
    assert run(*PRUNE, "--push", "--pack", "--quiet") == 0
    local_hub.requests.clear()
    assert run("generate", REPO, "the cat", "--max-new-tokens", "3") == 0
    assert "(packed, " in capsys.readouterr().err
    asked = [seen.path for seen in local_hub.requests]
    assert any("/packed/" in path and path.endswith(".safetensors") for path in asked)
    assert not any(path.endswith("/model.safetensors") and "/packed/" not in path for path in asked)
    local_hub.attach(monkeypatch, place / "other", ALICE.token)
    local_hub.requests.clear()
    assert run("evaluate", REPO, "--eval", "text.txt", "--window", "32", "--quiet") == 0
    asked = [seen.path for seen in local_hub.requests]
    assert any(path.endswith("/model.safetensors") for path in asked)
    assert not any("/packed/" in path and path.endswith(".safetensors") for path in asked)


def test_the_license_and_the_languages_of_the_base_model_are_carried_over(place, local_hub):
    Path("model/README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# Base\n", encoding="utf-8")
    local_hub.add_model("bob/base", Path("model"))
    assert run("bob/base", *PRUNE[1:], "--push", "--repo-id", "mine", "--private", "--quiet") == 0
    data = ModelCard.load("alice/mine").data
    assert (data.license, data.language, data.base_model) == ("apache-2.0", ["en"], "bob/base")
    assert data.base_model_relation == "finetune" and "pruned" in data.tags


def test_an_existing_model_is_not_overwritten_unless_asked(result, local_hub, capsys):
    local_hub.add_model(REPO, {"config.json": b"{}", "old.bin": b"old"})
    assert run(*PRUNE, "--push", "--output", "new") == 1
    assert "--overwrite" in capsys.readouterr().err and not Path("new").exists()  # before any work
    assert run("push", "out", "--repo-id", REPO, "--force") == 1
    assert run("push", "out", "--repo-id", REPO, "--force", "--create-pr", "--json") == 0
    assert "discussions" in json.loads(capsys.readouterr().out)["url"]
    assert local_hub.files(REPO)["old.bin"] == b"old"
    assert run("push", "out", "--repo-id", REPO, "--force", "--overwrite") == 0
    assert "old.bin" not in local_hub.files(REPO) and "model.safetensors" in local_hub.files(REPO)
    capsys.readouterr()
    assert run("push", "out", "--repo-id", REPO, "--force", "--create-pr", "--json") == 0  # nothing has changed
    assert json.loads(capsys.readouterr().out)["url"].endswith(local_hub.commits(REPO)[0].id)


def test_a_badly_hurt_model_is_refused(result, local_hub, capsys):
    report = json.loads(Path("out/report.json").read_text())
    report["after"][0]["perplexity"] = 1.6 * report["before"][0]["perplexity"]
    Path("out/report.json").write_text(json.dumps(report))
    assert run("push", "out") == 1
    error = capsys.readouterr().err
    assert "1.60 x the dense one" in error and "--force" in error and "--recipe standard" in error
    assert run("push", "out", "--force") == 0


FAILURES = {
    401: ("POST", "/api/repos/create", {"status": 401}, "token is missing or not valid"),
    403: ("POST", "/api/repos/create", {"status": 403}, "token may not write"),
    404: ("POST", "/commit/", {"status": 404}, "no such repository|has no alice"),
    409: ("POST", "/commit/", {"status": 409}, "somebody else changed"),
    412: ("POST", "/commit/", {"status": 412}, "somebody else changed"),
    429: ("POST", "/commit/", {"status": 429, "times": None}, "too many requests"),
    500: ("POST", "/commit/", {"status": 500, "times": None}, "try again later"),
    "cut upload": ("PUT", "/uploads/", {"cut_request": 1000, "times": None}, "connection to the Hub broke|HTTP"),
    "cut answer": ("POST", "/preupload/", {"cut_answer": 0, "times": None}, "connection to the Hub broke"),
}


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in (500, "cut upload"))) for kind in FAILURES],
    ids=str,
)
def test_a_failure_keeps_the_result_and_says_how_to_go_on(place, local_hub, capsys, kind):
    method, path, how, message = FAILURES[kind]
    failure = local_hub.fail(method, path, **how)
    assert run(*PRUNE, "--push") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("hf-mamba-prune: error: ")
    assert re.search(message, error), error
    assert "hf-mamba-prune push out --repo-id alice/model-pruned-70 --force" in error
    assert failure.hits
    failure.times = 0
    repo = local_hub.repos.get(("model", REPO))
    assert repo is None or titles(local_hub) == ["initial commit"]
    assert AutoModelForCausalLM.from_pretrained("out").config.model_type == "mamba"
    assert run("push", "out", "--repo-id", REPO, "--force", "--quiet") == 0
    assert len(titles(local_hub)) == 2


def test_a_slow_answer_is_waited_for(place, local_hub):
    slow = local_hub.fail("POST", "/commit/", delay=1.5)
    assert run(*PRUNE, "--push", "--quiet") == 0
    assert slow.hits == 1 and len(titles(local_hub)) == 2


def test_the_command_to_repeat_is_one_that_can_be_pasted(result, local_hub, capsys):
    Path("out").rename("my out")
    local_hub.add_model(REPO, {"README.md": b"# empty"})
    command = repeat_command(Path("my out"), PushChoice(repo=REPO, revision="dev", force=True))
    assert shlex.split(command)[:3] == ["hf-mamba-prune", "push", "my out"]
    assert run(*shlex.split(command)[1:]) == 1
    assert "no such repository or branch" in capsys.readouterr().err
    HfApi().create_branch(REPO, branch="dev")
    assert run(*shlex.split(command)[1:]) == 0
    assert "model.safetensors" in local_hub.files(REPO, "dev") and "model.safetensors" not in local_hub.files(REPO)


def test_who_is_not_logged_in_is_told_before_the_work(tmp_path, result, local_hub, monkeypatch, capsys):
    local_hub.attach(monkeypatch, tmp_path / "nobody", None)
    assert run(*PRUNE, "--push", "--output", "new") == 1
    assert "hf auth login" in capsys.readouterr().err
    assert not Path("new").exists()
    local_hub.attach(monkeypatch, tmp_path / "bob", BOB.token)
    assert run("push", "out", "--force") == 1
    assert "token may not write" in capsys.readouterr().err


def test_no_secret_is_written_or_shown(place, local_hub, capsys, caplog):
    local_hub.fail("POST", "/commit/", status=500)
    assert run(*PRUNE, "--push") == 1
    shown = capsys.readouterr()
    everything = [shown.out, shown.err, caplog.text]
    everything += [path.read_text(errors="replace") for path in Path("out").rglob("*") if path.is_file()]
    assert not any(ALICE.token in text for text in everything)


def test_the_card_is_written_again_from_the_report(result, capsys):
    first = Path("out/README.md").read_bytes()
    Path("out/README.md").unlink()
    assert run("card", "out") == 0
    assert Path("out/README.md").read_bytes() == first
    assert run("card", "model") == 2
    assert is_packed(Path("out")) is False


@pytest.mark.slow
def test_the_missions_command_word_for_word(tmp_path, local_hub):
    config = MambaConfig(hidden_size=1024, num_hidden_layers=2, vocab_size=50280, time_step_rank=64, pad_token_id=0)
    write_original(tmp_path / "370m", MambaForCausalLM(config))
    local_hub.add_model("state-spaces/mamba-370m", tmp_path / "370m")
    build_tokenizer().save_pretrained(tmp_path / "neox")
    local_hub.add_model("EleutherAI/gpt-neox-20b", tmp_path / "neox")
    rows = [f" The number {i} is followed by {i + 1} .\n" for i in range(6000)]
    for split, count in {"train": 6000, "test": 300}.items():
        pyarrow.parquet.write_table(pyarrow.table({"text": rows[:count]}), tmp_path / f"{split}.parquet")
    card = "---\nconfigs:\n- config_name: wikitext-103-raw-v1\n  data_files:\n"
    card += "".join(f"  - split: {split}\n    path: {split}.parquet\n" for split in ("train", "test")) + "---\n"
    files = {f"{split}.parquet": (tmp_path / f"{split}.parquet").read_bytes() for split in ("train", "test")}
    local_hub.add_dataset("Salesforce/wikitext", files | {"README.md": card.encode()})
    env = local_hub.env(tmp_path / "home", ALICE.token) | {
        "PYTHONPATH": str(Path(hf_mamba_prune.__file__).parent.parent)
    }
    start = [sys.executable, "-c", "from hf_mamba_prune.command.cli import main; main()"]
    mission = "state-spaces/mamba-370m --sparsity 0.7 --push".split()
    done = subprocess.run([*start, *mission], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    repo = "alice/mamba-370m-pruned-70"
    assert len(titles(local_hub, repo)) == 2
    code = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "here, there = (AutoModelForCausalLM.from_pretrained(name).state_dict() for name in sys.argv[1:])\n"
        "assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)\n"
    )
    fresh = [sys.executable, "-c", code, "mamba-370m-pruned-70", repo]
    again = subprocess.run(fresh, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-3000:]
    assert ALICE.token not in done.stdout + done.stderr


def test_the_trainer_pushes_the_same_card_and_never_its_token(place, local_hub, monkeypatch):
    Path("model/README.md").write_text("---\nlicense: mit\n---\n# Base\n", encoding="utf-8")
    local_hub.add_model("bob/base", Path("model"))
    tokens = torch.randint(200, (8, 12)).tolist()
    data = datasets.Dataset.from_dict({"input_ids": tokens, "labels": tokens})
    trainer = PruningTrainer(
        AutoModelForCausalLM.from_pretrained("bob/base"),
        TrainingArguments(
            "trained",
            max_steps=4,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            save_strategy="no",
            hub_token=ALICE.token,
        ),  # fmt: skip
        train_dataset=data,
        eval_dataset=data,
        pruning_config=PruningConfig(sparsity=0.6, score="magnitude", steps=2),
    )
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    local_hub.attach(monkeypatch, place / "other", None)  # the token of the arguments must do
    trainer.push_to_hub(dataset="bob/words", language="en")
    assert {"README.md", "report.json", "pruning_config.json", "figures/sparsity.png"} <= set(
        local_hub.files("alice/trained")
    )
    report = PruningReport.load("trained")
    card = ModelCard.load("alice/trained")
    assert card.content == render_card(report, "alice/trained")
    assert (card.data.base_model, card.data.license, card.data.language) == ("bob/base", "mit", ["en"])
    assert [result.metric_value for result in card.data.eval_results] == [loss]
    assert "Trained on bob/words for 4 steps" in card.text
    assert torch.load("trained/training_args.bin", weights_only=False).hub_token == "<HUB_TOKEN>"
    again = AutoModelForCausalLM.from_pretrained("alice/trained")
    zeros = sum(int((target.weight(again) == 0).sum()) for target in find_targets(again))
    assert zeros == report.sparsity.prunable.zeros == report.sparsity.masked
    assert report.sparsity.prunable.sparsity == pytest.approx(0.6, abs=1e-3)


def test_the_card_of_a_head_says_how_to_load_it_and_not_where_it_lay(place, local_hub):
    config = MambaConfig(vocab_size=264, hidden_size=24, num_hidden_layers=2, state_size=4, num_labels=2)
    MambaForSequenceClassification(config).save_pretrained("private/clients/acme")
    rows = [{"input_ids": ids, "labels": torch.tensor(i % 2)} for i, ids in enumerate(torch.randint(200, (8, 12)))]
    trainer = PruningTrainer(
        MambaForSequenceClassification.from_pretrained("private/clients/acme"),
        TrainingArguments("sorted", max_steps=4, logging_steps=1, report_to="none", use_cpu=True, save_strategy="no"),
        train_dataset=rows,
        pruning_config=PruningConfig(sparsity=0.6, score="magnitude", steps=2),
    )
    trainer.train()
    loss = trainer.evaluate(rows)["eval_loss"]
    trainer.push_to_hub(dataset=["bob/words", "eve/more"])
    card = ModelCard.load("alice/sorted")
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.datasets == ["bob/words", "eve/more"]
    assert "AutoModelForSequenceClassification.from_pretrained" in card.text and "CausalLM" not in card.text
    assert "private" not in card.content and "private" not in Path("sorted/report.json").read_text()
    (measured,) = PruningReport.load("sorted").tasks_after
    assert (measured.value, measured.examples) == (loss, 8)
    again = AutoModelForSequenceClassification.from_pretrained("alice/sorted")
    assert torch.equal(again.score.weight, trainer.model.score.weight)
