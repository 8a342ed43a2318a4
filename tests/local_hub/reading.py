"""Actions that only read: repo information, file listings, commits and the files themselves."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode

import yaml

from .access import downloadable, readable, require_user, revision
from .store import Blobs, Commit, Entry, Repo, git_sha1, lfs_pointer
from .wire import Answer, HubError, Request

if TYPE_CHECKING:
    from . import LocalHub


def whoami(hub: LocalHub, request: Request) -> Answer:
    """GET /api/whoami-v2"""
    user = require_user(request)
    orgs = [{"type": "org", "name": name, "fullname": name} for name in user.orgs]
    token = {"type": "access_token", "accessToken": {"displayName": "local", "role": user.role}}
    facts = {"type": "user", "name": user.name, "fullname": user.name, "orgs": orgs, "auth": token}
    return Answer.json(facts | {"avatarUrl": f"/avatars/{user.name}.svg"})


def repo_info(hub: LocalHub, request: Request) -> Answer:
    """GET /api/{kind}/{repo}[/revision/{rev}], with ``?blobs`` for sizes and hashes"""
    repo = readable(hub, request)
    head = revision(repo, request.params.get("rev") or "main")
    card = front_matter(hub.blobs, head)
    siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(head.files)]
    if request.flag("blobs"):
        for sibling in siblings:
            entry = head.files[sibling["rfilename"]]
            sibling |= {"size": entry.size, "blobId": entry.oid}
            if entry.lfs:
                sibling["lfs"] = {"sha256": entry.sha256, **lfs_sizes(entry)}
    info = {
        "id": repo.id,
        "author": repo.id.split("/")[0],
        "sha": head.id,
        "createdAt": repo.history(head)[-1].date,
        "lastModified": head.date,
        "private": repo.private,
        "gated": "manual" if repo.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": list(card.get("tags") or []),
        "cardData": card or None,
        "siblings": siblings,
    }
    if repo.type == "model":
        info |= {key: card[key] for key in ("library_name", "pipeline_tag", "model-index") if key in card}
    return Answer.json(info)


def front_matter(blobs: Blobs, commit: Commit) -> dict[str, Any]:
    """Return the metadata at the top of a commit's README.md, or nothing when it has none."""
    readme = commit.files.get("README.md")
    parts = blobs.read(readme).decode().split("---\n", 2) if readme else []
    return (yaml.safe_load(parts[1]) or {}) if len(parts) == 3 and not parts[0].strip() else {}


def lfs_sizes(entry: Entry) -> dict[str, int]:
    """Return the sizes of an LFS object and of its pointer."""
    return {"size": entry.size, "pointerSize": len(lfs_pointer(entry.sha256, entry.size))}


def describe(repo: Repo, commit: Commit, path: str, expand: bool) -> dict[str, Any] | None:
    """Return how file listings show a file or folder; None when the commit has no such path."""
    entry = commit.files.get(path)
    below = {name: file.oid for name, file in commit.files.items() if name.startswith(f"{path}/")}
    if entry is not None:
        shown = {"type": "file", "path": path, "size": entry.size, "oid": entry.oid}
        if entry.lfs:
            shown["lfs"] = {"oid": entry.sha256, **lfs_sizes(entry)}
    elif below:
        shown = {"type": "directory", "path": path, "size": 0, "oid": git_sha1(repr(sorted(below.items())).encode())}
    else:
        return None
    if expand:
        # The commit that last changed the path: from the head backwards, the oldest that still shows it as it is.
        same = commit
        for older in repo.history(commit):
            if older.files.get(path) != entry or {n: f.oid for n, f in older.files.items() if n in below} != below:
                break
            same = older
        shown["lastCommit"] = {"id": same.id, "title": same.title, "date": same.date}
    return shown


