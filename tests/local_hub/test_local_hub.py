"""The local Hub speaks the Hub's protocol: proved through the real client, with nothing inside it replaced."""

from __future__ import annotations

import io
import subprocess
import sys

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, errors
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
)

import local_hub as hubs
from local_hub import ALICE, BOB

# huggingface_hub passes open files to its HTTP library in a way that the library has given up.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

local_hub = hubs.local_hub
WEIGHTS = bytes(range(256)) * 400
REPO = "alice/model"


@pytest.fixture
def api(local_hub, monkeypatch, tmp_path):
    """The client of this process, logged in as alice."""
    local_hub.attach(monkeypatch, tmp_path / "home", ALICE.token)
    return HfApi()


@pytest.fixture
def folder(tmp_path):
    """A folder with a text file, a binary file and one in a folder below."""
    path = tmp_path / "folder"
    (path / "packed").mkdir(parents=True)
    (path / "config.json").write_text('{"a": 1}\n')
    (path / "model.safetensors").write_bytes(WEIGHTS)
    (path / "packed" / "notes.txt").write_text("packed\n")
    return path


def push(api, folder, **options):
    api.create_repo(REPO, exist_ok=True)
    return api.upload_folder(repo_id=REPO, folder_path=folder, commit_message="Push", **options)


def titles(hub, revision="main"):
    return [commit.title for commit in hub.commits(REPO, revision)]


def test_repos_are_created_once_and_only_in_a_namespace_of_ones_own(api, local_hub):
    assert api.whoami()["name"] == "alice"
    url = api.create_repo(REPO)
    assert (url.repo_id, url.repo_type, str(url)) == (REPO, "model", f"{local_hub.url}/{REPO}")
    with pytest.raises(errors.HfHubHTTPError) as refused:
        api.create_repo(REPO)
    assert refused.value.response.status_code == 409
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    for owner, token in (("bob", ALICE.token), ("bob", BOB.token)):
        with pytest.raises(errors.HfHubHTTPError, match="403 Forbidden"):
            api.create_repo(f"{owner}/model", token=token)
    assert titles(local_hub) == ["initial commit"] and list(local_hub.files(REPO)) == [".gitattributes"]
    api.delete_repo(REPO)
    assert not api.repo_exists(REPO)


def test_a_folder_goes_up_in_one_commit_and_comes_down_byte_for_byte(api, local_hub, folder, tmp_path):
    info = push(api, folder)
    sent = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert titles(local_hub) == ["Push", "initial commit"] and info.oid == local_hub.commits(REPO)[0].id
    assert {path: data for path, data in local_hub.files(REPO).items() if path != ".gitattributes"} == sent
    stored = {file.path: file.lfs for file in api.list_repo_tree(REPO, recursive=True) if hasattr(file, "lfs")}
    assert [path for path, lfs in stored.items() if lfs] == ["model.safetensors"]

    local = api.snapshot_download(REPO, local_dir=tmp_path / "copy")
    assert all((tmp_path / "copy" / path).read_bytes() == data for path, data in sent.items()), local
    fetched = [seen for seen in local_hub.requests if seen.host == "localhost"]
    assert {seen.method for seen in fetched} == {"PUT", "GET"}  # LFS objects lie on another host,
    assert not any(seen.with_token for seen in fetched)  # to which the client does not bring its token
    assert not [seen for seen in local_hub.requests if seen.status == 404 and "/api/" in seen.path]


def test_a_push_without_changes_makes_no_commit(api, local_hub, folder):
    push(api, folder)
    before = local_hub.commits(REPO)
    push(api, folder)
    assert local_hub.commits(REPO) == before


def test_listings_and_paths_are_complete_over_several_pages(api, local_hub, folder):
    push(api, folder)
    local_hub.page_size = 2
    listed = list(api.list_repo_tree(REPO, recursive=True, expand=True))
    assert [item.path for item in listed] == sorted([*local_hub.files(REPO), "packed"])
    assert {item.last_commit.title for item in listed} == {"Push", "initial commit"}
    assert [item.path for item in api.list_repo_tree(REPO, "packed")] == ["packed/notes.txt"]
    assert [item.path for item in api.get_paths_info(REPO, ["packed", "none", "config.json"])] == [
        "packed",
        "config.json",
    ]
    info = api.model_info(REPO, files_metadata=True)
    assert {s.rfilename: s.size for s in info.siblings}["model.safetensors"] == len(WEIGHTS)
    assert [commit.title for commit in api.list_repo_commits(REPO)] == ["Push", "initial commit"]


