"""What a push sends: all of a result, and nothing that is half written, a training's, or lies elsewhere."""

from __future__ import annotations

from pathlib import Path

import local_hub as hubs
import pushing
import pytest
from conftest import run
from pushing import REPO, SMALL

from hf_mamba_prune import PruningReport
from hf_mamba_prune.publish import hub

local_hub, pruned, result = hubs.local_hub, pushing.pruned, pushing.result
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
PUSH = ("push", "out", "--repo-id", REPO, "--force")

UNFINISHED = (
    "_README.md.part", "README.part", "figures/quality.png.tmp", "model.safetensors.incomplete", "README.md~",
    "_unfinished/checkpoint-4/optimizer.pt", "checkpoint-4/optimizer.pt", ".cache/huggingface/a.lock", ".git/config",
)  # fmt: skip


def test_what_is_half_written_is_left_out(result, local_hub, capsys):
    whole = {path.relative_to("out").as_posix() for path in Path("out").rglob("*") if path.is_file()}
    for name in UNFINISHED:
        path = Path("out", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half of it")
    assert run(*PUSH) == 0
    assert local_hub.files(REPO).keys() == whole | {".gitattributes"}
    assert run(*PUSH) == 0
    assert "The Hub holds this already: " in capsys.readouterr().out


def test_a_card_that_is_killed_while_it_is_written_leaves_a_name_that_is_left_out(result, monkeypatch):
    def killed(self, target):
        raise KeyboardInterrupt

    before = {path.name for path in Path("out").iterdir()}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        hub.write_card(Path("out"))
    (left,) = {path.name for path in Path("out").iterdir()} - before
    assert left not in hub._files(Path("out"))
    assert left.startswith("_")  # which the Trainer's own push leaves out, too


@pytest.mark.parametrize("name", ["secret.txt", "figures/secret.txt", "elsewhere"])
def test_a_link_out_of_the_folder_is_refused(result, local_hub, capsys, name):
    Path("private").mkdir()
    Path("private/key").write_text("mine")
    Path("out", name).symlink_to(Path("private/key" if "." in name else "private").absolute())
    assert run(*PUSH) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"out/{name} is a link to something outside out" in error
    assert ("model", REPO) not in local_hub.repos


def test_a_link_within_the_folder_is_pushed_as_its_file(result, local_hub):
    Path("out/again.json").symlink_to("report.json")
    assert run(*PUSH) == 0
    assert local_hub.files(REPO)["again.json"] == Path("out/report.json").read_bytes()


def test_the_commit_says_what_was_done(result, local_hub):
    assert run(*PUSH) == 0
    assert local_hub.commits(REPO)[0].title == "model pruned to 70% by hf-mamba-prune"
    assert run("model", "--bits", "5", *SMALL[:-2], "--no-eval", "--output", "small", "--quiet") == 0
    assert run("push", "small", "--repo-id", "alice/small", "--force") == 0
    bits = PruningReport.load("small").rounding.bits
    assert local_hub.commits("alice/small")[0].title == (
        f"model rounded to {bits:.3g} bits a projection weight by hf-mamba-prune"
    )
