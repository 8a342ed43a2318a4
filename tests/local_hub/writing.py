"""Actions that change something: repos, uploads, commits, branches, tags and pull requests."""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from .access import readable, require_user, revision, writable
from .store import GITATTRIBUTES, Commit, Entry, Repo, needs_lfs
from .wire import Answer, HubError, Request

if TYPE_CHECKING:
    from . import LocalHub

RELATIONS = ("adapter", "merge", "quantized", "finetune")
TEXTS = ("license", "language", "datasets", "base_model", "tags", "metrics")
LISTS = ("tags", "metrics", "model-index")


def create_repo(hub: LocalHub, request: Request) -> Answer:
    """POST /api/repos/create; 409 says that it exists, and where"""
    user, wanted = require_user(request), request.json()
    owner = wanted.get("organization") or user.name
    repo_type, repo_id = wanted.get("type") or "model", f"{owner}/{wanted['name']}"
    url = hub.web_url(repo_type, repo_id)
    if not user.owns(repo_id) or user.role != "write":
        raise HubError(403, f'You don\'t have the rights to create a {repo_type} under the namespace "{owner}".')
    if (repo_type, repo_id) in hub.repos:
        return Answer.json({"error": f"You already created this {repo_type} repo", "url": url}, 409)
    private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
    hub.new_repo(repo_type, repo_id, user.name, private=private)
    return Answer.json({"url": url, "name": repo_id, "id": repo_id})


def delete_repo(hub: LocalHub, request: Request) -> Answer:
    """DELETE /api/repos/delete"""
    wanted = request.json()
    owner = wanted.get("organization") or require_user(request).name
    request.params |= {"kind": f"{wanted.get('type') or 'model'}s", "repo": f"{owner}/{wanted['name']}"}
    repo = writable(hub, request)
    del hub.repos[repo.type, repo.id]
    return Answer()


def validate_yaml(hub: LocalHub, request: Request) -> Answer:
    """POST /api/validate-yaml: is the metadata of a README.md well formed?"""
    content = request.json()["content"]
    parts = content.split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return Answer.json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
    try:
        errors = metadata_errors(yaml.safe_load(parts[1]))
    except yaml.YAMLError as error:
        errors = [f"the metadata is not YAML: {error}"]
    answer = {"errors": [{"message": message} for message in errors], "warnings": []}
    return Answer.json(answer | ({"error": errors[0]} if errors else {}), 400 if errors else 200)


def metadata_errors(card: Any) -> list[str]:
    """Return what is wrong with the metadata of a card."""
    if not isinstance(card, dict):
        return ["the metadata must map names to values"]

    errors = [f'"{key}" must be a string or a list of strings' for key in TEXTS if not texts(card.get(key, ""))]
    errors += [f'"{key}" must be a list' for key in LISTS if not isinstance(card.get(key, []), list)]
    if card.get("base_model_relation", RELATIONS[0]) not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of {", ".join(RELATIONS)}')
    return errors


