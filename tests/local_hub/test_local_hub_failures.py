"""Failures made to order on the local Hub, and what the real client makes of each."""

from __future__ import annotations

import json
import time

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants, errors
from huggingface_hub.utils import get_session
from transformers import AutoConfig

import local_hub as hubs
from local_hub import ALICE, BOB

# huggingface_hub passes open files to its HTTP library in a way that the library has given up.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

local_hub = hubs.local_hub
REPO = "alice/model"
WEIGHTS = bytes(range(256)) * 4000
INFO, RESOLVE, PREUPLOAD, COMMIT = r"/api/models/alice/model", r"/resolve/", r"/preupload/", r"/commit/"
BATCH, UPLOAD, VERIFY = r"/objects/batch", r"^/uploads/", r"/lfs/verify"


@pytest.fixture
def api(local_hub, monkeypatch, tmp_path):
    """The client of this process, logged in as alice, whose repo holds a configuration."""
    local_hub.attach(monkeypatch, tmp_path / "home", ALICE.token)
    local_hub.add_model(REPO, {"config.json": b"{}", "big.bin": WEIGHTS})
    return HfApi()


def push(api):
    operations = [CommitOperationAdd("model.safetensors", WEIGHTS[::-1]), CommitOperationAdd("report.json", b"{}")]
    return api.create_commit(REPO, operations, commit_message="Push")


def download(api):
    return api.hf_hub_download(REPO, "config.json")


def count(hub, method, path):
    return sum(seen.method == method and path in seen.path for seen in hub.requests)


NOT_FOUND, HTTP = errors.RepositoryNotFoundError, errors.HfHubHTTPError


@pytest.mark.parametrize(
    ("action", "method", "path", "status", "kind", "tries"),
    [
        # A look at the repo is tried once, whatever comes back.
        (HfApi.whoami, "GET", "whoami", 401, HTTP, 1),
        (HfApi.whoami, "GET", "whoami", 429, HTTP, 1),
        *[(lambda api: api.model_info(REPO), "GET", INFO, s, k, 1) for s, k in [(401, NOT_FOUND), (403, HTTP)]],
        *[(lambda api: api.model_info(REPO), "GET", INFO, s, k, 1) for s, k in [(404, NOT_FOUND), (429, HTTP)]],
        (lambda api: api.model_info(REPO), "GET", INFO, 500, HTTP, 1),
        # A download asks for the headers once, looks into the cache, asks on, and says that the file is in neither ...
        (download, "HEAD", RESOLVE, 401, NOT_FOUND, 1),
        (download, "HEAD", RESOLVE, 403, errors.LocalEntryNotFoundError, 1),
        (download, "HEAD", RESOLVE, 404, NOT_FOUND, 1),
        (download, "HEAD", RESOLVE, 429, errors.LocalEntryNotFoundError, 7),
        (download, "HEAD", RESOLVE, 500, errors.LocalEntryNotFoundError, 7),
        # ... and its content again only when it was told to come more slowly.
        (download, "GET", RESOLVE, 403, HTTP, 1),
        (download, "GET", RESOLVE, 429, HTTP, 6),
        (download, "GET", RESOLVE, 500, HTTP, 1),
        # Of an upload everything is tried again but the commit itself.
        (push, "POST", PREUPLOAD, 403, HTTP, 1),
        (push, "POST", PREUPLOAD, 500, HTTP, 6),
        (push, "POST", BATCH, 429, HTTP, 6),
        (push, "PUT", UPLOAD, 403, RuntimeError, 1),
        (push, "PUT", UPLOAD, 500, RuntimeError, 6),
        (push, "POST", VERIFY, 500, RuntimeError, 6),
        (push, "POST", COMMIT, 401, NOT_FOUND, 1),
        (push, "POST", COMMIT, 403, HTTP, 1),
        (push, "POST", COMMIT, 404, NOT_FOUND, 1),
        (push, "POST", COMMIT, 409, HTTP, 1),
        (push, "POST", COMMIT, 412, HTTP, 1),
        (push, "POST", COMMIT, 429, HTTP, 1),
        (push, "POST", COMMIT, 500, HTTP, 1),
    ],
)
def test_each_status_becomes_its_exception(api, local_hub, action, method, path, status, kind, tries):
    before = local_hub.commits(REPO)
    failure = local_hub.fail(method, path, status, times=None)
    with pytest.raises(kind) as refused:
        action(api)
    assert type(refused.value) is kind and failure.hits == tries
    cause = refused.value if isinstance(refused.value, HTTP) else refused.value.__cause__
    assert cause.response.status_code == status
    assert ALICE.token not in f"{refused.value!r}{refused.value}{cause}"
    assert local_hub.commits(REPO) == before
    failure.times = 0
    action(api)


@pytest.mark.parametrize(("method", "path"), [("POST", PREUPLOAD), ("POST", BATCH), ("PUT", UPLOAD), ("POST", VERIFY)])
def test_an_upload_outlives_trouble_that_passes(api, local_hub, method, path):
    failure = local_hub.fail(method, path, 500, times=3)
    push(api)
    assert failure.hits == 3 and local_hub.files(REPO)["model.safetensors"] == WEIGHTS[::-1]


