"""Every request of a push fails in every way, with the content store and without, and ends as promised."""

from __future__ import annotations

import shlex
import shutil
import time
from itertools import product
from pathlib import Path

import local_hub as hubs
import pushing
import pytest
from conftest import run
from local_hub import ALICE
from pushing import OF_LFS, OF_THE_HUB, OF_XET, REPO

local_hub, pruned = hubs.local_hub, pushing.pruned
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning", "ignore:Warnings while validating")
PUSH = ("push", "out", "--repo-id", REPO, "--force")

WAYS = {str(status): {"status": status} for status in (401, 403, 404, 409, 412, 429, 500)}
WAYS |= {"cut": {"cut_request": 1}, "no JSON": {"body": b"<html>Please log in</html>"}}
SHAPES = {shape: {"body": shape.encode()} for shape in ("{}", "[1]", "null")}
WITHOUT_XET, WITH_XET = OF_THE_HUB | OF_LFS, OF_THE_HUB | OF_XET
REQUESTS = [(False, name) for name in WITHOUT_XET] + [(True, name) for name in WITH_XET]
CASES = list(product(REQUESTS, WAYS | SHAPES))
"""All are slow tests together; the fast ones are every twenty-fourth."""

HARMLESS = {
    *product(["card"], ["{}"]),  # nothing is said against it
    *product(["verify"], ["no JSON", *SHAPES]),  # 200 is all that is looked at there
    *product(["chunk"], WAYS.keys() - {"no JSON"}),  # it is then sent, whether or not the store knows it
    *product(["grant"], ["404"]),  # an older store: without one
}
"""The client goes on, and the push is made."""


def contents(folder: Path) -> dict[str, bytes]:
    """Path and bytes of all files but the card, which is rendered for its repository."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "README.md")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize(
    ("xet", "name", "way"),
    [
        pytest.param(*request, way, marks=[] if (at + at // len(WAYS | SHAPES)) % 24 == 5 else pytest.mark.slow)
        for at, (request, way) in enumerate(CASES)
    ],
)
def test_a_request_that_fails(pruned, tmp_path, local_hub, monkeypatch, capsys, xet, name, way):
    shutil.copytree(pruned / "out", tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    before = contents(Path("out"))
    local_hub.attach(monkeypatch, tmp_path / "home", ALICE.token, xet=xet)
    failure = local_hub.fail(*(WITH_XET if xet else WITHOUT_XET)[name], times=None, **(WAYS | SHAPES)[way])
    start = time.monotonic()
    code = run(*PUSH)
    assert time.monotonic() - start < 60
    assert failure.hits
    error = capsys.readouterr().err
    assert code == (0 if (name, way) in HARMLESS else 1)
    if code:
        assert "Traceback" not in error and local_hub.url not in error and local_hub.storage_url not in error
        last = error.splitlines()[-1]
        start = ("hf-mamba-prune: error: the Hub", "hf-mamba-prune: error: the connection to the Hub broke")
        assert last.startswith(start) or name == "look"
        assert last.endswith(f"The result is in out; push it with: {shlex.join(('hf-mamba-prune', *PUSH))}")
        repo = local_hub.repos.get(("model", REPO))
        assert repo is None or len(local_hub.commits(REPO)) == 1
    assert contents(Path("out")) == before
    failure.times = 0
    assert run(*PUSH, "--quiet") == 0
    assert contents(Path("out")).items() <= local_hub.files(REPO).items()
    assert len(local_hub.commits(REPO)) == 2