def test_a_pull_request_leaves_main_alone(api, local_hub, folder):
    api.create_repo(REPO)
    info = push(api, folder, create_pr=True)
    assert (info.pr_num, info.pr_revision) == (1, "refs/pr/1")
    assert titles(local_hub) == ["initial commit"] and titles(local_hub, "refs/pr/1") == ["Push", "initial commit"]
    assert api.hf_hub_download(REPO, "model.safetensors", revision="refs/pr/1")
    api.upload_file(path_or_fileobj=b"more", path_in_repo="more.txt", repo_id=REPO, revision="refs/pr/1")
    assert local_hub.files(REPO, "refs/pr/1")["more.txt"] == b"more"
    refs = api.list_repo_refs(REPO, include_pull_requests=True)
    assert [ref.ref for ref in refs.pull_requests] == ["refs/pr/1"] and [ref.name for ref in refs.branches] == ["main"]
    assert api.create_pull_request(REPO, "Another").num == 2
    assert [(found.num, found.is_pull_request) for found in api.get_repo_discussions(REPO)] == [(1, True), (2, True)]


def test_branches_tags_deletions_and_parents(api, local_hub, folder):
    first = push(api, folder).oid
    api.create_branch(REPO, branch="other")
    api.create_tag(REPO, tag="v1")
    api.create_commit(REPO, [CommitOperationDelete("packed/")], commit_message="Less", parent_commit=first)
    assert "packed/notes.txt" not in local_hub.files(REPO)
    for same in ("other", "v1", first):
        assert "packed/notes.txt" in local_hub.files(REPO, same)
    late = [CommitOperationAdd("late.txt", b"late")]
    with pytest.raises(errors.HfHubHTTPError, match="A commit has happened since") as refused:
        api.create_commit(REPO, late, commit_message="Late", parent_commit=first)
    assert refused.value.response.status_code == 412
    with pytest.raises(errors.RemoteEntryNotFoundError):
        api.create_commit(REPO, [CommitOperationDelete("none.txt")], commit_message="None")
    with pytest.raises(errors.RevisionNotFoundError):
        api.create_commit(REPO, late, commit_message="Nowhere", revision="nowhere")
    assert titles(local_hub) == ["Less", "Push", "initial commit"]


def test_transformers_pushes_and_loads(api, local_hub, tmp_path):
    words = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").push_to_hub(REPO)
    model = MambaForCausalLM(MambaConfig(vocab_size=8, hidden_size=8, state_size=2, num_hidden_layers=1)).eval()
    model.push_to_hub(REPO, commit_message="Model")
    assert AutoConfig.from_pretrained(REPO).hidden_size == 8
    ids = AutoTokenizer.from_pretrained(REPO)("a b a", return_tensors="pt").input_ids
    loaded, report = AutoModelForCausalLM.from_pretrained(REPO, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)
    with pytest.raises(OSError, match="not a local folder and is not a valid model identifier"):
        AutoConfig.from_pretrained("alice/none")
    with pytest.raises(OSError, match="not a valid git identifier"):
        AutoConfig.from_pretrained(REPO, revision="none")


def parquet(rows):
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data/train-00000-of-00001.parquet", parquet(["one", "two"])),
        ("train.jsonl", b'{"text": "one"}\n{"text": "two"}\n'),
        ("train.txt", b"one\ntwo\n"),
    ],
)
def test_datasets_loads_and_streams(api, local_hub, name, content):
    local_hub.add_dataset("alice/texts", {name: content})
    assert datasets.load_dataset("alice/texts", split="train")["text"][:] == ["one", "two"]
    streamed = datasets.load_dataset("alice/texts", split="train", streaming=True)
    assert [row["text"] for row in streamed] == ["one", "two"]


