"""Push a result to the Hub: everything in one commit, or nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, RepositoryNotFoundError

from hf_mamba_prune.publish.card import CARD_NAME, default_name, render_card
from hf_mamba_prune.publish.escapes import in_line
from hf_mamba_prune.report import PruningReport

POOR_RATIO = 1.5
"""A perplexity above this multiple of the dense one is not pushed unless asked for."""

_NEW = {".gitattributes", CARD_NAME}


@dataclass(frozen=True, kw_only=True)
class PushChoice:
    """Where to push a result, and how.

    Args:
        repo: Hub id; None: `<user>/<model>-pruned-<NN>`.
        private: make the repository private; False leaves it to the namespace's own rule.
        create_pr: open a pull request instead of committing.
        revision: branch; it must exist.
        overwrite: replace what an existing repository holds.
        force: push a model that is badly hurt, too.
    """

    repo: str | None = None
    private: bool = False
    create_pr: bool = False
    revision: str | None = None
    overwrite: bool = False
    force: bool = False

    def check(self, report: PruningReport) -> None:
        """Refuse a bad result.

        Raises:
            RuntimeError: the perplexity is too far above the dense one, and `force` is off.
        """
        ratio = report.perplexity_ratio()
        if ratio is not None and ratio > POOR_RATIO and not self.force:
            raise RuntimeError(
                f"the perplexity is {ratio:.2f} x the {report.parent} one, above {POOR_RATIO:g} x: not pushed. Mend "
                "it with a lower --sparsity, --recipe standard or more --calibration-samples, or push it with --force."
            )

    def resolve(self, name: str) -> PushChoice:
        """The same choice with the full id of its repository.

        Args:
            name: of the repository where none was given.

        Raises:
            RuntimeError: not logged in, or the Hub refuses.
        """
        with hub_errors("your user name"):
            user = HfApi().whoami()["name"]
        return self if self.repo and "/" in self.repo else replace(self, repo=f"{user}/{self.repo or name}")

    def addressed(self, name: str) -> PushChoice:
        """The same with the full id of its repository; what the Hub will refuse is said before the work.

        Args:
            name: of the repository where none was given.

        Raises:
            RuntimeError: see `resolve` and `held`.
        """
        found = self.resolve(name)
        found.held()
        return found

    def held(self) -> set[str]:
        """Files of the repository, empty for one that is still to be made.

        Raises:
            RuntimeError: it holds a model and may not be changed, is public and should not be, may not be made by this
                user, has no such branch, or the Hub refuses.
        """
        api = HfApi()
        with hub_errors(self.repo):
            if not api.repo_exists(self.repo):
                self._check_new(api.whoami())
                return set()
            held = set(api.list_repo_files(self.repo, revision=self.revision))
            public = self.private and not api.model_info(self.repo).private
        if public:
            raise RuntimeError(
                f"{self.repo} exists and is public, and --private makes only new repositories private: change it on "
                "the Hub first, or choose another --repo-id."
            )
        if held - _NEW and not (self.overwrite or self.create_pr):
            raise RuntimeError(
                f"{self.repo} holds a model already: pass --overwrite to replace it or --create-pr to propose it."
            )
        return held

    def _check_new(self, user: dict) -> None:
        namespace, own = self.repo.split("/")[0], [user["name"], *(org["name"] for org in user.get("orgs", ()))]
        if namespace not in own:
            raise RuntimeError(
                f"there is no {self.repo}, and you cannot make it, as you write to {', '.join(own)}: choose another "
                "--repo-id."
            )
        if self.revision not in (None, "main"):
            raise RuntimeError(f"there is no {self.repo} yet, so it has no branch {self.revision}: leave that out.")


def write_card(folder: Path, repo: str | None = None) -> Path:
    """Render the card of a result folder into it.

    Raises:
        ValueError: the folder holds no report.
    """
    path = folder / CARD_NAME
    temporary = path.with_suffix(".part")
    temporary.write_text(render_card(PruningReport.load(folder), repo), encoding="utf-8")
    temporary.replace(path)
    return path


def _refresh_card(folder: Path, report: PruningReport, repo: str) -> None:
    """Render the card anew unless somebody wrote in it: for the repository it goes to, where it named another one."""
    path = folder / CARD_NAME
    held = path.read_text(encoding="utf-8") if path.is_file() else None
    if held is not None:
        named = re.search(r'from_pretrained\("([^"]+)"', held)
        if held not in (render_card(report, name) for name in (None, named and named[1])):
            return
    write_card(folder, repo)


def push_folder(folder: Path, choice: PushChoice) -> str:
    """Push a result folder: weights, packed form, card, report, config and figures in one commit.

    A card that somebody wrote in is pushed as it is, any other is rendered for its repository.

    Repeating it after a failure ends in the same state; what had been uploaded is not sent again.

    Returns:
        Address of the commit or of the pull request; of the newest commit if it holds all this already.

    Raises:
        ValueError: no result in the folder, or not a valid id.
        RuntimeError: a result too bad, a repository that holds something, the Hub refuses, or the connection broke;
            the folder is as it was.
    """
    report = PruningReport.load(folder)
    choice.check(report)
    choice = choice.resolve(default_name(report))
    held = choice.held()
    _refresh_card(folder, report, choice.repo)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    operations = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    operations += [CommitOperationDelete(name) for name in sorted(held - files.keys() - {".gitattributes"})]
    api, done_share = HfApi(), report.sparsity.prunable.sparsity
    with hub_errors(choice.repo):
        api.create_repo(choice.repo, private=choice.private or None, exist_ok=True)
        done = api.create_commit(
            choice.repo,
            operations,
            commit_message=f"{in_line(report.model.id)} pruned to {done_share:.0%} by hf-mamba-prune",
            create_pr=choice.create_pr,
            revision=choice.revision,
        )
    return done.pr_url or done.commit_url


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """What goes wrong with the Hub as one sentence each, without addresses that could hold a secret."""
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{what!r} is not a valid Hub id: expected user/name.") from error
    except LocalTokenNotFoundError as error:
        raise RuntimeError("you are not logged in to the Hub: run `hf auth login`, or set HF_TOKEN.") from error
    except RepositoryNotFoundError as error:
        raise RuntimeError(f"the Hub has no {what}, or your token may not see it: check `hf auth whoami`.") from error
    except HfHubHTTPError as error:
        raise RuntimeError(_sentence(what, error)) from error
    except httpx2.TransportError as error:
        raise RuntimeError(_broken(what, error)) from error
    except RuntimeError as error:
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):
            raise RuntimeError(_sentence(what, cause)) from error
        if isinstance(cause, httpx2.TransportError):
            raise RuntimeError(_broken(what, cause)) from error
        raise


_REASONS = {
    401: "your token is missing or not valid: log in with `hf auth login`",
    403: "your token may not write there: use one with the role `write`, or another --repo-id",
    404: "there is no such repository or branch",
    409: "somebody else changed the repository meanwhile",
    412: "somebody else changed the repository meanwhile",
    429: "too many requests: wait a few minutes",
}


def _broken(what: str, error: httpx2.TransportError) -> str:
    return f"the connection to the Hub broke while pushing {what} ({type(error).__name__})."


def _sentence(what: str, error: HfHubHTTPError) -> str:
    status = error.response.status_code if error.response is not None else 0
    reason = _REASONS.get(status, "the Hub has trouble: try again later" if status >= 500 else "it refused")
    return f"the Hub did not take {what} (HTTP {status}): {reason}."
