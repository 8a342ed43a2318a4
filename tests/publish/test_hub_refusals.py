"""What the Hub would refuse, or make public, is said before the work; what a user wrote is not written over."""

from __future__ import annotations

from pathlib import Path

import local_hub as hubs
import pushing
import pytest
from conftest import run
from local_hub import ALICE
from pushing import PRUNE, REPO
from transformers import AutoTokenizer

from hf_mamba_prune import PruningReport, native

local_hub, place, pruned, result = hubs.local_hub, pushing.place, pushing.pruned, pushing.result
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--repo-id", "carol/mine"), "there is no carol/mine, and you cannot make it, as you write to alice, guild"),
        (("--repo-id", "guild/mine", "--push-revision", "v2"), "there is no guild/mine yet, so it has no branch v2"),
        (("--repo-id", "alice/open", "--private"), "alice/open exists and is public, and --private makes only new"),
    ],
)
def test_it_is_said_before_the_work(place, local_hub, monkeypatch, capsys, options, message):
    local_hub.add_user("alice", ALICE.token, orgs=("guild",))
    local_hub.add_model("alice/open", {"README.md": b"# Soon\n"})
    assert run(*PRUNE, "--push", *options) == 1
    assert message in capsys.readouterr().err and not Path("out").exists()
    assert ("model", "guild/mine") not in local_hub.repos


def test_who_is_not_logged_in_hears_it_before_the_work(place, local_hub, monkeypatch, capsys):
    local_hub.attach(monkeypatch, place / "nobody", None)
    assert run(*PRUNE, "--push", "--repo-id", REPO) == 1
    assert "hf auth login" in capsys.readouterr().err and not Path("out").exists()


@pytest.mark.parametrize("private", [False, True])
def test_a_new_repository_is_private_only_when_asked(result, local_hub, private):
    push = ("push", "out", "--force", "--repo-id", REPO)
    assert run(*push, "--quiet", *(["--private"] if private else [])) == 0
    assert local_hub.repos["model", REPO].private == private


def test_a_card_that_somebody_wrote_in_is_pushed_as_it_is(result, local_hub):
    push = ("push", "out", "--force", "--overwrite", "--quiet")
    assert run(*push, "--repo-id", "alice/first") == 0
    assert run(*push, "--repo-id", "alice/second") == 0
    assert b'from_pretrained("alice/second")' in local_hub.files("alice/second")["README.md"]
    card = Path("out/README.md")
    card.write_text(card.read_text(encoding="utf-8") + "\n## My own notes\n", encoding="utf-8")
    assert run(*push, "--repo-id", "alice/second") == 0
    assert local_hub.files("alice/second")["README.md"].endswith(b"## My own notes\n")
    assert card.read_text(encoding="utf-8").endswith("## My own notes\n")


def test_a_chat_template_comes_along(place, local_hub):
    Path("model/chat_template.jinja").write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    local_hub.add_model("alice/talks", Path("model"))
    assert run("alice/talks", *PRUNE[1:], "--quiet") == 0
    assert AutoTokenizer.from_pretrained("out").chat_template == "{{ messages[0]['content'] }}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--repo-id", REPO, "--private"), "--repo-id, --private does nothing without --push"),
        (("--values", "int8"), "--values does nothing without --pack"),
        (("--recover-dataset", "none.txt", "--recover-lr", "7"), "--recover-lr, --recover-dataset does nothing"),
        (("--max-examples", "3"), "--max-examples does nothing without --tasks"),
    ],
)
def test_options_that_would_do_nothing_are_refused(place, capsys, options, message):
    assert run(*PRUNE, *options) == 2
    assert message in capsys.readouterr().err and not Path("out").exists()


def test_an_analysis_measures_on_one_text(place, capsys):
    texts = ("--eval", "text.txt", "--eval", "text.txt")
    small = ("--calibration", "text.txt", "--calibration-samples", "2", "--calibration-length", "16", "--window", "32")
    assert run("analyze", "model", *texts, *small) == 2
    assert "an analysis measures on one held text, and 2 were given" in capsys.readouterr().err


def test_a_download_that_breaks_off_is_a_sentence(place, local_hub, capsys):
    local_hub.add_model("alice/model", Path("model"))
    local_hub.fail("GET", "^/objects/", cut_answer=100, times=None)
    assert run("alice/model", *PRUNE[1:]) == 1
    error = capsys.readouterr().err
    assert "while fetching alice/model" in error and "Traceback" not in error


def test_the_report_names_the_kernels_that_ran(result):
    assert run(*PRUNE, "--no-native", "--quiet", "--output", "stock") == 0
    named = {name: PruningReport.load(name).hardware["kernels"] for name in ("out", "stock")}
    assert named["stock"] == "none" and (named["out"] == "none") == (not native.available())