def texts(value: Any) -> bool:
    """Tell whether a value is a string or a list of strings."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def preupload(hub: LocalHub, request: Request) -> Answer:
    """POST /api/{kind}/{repo}/preupload/{rev}: which files go through LFS, and what is there already"""
    repo = writable(hub, request, pull=request.flag("create_pr"))
    head = revision(repo, request.params["rev"])
    files = []
    for file in request.json()["files"]:
        lfs = needs_lfs(file["path"], file["size"], base64.b64decode(file["sample"]))
        shown = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
        if file["path"] in head.files:
            shown["oid"] = head.files[file["path"]].etag
        files.append(shown)
    return Answer.json({"files": files})


def lfs_batch(hub: LocalHub, request: Request) -> Answer:
    """POST /[{kind}/]{repo}.git/info/lfs/objects/batch: where to send the objects that are not here yet"""
    writable(hub, request, pull=True)  # a pull request uploads before anybody knows that it will be one
    objects = []
    for item in request.json()["objects"]:
        shown = {"oid": item["oid"], "size": item["size"]}
        if not hub.blobs.path(item["oid"]).is_file():
            verify = f"{hub.url}{request.path.removesuffix('/objects/batch')}/verify"
            upload = f"{hub.storage_url}/uploads/{item['oid']}"
            shown["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        objects.append(shown)
    return Answer.json({"transfer": "basic", "objects": objects})


def lfs_upload(hub: LocalHub, request: Request) -> Answer:
    """PUT of an object to the storage host; kept only when all of it came and its hash is the one announced"""
    oid = request.params["oid"]
    sha256, _ = hub.blobs.receive(request.body.pieces())
    if sha256 != oid:
        raise HubError(400, "The content's SHA-256 is not the one announced.")
    return Answer(200, {"ETag": f'"{oid}"'})


def lfs_verify(hub: LocalHub, request: Request) -> Answer:
    """POST /[{kind}/]{repo}.git/info/lfs/verify"""
    require_user(request)
    wanted = request.json()
    path = hub.blobs.path(wanted["oid"])
    if not path.is_file() or path.stat().st_size != wanted["size"]:
        raise HubError(404, "The object was not uploaded.")
    return Answer.json({})


def commit(hub: LocalHub, request: Request) -> Answer:
    """POST /api/{kind}/{repo}/commit/{rev}: one line of JSON for the message and one for each change"""
    as_pull = request.flag("create_pr")
    target = request.params["rev"]
    repo = writable(hub, request, pull=as_pull or target.startswith("refs/pr/"))
    lines = [json.loads(line) for line in request.body.read().splitlines() if line.strip()]
    if not lines or lines[0]["key"] != "header":
        raise HubError(400, "The first line of a commit must be its header.")
    header, user = lines[0]["value"], require_user(request)
    with hub.lock:
        head = revision(repo, target)
        parent = header.get("parentCommit")
        if parent and not head.id.startswith(parent):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for line in lines[1:]:
            apply_change(hub, files, line["key"], line["value"])
        made = repo.add_commit(head, files, user.name, header["summary"], header.get("description", ""))
        shown = publish(hub, repo, made, target, as_pull)
    return Answer.json(shown)


def publish(hub: LocalHub, repo: Repo, made: Commit, target: str, as_pull: bool) -> dict[str, Any]:
    """Let a branch or pull request point to a new commit: the moment in which it can be seen."""
    web = hub.web_url(repo.type, repo.id)
    shown = {"success": True, "commitOid": made.id, "commitUrl": f"{web}/commit/{made.id}", "hookOutput": ""}
    if as_pull:
        shown["pullRequestUrl"] = f"{web}/discussions/{repo.open_discussion(made.title, made.author, made)}"
    elif target in repo.pulls:
        repo.pulls[target] = made.id
    elif target.removeprefix("refs/heads/") in repo.branches:
        repo.branches[target.removeprefix("refs/heads/")] = made.id
    else:
        raise HubError(400, f"{target} is not a branch.")
    return shown


def apply_change(hub: LocalHub, files: dict[str, Entry], key: str, value: dict[str, Any]) -> None:
    """Change the files of a commit that is being made.

    Raises:
        HubError: 400 for a bad path, bad content or an LFS object that never came; 404 for nothing to delete.
    """
    path = value["path"]
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or {"..", ".git"} & set(parts):
        raise HubError(400, f"Invalid path: {path}")
    if key == "file":
        try:
            content = base64.b64decode(value["content"], validate=True)
        except binascii.Error as error:
            raise HubError(400, f"{path} is not base64: {error}") from error
        files[path] = hub.blobs.add(path, content, lfs=False)
    elif key == "lfsFile":
        stored = hub.blobs.path(value["oid"])
        if not stored.is_file() or stored.stat().st_size != value.get("size", stored.stat().st_size):
            raise HubError(400, f"An LFS pointer points to an object that was never uploaded: {path}")
        files[path] = hub.blobs.entry(value["oid"], stored.stat().st_size, lfs=True)
    elif key in ("deletedFile", "deletedFolder"):
        folder = path.rstrip("/") + "/"
        gone = [name for name in files if (name.startswith(folder) if key == "deletedFolder" else name == path)]
        if not gone:
            raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
        for name in gone:
            del files[name]
    else:
        raise HubError(400, f"Unknown operation in a commit: {key}")


def create_branch(hub: LocalHub, request: Request) -> Answer:
    """POST /api/{kind}/{repo}/branch/{rev}"""
    repo, name = writable(hub, request), request.params["rev"]
    start = revision(repo, (request.json() or {}).get("startingPoint") or "main")
    if name in repo.branches:
        raise HubError(409, f"Reference already exists: {name}")
    repo.branches[name] = start.id
    return Answer.json({})


def create_tag(hub: LocalHub, request: Request) -> Answer:
    """POST /api/{kind}/{repo}/tag/{rev}"""
    repo, name = writable(hub, request), request.json()["tag"]
    if name in repo.tags:
        raise HubError(409, f"Tag reference exists already: {name}")
    repo.tags[name] = revision(repo, request.params["rev"]).id
    return Answer.json({})


def discussions(hub: LocalHub, request: Request) -> Answer:
    """GET /api/{kind}/{repo}/discussions"""
    repo = readable(hub, request)
    shown = [describe_discussion(repo, number) for number in repo.titles]
    return Answer.json({"discussions": shown, "count": len(shown), "start": 0})


def create_discussion(hub: LocalHub, request: Request) -> Answer:
    """POST /api/{kind}/{repo}/discussions: a discussion, or a pull request without changes yet"""
    repo, user, wanted = readable(hub, request), require_user(request), request.json()
    head = revision(repo, "main") if wanted.get("pullRequest") else None
    return Answer.json({"num": repo.open_discussion(wanted["title"], user.name, head)})


def discussion(hub: LocalHub, request: Request) -> Answer:
    """GET /api/{kind}/{repo}/discussions/{number}"""
    repo, number = readable(hub, request), int(request.params["number"])
    if number not in repo.titles:
        raise HubError(404, "Discussion not found.")
    return Answer.json(describe_discussion(repo, number))


def describe_discussion(repo: Repo, number: int) -> dict[str, Any]:
    """Return how the Hub shows a discussion or pull request."""
    title, author, is_pull = repo.titles[number]
    shown = {
        "num": number,
        "title": title,
        "author": {"name": author},
        "createdAt": repo.history(repo.find("main"))[-1].date,
        "status": "open",
        "repo": {"name": repo.id, "type": repo.type},
        "isPullRequest": is_pull,
        "events": [],
        "repoOwner": {"name": repo.id.split("/")[0]},
    }
    if is_pull:
        shown |= {"changes": {"base": "refs/heads/main"}, "filesWithConflicts": [], "diff": ""}
    return shown


def initial_files(hub: LocalHub) -> dict[str, Entry]:
    """Return the files of a repo that was just created."""
    return {".gitattributes": hub.blobs.add(".gitattributes", GITATTRIBUTES)}