def tree(hub: LocalHub, request: Request) -> Answer:
    """GET /api/{kind}/{repo}/tree/{rev}[/{path}], page by page, with ``?recursive`` and ``?expand``"""
    repo = readable(hub, request)
    commit = revision(repo, request.params["rev"])
    folder = (request.params.get("path") or "").strip("/")
    inside = [path for path in commit.files if not folder or path.startswith(f"{folder}/")]
    if folder and not inside:
        raise HubError(404, f"{folder} does not exist on {request.params['rev']}", "EntryNotFound")
    paths = set(inside)
    for path in inside:
        paths.update(str(parent) for parent in PurePosixPath(path).parents if str(parent) != ".")
    depth = folder.count("/") + 1 if folder else 0
    paths = {path for path in paths if not folder or path.startswith(f"{folder}/")}
    if not request.flag("recursive"):
        paths = {path for path in paths if path.count("/") == depth}
    start, ordered = int(request.option("cursor") or 0), sorted(paths)
    page = ordered[start : start + hub.page_size]
    headers = {}
    if start + hub.page_size < len(ordered):
        query = {key: values[-1] for key, values in parse_qs(request.query).items()}
        query["cursor"] = str(start + hub.page_size)
        headers["Link"] = f'<{hub.url}{request.path}?{urlencode(query)}>; rel="next"'
    return Answer.json([describe(repo, commit, path, request.flag("expand")) for path in page], headers=headers)


def paths_info(hub: LocalHub, request: Request) -> Answer:
    """POST /api/{kind}/{repo}/paths-info/{rev}; paths that do not exist are left out"""
    repo = readable(hub, request)
    commit = revision(repo, request.params["rev"])
    form = parse_qs(request.body.read().decode())
    expand = form.get("expand", [""])[-1].lower() == "true"
    shown = [describe(repo, commit, path.strip("/"), expand) for path in form.get("paths", [])]
    return Answer.json([item for item in shown if item is not None])


def refs(hub: LocalHub, request: Request) -> Answer:
    """GET /api/{kind}/{repo}/refs"""
    repo = readable(hub, request)

    def listed(names: dict[str, str], prefix: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": prefix + name, "targetCommit": commit} for name, commit in names.items()]

    found = {"branches": listed(repo.branches, "refs/heads/"), "tags": listed(repo.tags, "refs/tags/"), "converts": []}
    if request.flag("include_prs"):
        found["pullRequests"] = listed(repo.pulls, "")
    return Answer.json(found)


def commits(hub: LocalHub, request: Request) -> Answer:
    """GET /api/{kind}/{repo}/commits/{rev}"""
    repo = readable(hub, request)
    return Answer.json(
        [
            {"id": c.id, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.author}]}
            for c in repo.history(revision(repo, request.params["rev"]))
        ]
    )


def auth_check(hub: LocalHub, request: Request) -> Answer:
    """GET /api/{kind}/{repo}/auth-check"""
    downloadable(hub, request)
    return Answer.json({})


def resolve(hub: LocalHub, request: Request) -> Answer:
    """HEAD and GET of a file; an LFS object lies on another host, to which the client must not bring its token"""
    repo = downloadable(hub, request)
    commit = revision(repo, request.params["rev"])
    path = request.params["path"]
    known = {"X-Repo-Commit": commit.id}
    entry = commit.files.get(path)
    if entry is None:
        raise HubError(404, f"Entry not found: {path}", "EntryNotFound", X_Repo_Commit=commit.id)
    if entry.lfs:
        known |= {
            "X-Linked-Etag": f'"{entry.sha256}"',
            "X-Linked-Size": str(entry.size),
            "Location": f"{hub.storage_url}/objects/{entry.sha256}",
        }
        return Answer(302, known)
    return Answer.file(hub.blobs.path(entry.sha256), request.headers.get("Range"), known | {"ETag": f'"{entry.oid}"'})


def stored_object(hub: LocalHub, request: Request) -> Answer:
    """HEAD and GET of an LFS object on the storage host"""
    path = hub.blobs.path(request.params["oid"])
    if not path.is_file():
        raise HubError(404, "No such object.")
    return Answer.file(path, request.headers.get("Range"), {"ETag": f'"{path.name}"'})
