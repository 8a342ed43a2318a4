"""The same command as a Hub Job: price first, the token only as a secret, one clear line when it fails."""

from __future__ import annotations

from pathlib import Path

import local_hub as hubs
import pytest
from conftest import run
from local_hub import ALICE
from tiny_models import build_model, build_tokenizer

from hf_mamba_prune.publish.cloud import without_option

local_hub = hubs.local_hub
COMMAND = ("bob/base", "--sparsity", "0.7", "--push", "--on-hub", "l4x1", "--max-hours", "2")


@pytest.fixture
def place(tmp_path, monkeypatch, local_hub) -> Path:
    """A folder in which the command runs as alice, and a model on the Hub."""
    local_hub.attach(monkeypatch, tmp_path / "home", ALICE.token)
    monkeypatch.chdir(tmp_path)
    build_model("mamba").save_pretrained("made")
    build_tokenizer().save_pretrained("made")
    local_hub.add_model("bob/base", Path("made"))
    return tmp_path


def test_the_command_goes_to_the_hub_and_its_log_comes_back(place, local_hub, capsys):
    assert run(*COMMAND) == 0
    (job,) = local_hub.jobs
    spec = job.spec
    assert (
        spec["command"][-6:] == ["hf-mamba-prune", "bob/base", "--sparsity", "0.7", "--push", "--max-hours", "2"][-6:]
    )
    assert spec["command"][:3] == ["uv", "run", "--with"] and "--on-hub" not in spec["command"]
    assert (spec["flavor"], spec["timeoutSeconds"]) == ("l4x1", 7200)
    assert spec["secrets"] == {"HF_TOKEN": ALICE.token}
    assert ALICE.token not in str(spec | {"secrets": None})
    shown = capsys.readouterr().out
    assert ALICE.token not in shown
    lines = shown.splitlines()
    assert lines[0].startswith(
        "On 1x Nvidia L4 (8 vCPU, 30 GB): $0.80 an hour, stopped after 2 hours, so $1.60 at most."
    )
    assert lines.index("pruning") < lines.index("pushed")
    assert "Pushed: alice/base-pruned-70" in shown


def test_tasks_bring_what_they_need(place, local_hub):
    assert run(*COMMAND, "--tasks", "piqa") == 0
    assert any(part.startswith("hf-mamba-prune[eval]") for part in local_hub.jobs[0].spec["command"])


REFUSED = {
    "at least a second": ("bob/base", "--push", "--on-hub", "l4x1", "--max-hours", "0"),
    "and an end": ("bob/base", "--push", "--on-hub", "l4x1", "--max-hours", "inf"),
    "add --push": ("bob/base", "--on-hub", "l4x1"),
    "lies on this machine": ("made", "--push", "--on-hub", "l4x1"),
    "Did you mean 'l4x1'": ("bob/base", "--push", "--on-hub", "l4x2"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_could_not_work_is_refused(place, local_hub, capsys, message):
    assert run(*REFUSED[message]) == 2
    assert message in capsys.readouterr().err
    assert not local_hub.jobs


@pytest.mark.parametrize(("status", "message"), {403: "token may not write", 500: "try again later"}.items())
def test_a_hub_that_refuses_is_said_in_a_line(place, local_hub, capsys, status, message):
    local_hub.fail("POST", "/api/jobs/", status=status)
    assert run(*COMMAND) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error and ALICE.token not in error


def test_a_job_that_fails_is_a_failure(place, local_hub, capsys):
    local_hub.jobs_end = "ERROR"
    assert run(*COMMAND) == 1
    assert "the job ended as ERROR" in capsys.readouterr().err


def test_an_option_is_taken_out_with_its_value():
    assert without_option(["a", "--on-hub", "b", "--c", "--on-hub=d"], "--on-hub") == ("a", "--c")
