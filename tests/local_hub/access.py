"""Who may see and change which repo, and the errors that the Hub answers with otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .store import Commit, Repo, User
from .wire import MESSAGES, HubError, Request, default_code

if TYPE_CHECKING:
    from . import LocalHub


def authenticate(hub: LocalHub, authorization: str | None) -> User | None:
    """Return the user of an ``Authorization`` header; None when there is none.

    Raises:
        HubError: 401, the token is nobody's. The client tells this message from that of a missing repo.
    """
    if not authorization:
        return None
    token = authorization.removeprefix("Bearer ").strip()
    user = hub.users.get(token) or hub.users.get(hub.store_tokens.get(token, ""))
    if user is None:
        raise HubError(401, "Invalid credentials in Authorization header")
    return user


def require_user(request: Request) -> User:
    """Return the user who asks.

    Raises:
        HubError: 401, nobody is logged in.
    """
    if request.user is None:
        raise HubError(401, MESSAGES[401], default_code(401, request.path))
    return request.user


def readable(hub: LocalHub, request: Request) -> Repo:
    """Return the repo that a request names.

    Raises:
        HubError: 307 to the new name of a renamed repo; 401 or 404 when there is none that this user may see.
    """
    repo_type, repo_id = (request.params.get("kind") or "models").rstrip("s/"), request.params["repo"]
    if new_id := hub.renamed.get((repo_type, repo_id)):
        target = request.path.replace(f"/{repo_id}", f"/{new_id}", 1)
        raise HubError(307, f"Moved to {new_id}.", Location=target + (f"?{request.query}" if request.query else ""))
    repo = hub.repos.get((repo_type, repo_id))
    if repo is None or (repo.private and not (request.user and request.user.owns(repo_id))):
        status, message = (404, "Repository not found") if request.user else (401, MESSAGES[401])
        raise HubError(status, message, "RepoNotFound")
    return repo


def downloadable(hub: LocalHub, request: Request) -> Repo:
    """Return the repo that a request names if the user may also read its files.

    Raises:
        HubError: as :func:`readable`; 401 or 403 when the repo is gated and the user was not let in.
    """
    repo = readable(hub, request)
    user = request.user
    if repo.gated and not (user and (user.owns(repo.id) or (user.name, repo.id) in hub.grants)):
        message = f"Access to {repo.type} {repo.id} is restricted."
        raise HubError(403 if user else 401, message, "GatedRepo")
    return repo


def writable(hub: LocalHub, request: Request, pull: bool = False) -> Repo:
    """Return the repo that a request names if the user may change it, or with ``pull`` propose a change to it.

    Raises:
        HubError: as :func:`readable`; 403 for a token that only reads and for a repo of somebody else.
    """
    repo = readable(hub, request)
    user = require_user(request)
    if user.role != "write":
        raise HubError(403, "You must use a write token to upload to a repository.")
    if not pull and not user.owns(repo.id):
        raise HubError(403, f"You don't have the rights to write to {repo.id}.")
    return repo


def revision(repo: Repo, name: str) -> Commit:
    """Return the commit that a revision names.

    Raises:
        HubError: 404, there is none.
    """
    commit = repo.find(name)
    if commit is None:
        raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return commit