def test_datasets_finds_a_named_configuration_but_not_an_id_without_namespace(api, local_hub):
    name = "wikitext-103-raw-v1"
    readme = f"---\nconfigs:\n- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}/test*\n---\n"
    files = {"README.md": readme.encode(), f"{name}/test-0.parquet": parquet(["", " = A = \n"])}
    local_hub.add_dataset("Salesforce/wikitext", files)
    rows = datasets.load_dataset("Salesforce/wikitext", name, split="test")
    assert rows["text"][:] == ["", " = A = \n"]
    # The Hub redirects the old id, the downloads follow, but hf:// addresses of this version want a namespace.
    local_hub.rename("wikitext", "Salesforce/wikitext", "dataset")
    assert api.dataset_info("wikitext").id == "Salesforce/wikitext"
    assert api.hf_hub_download("wikitext", "README.md", repo_type="dataset")
    with pytest.raises(errors.HfUriError, match="namespace/name"):
        datasets.load_dataset("wikitext", name, split="test")


def test_missing_data_sets_and_files(api, local_hub):
    with pytest.raises(datasets.exceptions.DatasetNotFoundError):
        datasets.load_dataset("alice/none")
    local_hub.add_dataset("alice/empty", {})
    with pytest.raises(datasets.data_files.EmptyDatasetError):
        datasets.load_dataset("alice/empty")


def test_cards_are_validated_and_pushed(api, local_hub):
    api.create_repo(REPO)
    card = ModelCard("---\nlicense: apache-2.0\ntags: [mamba, pruned]\nlibrary_name: transformers\n---\n# A model\n")
    card.validate()
    card.push_to_hub(REPO)
    assert ModelCard.load(REPO).data.tags == ["mamba", "pruned"]
    assert api.model_info(REPO).library_name == "transformers"
    card.data["base_model_relation"] = "pruned"
    with pytest.raises(ValueError, match="must be one of adapter, merge, quantized, finetune"):
        card.validate()
    for wrong in ("tags: pruned", "license: 3", "license: [oh"):
        readme = CommitOperationAdd("README.md", f"---\n{wrong}\n---\n".encode())
        with pytest.raises(ValueError, match="Invalid metadata in README.md"):
            api.create_commit(REPO, [readme], commit_message="Wrong")
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.create_commit(REPO, [CommitOperationAdd("README.md", b"# No metadata\n")], commit_message="Bare")


def test_private_and_gated_repos_need_the_right_token(api, local_hub, tmp_path):
    local_hub.add_model(REPO, {"config.json": b"{}"}, private=True)
    local_hub.add_model("alice/gated", {"config.json": b"{}"}, gated=True)
    assert api.hf_hub_download(REPO, "config.json") and api.hf_hub_download("alice/gated", "config.json")
    refusals = [
        (REPO, BOB.token, errors.RepositoryNotFoundError, 404),
        (REPO, False, errors.RepositoryNotFoundError, 401),
        ("alice/gated", BOB.token, errors.GatedRepoError, 403),
        ("alice/gated", False, errors.GatedRepoError, 401),
    ]
    for repo, token, kind, status in refusals:
        with pytest.raises(kind) as refused:
            api.hf_hub_download(repo, "config.json", token=token, cache_dir=tmp_path / "other")
        assert refused.value.response.status_code == status
    with pytest.raises(errors.HfHubHTTPError, match="Invalid user token") as refused:
        api.whoami(token="hf_unknown")
    assert refused.value.response.status_code == 401
    local_hub.grant("bob", "alice/gated")
    assert api.hf_hub_download("alice/gated", "config.json", token=BOB.token)


FRESH = """
from huggingface_hub import HfApi, hf_hub_download
print(HfApi().whoami()["name"], open(hf_hub_download("alice/model", "config.json")).read())
"""


def test_another_process_needs_only_the_environment(local_hub, tmp_path):
    local_hub.add_model(REPO, {"config.json": b"{}"}, private=True)
    env = local_hub.env(tmp_path / "home", ALICE.token)
    done = subprocess.run([sys.executable, "-c", FRESH], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout == "alice {}\n", done.stderr
    assert (tmp_path / "home" / "hub" / "models--alice--model").is_dir()


def test_what_attach_changed_is_put_back(local_hub, tmp_path):
    before = (huggingface_hub.constants.ENDPOINT, datasets.config.HF_ENDPOINT, huggingface_hub.HfApi().endpoint)
    with pytest.MonkeyPatch.context() as patch:
        local_hub.attach(patch, tmp_path, ALICE.token)
        assert huggingface_hub.HfApi().endpoint == datasets.config.HF_ENDPOINT == local_hub.url
        assert huggingface_hub.whoami()["name"] == "alice"
    after = (huggingface_hub.constants.ENDPOINT, datasets.config.HF_ENDPOINT, huggingface_hub.HfApi().endpoint)
    assert after == before