def test_retry_after_is_waited_for(api, local_hub):
    local_hub.fail("POST", PREUPLOAD, 429, retry_after=0)
    start = time.monotonic()
    push(api)
    assert time.monotonic() - start >= 1  # the client adds a second


def test_a_cut_upload_is_sent_again(api, local_hub):
    failure = local_hub.fail("PUT", UPLOAD, cut_request=300_000, times=2)
    push(api)
    assert failure.hits == 2 and local_hub.files(REPO)["model.safetensors"] == WEIGHTS[::-1]
    assert [seen.status for seen in local_hub.requests if seen.method == "PUT"] == [None, None, 200]


def test_an_upload_that_stays_cut_leaves_nothing_and_can_be_repeated(api, local_hub):
    before = local_hub.files(REPO)
    failure = local_hub.fail("PUT", UPLOAD, cut_request=300_000, times=None)
    with pytest.raises(RuntimeError, match="Error while uploading 'model.safetensors'") as refused:
        push(api)
    assert failure.hits == 6 and isinstance(refused.value.__cause__, httpx2.NetworkError | httpx2.RemoteProtocolError)
    assert local_hub.files(REPO) == before and not count(local_hub, "POST", "/commit/")
    failure.times = 0
    push(api)
    assert local_hub.files(REPO)["model.safetensors"] == WEIGHTS[::-1]


def test_a_cut_commit_is_not_visible_and_its_objects_need_not_go_up_again(api, local_hub):
    before = local_hub.commits(REPO)
    local_hub.fail("POST", COMMIT, cut_request=100)
    with pytest.raises(httpx2.TransportError):
        push(api)
    assert local_hub.commits(REPO) == before
    push(api)
    assert len(local_hub.commits(REPO)) == len(before) + 1 and count(local_hub, "PUT", "/uploads/") == 1


def test_a_commit_whose_answer_is_lost_was_made_and_is_not_made_twice(api, local_hub):
    before = local_hub.commits(REPO)
    local_hub.fail("POST", COMMIT, cut_answer=0)
    with pytest.raises(httpx2.TransportError):
        push(api)
    made = local_hub.commits(REPO)
    assert len(made) == len(before) + 1
    assert push(api).oid == made[0].id and local_hub.commits(REPO) == made


def test_a_commit_of_an_object_that_never_came_is_refused(api, local_hub):
    before = local_hub.commits(REPO)
    lfs = {"path": "model.bin", "algo": "sha256", "oid": "0" * 64, "size": 3}
    small = {"path": "small.txt", "content": "YQ==", "encoding": "base64"}
    head = {"key": "header", "value": {"summary": "Half", "description": ""}}

    def post(*lines, token=ALICE.token):
        body = "".join(json.dumps(line) + "\n" for line in (head, *lines))
        address = f"{local_hub.url}/api/models/{REPO}/commit/main"
        return get_session().post(address, content=body, headers={"Authorization": f"Bearer {token}"})

    refused = post({"key": "file", "value": small}, {"key": "lfsFile", "value": lfs})
    assert refused.status_code == 400 and "never uploaded: model.bin" in refused.json()["error"]
    assert post({"key": "file", "value": {**small, "path": "../climbs.txt"}}).status_code == 400
    assert post({"key": "file", "value": small}, token=BOB.token).status_code == 403
    assert local_hub.commits(REPO) == before
    assert get_session().put(f"{local_hub.storage_url}/uploads/{'0' * 64}", content=b"xyz").status_code == 400
    assert not local_hub.blobs.path("0" * 64).exists()


def test_a_cut_download_goes_on_where_it_broke(api, local_hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # an unfinished chunk (10 MiB) is thrown away
    failure = local_hub.fail("GET", "^/objects/", cut_answer=500_000)
    with open(api.hf_hub_download(REPO, "big.bin"), "rb") as file:
        assert file.read() == WEIGHTS
    assert failure.hits == 1
    assert [seen.status for seen in local_hub.requests if seen.path.startswith("/objects/")] == [None, 206]


def test_a_slow_answer_is_waited_for_only_where_the_client_has_time(api, local_hub):
    failure = local_hub.fail("GET|HEAD", REPO, delay=0.5, times=None)
    with pytest.raises(httpx2.ReadTimeout):
        api.model_info(REPO, timeout=0.1)
    assert failure.hits == 1
    # With nothing in the cache a download asks a second time, and then waits for up to a minute.
    assert api.hf_hub_download(REPO, "config.json", etag_timeout=0.1)
    assert [seen.method for seen in local_hub.requests if "/resolve/" in seen.path] == ["HEAD", "HEAD", "GET"]


@pytest.mark.parametrize("status", [429, 500])
def test_transformers_says_that_it_could_not_connect(api, local_hub, status):
    local_hub.fail(".*", ".*", status, times=None)
    with pytest.raises(OSError, match="We couldn't connect to"):
        AutoConfig.from_pretrained(REPO)
