"""The same command as a Hub Job: price first, the token only as a secret, one clear line when it fails."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import local_hub as hubs
import pytest
from conftest import run
from local_hub import ALICE
from tiny_models import build_model, build_tokenizer

import hf_mamba_prune
from hf_mamba_prune.publish import cloud
from hf_mamba_prune.publish.cloud import without_option
from hf_mamba_prune.publish.package import running_wheel

local_hub = hubs.local_hub
PACKAGES = "alice/hf-mamba-prune-jobs"
COMMAND = ("bob/base", "--sparsity", "0.7", "--push", "--on-hub", "l4x1", "--max-hours", "2")


wheel_once = functools.cache(running_wheel)


@pytest.fixture
def place(tmp_path, monkeypatch, local_hub) -> Path:
    """A folder in which the command runs as alice, and a model on the Hub."""
    local_hub.attach(monkeypatch, tmp_path / "home", ALICE.token)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cloud, "running_wheel", wheel_once)
    build_model("mamba").save_pretrained("made")
    build_tokenizer().save_pretrained("made")
    local_hub.add_model("bob/base", Path("made"))
    return tmp_path


def test_the_command_goes_to_the_hub_and_its_log_comes_back(place, local_hub, capsys):
    assert run(*COMMAND) == 0
    (job,) = local_hub.jobs
    spec = job.spec
    assert spec["command"][:2] == ["bash", "-c"] and "--on-hub" not in spec["command"]
    assert spec["command"][3:] == ["hf-mamba-prune", "bob/base", "--sparsity", "0.7", "--push", "--max-hours", "2"]
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
    assert local_hub.jobs[0].spec["environment"]["NEEDED"].startswith("hf-mamba-prune[eval] @ file:///package/")


def job_folder(local_hub, spec: dict, place: Path) -> Path:
    """What a job finds where its volume is mounted: the files of a private repository at one commit."""
    (volume,) = spec["volumes"]
    assert (volume["type"], volume["source"], volume["readOnly"]) == ("model", PACKAGES, True)
    assert local_hub.repos["model", PACKAGES].private
    folder = place / "package"
    for name, content in local_hub.files(PACKAGES, volume["revision"]).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_job_installs_the_running_package_and_nothing_that_a_name_finds(place, local_hub):
    assert run(*COMMAND) == 0
    spec = local_hub.jobs[0].spec
    folder = job_folder(local_hub, spec, place)
    wheel = folder / Path(spec["environment"]["WHEEL"]).relative_to("/package")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == spec["environment"]["SHA256"]
    assert spec["environment"]["NEEDED"] == f"hf-mamba-prune @ file://{spec['environment']['WHEEL']}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", "there"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    here = Path(hf_mamba_prune.__file__).parent
    ours = {path.relative_to(here) for path in here.rglob("*.py")}
    there = {path.relative_to("there/hf_mamba_prune") for path in Path("there/hf_mamba_prune").rglob("*.py")}
    assert there == ours and not [*Path("there").rglob("*.so"), *Path("there").rglob("*.cpp")]
    assert all((Path("there/hf_mamba_prune") / name).read_bytes() == (here / name).read_bytes() for name in ours)
    assert (Path("there/bin/hf-mamba-prune")).is_file()


@pytest.mark.parametrize("whole", [True, False])
def test_a_job_starts_only_with_the_wheel_that_was_sent(place, local_hub, whole):
    assert run(*COMMAND) == 0
    spec = local_hub.jobs[0].spec
    wheel = job_folder(local_hub, spec, place) / Path(spec["environment"]["WHEEL"]).relative_to("/package")
    if not whole:
        wheel.write_bytes(wheel.read_bytes()[:-1])
    tool = place / "bin" / "uv"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nprintf '<%s>' \"$@\"\n")
    tool.chmod(0o755)
    found = {"PATH": f"{tool.parent}:{os.environ['PATH']}", **spec["environment"], "WHEEL": str(wheel)}
    done = subprocess.run(spec["command"], env=found, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == whole
    wanted = ("run", "--no-project", "--with", spec["environment"]["NEEDED"], "hf-mamba-prune", *spec["command"][4:])
    assert (done.stdout == "".join(f"<{word}>" for word in wanted)) == whole
    assert ("<run>" in done.stdout) == whole


def test_the_same_package_is_sent_once(place, local_hub):
    assert run(*COMMAND) == run(*COMMAND) == 0
    first, second = (job.spec["volumes"][0]["revision"] for job in local_hub.jobs)
    assert first == second and len(local_hub.commits(PACKAGES)) == 2


def test_a_package_that_is_not_installed_is_refused(place, local_hub, monkeypatch, capsys):
    def not_there(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(cloud, "running_wheel", running_wheel)
    monkeypatch.setattr(metadata, "distribution", not_there)
    assert run(*COMMAND) == 1
    assert "cannot be told what to install: run `pip install" in capsys.readouterr().err
    assert not local_hub.jobs and ("model", PACKAGES) not in local_hub.repos


ASKED = {
    "machines": ("GET", "/api/jobs/hardware"),
    "package": ("POST", "/commit/"),
    "start": ("POST", "/api/jobs/alice"),
    "state": ("GET", "/api/jobs/alice/job0$"),
}


SHAPES = (b"<html>", b"{}", b"[1]", b"null")


@pytest.mark.parametrize(
    ("name", "body"),
    [
        pytest.param(name, body, marks=[pytest.mark.slow] * ((i + j) % len(SHAPES) != 3))
        for (i, name), (j, body) in itertools.product(enumerate(ASKED), enumerate(SHAPES))
    ],
)
def test_an_answer_of_another_shape_is_a_sentence(place, local_hub, capsys, name, body):
    failure = local_hub.fail(*ASKED[name], body=body, times=None)
    assert run(*COMMAND) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert failure.hits and "is not what the Hub sends" in error
    assert ("hf jobs ps" in error) == (name == "start") and ("The job goes on: " in error) == (name == "state")


@pytest.mark.parametrize("body", [b"{}", b"[1]"])
def test_a_job_that_loses_its_state_while_it_is_followed_is_not_followed_on(place, local_hub, capsys, body):
    failure = local_hub.fail(*ASKED["state"], body=body, skip=1, times=None)
    local_hub.jobs_end = "RUNNING"
    assert run(*COMMAND) == 1
    said = capsys.readouterr()
    assert failure.hits < 5 and "pushed" in said.out
    assert "is not what the Hub sends" in said.err and "The job goes on: " in said.err


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
