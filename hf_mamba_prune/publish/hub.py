"""Push a result to the Hub: everything in one commit, or nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

from hf_mamba_prune.hub_answers import bounded_store, hub_errors
from hf_mamba_prune.publish.card import CARD_NAME, default_name, render_card
from hf_mamba_prune.publish.escapes import in_line
from hf_mamba_prune.publish.held import HUBS_OWN, Held
from hf_mamba_prune.report import PruningReport

POOR_RATIO = 1.5
"""A perplexity above this multiple of the dense one is not pushed unless asked for."""

_NEW = {HUBS_OWN, CARD_NAME}

_LEFT_OUT = ("_*", "checkpoint-*", "*.part", "*.tmp", "*.incomplete", "*~", ".git", ".cache")
"""Names of files and folders that are not part of a result: what was being written, and a training's checkpoints."""


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

    @property
    def target(self) -> str:
        """The full id of the repository.

        Raises:
            ValueError: it is not known yet; `resolve` finds it.
        """
        if self.repo is None or "/" not in self.repo:
            raise ValueError(f"the repository {self.repo!r} has no owner; expected user/name.")
        return self.repo

    def check(self, report: PruningReport) -> None:
        """Refuse a bad result.

        Raises:
            RuntimeError: the perplexity is too far above the dense one, and `force` is off.
        """
        ratio = report.perplexity_ratio()
        if ratio is not None and not ratio <= POOR_RATIO and not self.force:  # NaN is above, too
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
        user = _namespaces()[0]
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

    def held(self) -> Held:
        """What the repository holds, where this may be pushed to it.

        Raises:
            RuntimeError: as `look`; or it holds a model and may not be changed.
        """
        held = self.look()
        self.refuse_model(held)
        return held

    def look(self) -> Held:
        """What the repository holds; nothing where it is still to be made.

        Raises:
            RuntimeError: it is public and should not be, may not be made by this user, has no such branch, or the Hub
                refuses.
        """
        held = Held.look(self.target, self.revision)
        if held.commit is None:
            self._check_new()
        elif self.private and not held.private:
            raise RuntimeError(
                f"{self.repo} exists and is public, and --private makes only new repositories private: change it on "
                "the Hub first, or choose another --repo-id."
            )
        return held

    def refuse_model(self, held: Held) -> None:
        """Refuse to replace a model unless asked to.

        Raises:
            RuntimeError: there is one.
        """
        if held.files.keys() - _NEW and not (self.overwrite or self.create_pr):
            raise RuntimeError(
                f"{self.repo} holds a model already: pass --overwrite to replace it or --create-pr to propose it."
            )

    def _check_new(self) -> None:
        own = _namespaces()
        if self.target.split("/")[0] not in own:
            raise RuntimeError(
                f"there is no {self.repo}, and you cannot make it, as you write to {', '.join(own)}: choose another "
                "--repo-id."
            )
        if self.revision not in (None, "main"):
            raise RuntimeError(f"there is no {self.repo} yet, so it has no branch {self.revision}: leave that out.")


def _namespaces() -> list[str]:
    """Where this user may make repositories, their own name first."""
    with hub_errors("your user name"):
        user = HfApi().whoami()
        names = [user["name"], *(org["name"] for org in user.get("orgs") or ())]
        if not all(isinstance(name, str) for name in names):
            raise ValueError("names that are none")  # an answer of another shape
    return names


def write_card(folder: Path, repo: str | None = None) -> Path:
    """Render the card of a result folder into it.

    Raises:
        ValueError: the folder holds no report.
    """
    return _write(folder / CARD_NAME, render_card(PruningReport.load(folder), repo).encode("utf-8"))


def _write(path: Path, content: bytes) -> Path:
    temporary = path.with_name(f"_{path.name}.part")  # a name that no push takes, where this process is killed
    temporary.write_bytes(content)
    temporary.replace(path)
    return path


def _card(folder: Path, report: PruningReport, repo: str) -> bytes:
    """The card to push: as it is where somebody wrote in it, else rendered for the repository it goes to."""
    path = folder / CARD_NAME
    held = path.read_text(encoding="utf-8") if path.is_file() else None
    if held is not None:
        named = re.search(r'from_pretrained\("([^"]+)"', held)
        if held not in (render_card(report, name) for name in (None, named and named[1])):
            return path.read_bytes()
    return render_card(report, repo).encode("utf-8")


class HalfDone(RuntimeError):
    """A push that began and can be repeated; other errors without a cause are refusals."""


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What became of a push.

    Args:
        address: of the commit or of the pull request.
        already: the Hub held all this before, from an earlier push whose answer may have been lost.
    """

    address: str
    already: bool = False


def push_folder(folder: Path, choice: PushChoice) -> str:
    """Push a result folder: weights, packed form, card, report, config and figures in one commit.

    A card that somebody wrote in is pushed as it is, any other is rendered for its repository.

    Repeating it after a failure ends in the same state; what had been uploaded is not sent again.

    Returns:
        Address of the commit or of the pull request; of the newest commit if it holds all this already.

    Raises:
        ValueError: no result in the folder, or not a valid id.
        RuntimeError: a result too bad, a repository that holds something or that changes meanwhile, the Hub refuses,
            or the connection broke; the folder is as it was.
    """
    return push_result(folder, choice).address


def push_result(folder: Path, choice: PushChoice) -> Pushed:
    """As `push_folder`, and says whether the Hub held all this before."""
    report = PruningReport.load(folder)
    choice.check(report)
    choice = choice.resolve(default_name(report))
    title = f"{in_line(report.model.id)} {_done(report)} by hf-mamba-prune"
    held = choice.look()
    card = _card(folder, report, choice.target)
    files: dict[str, Path | bytes] = {**_files(folder), CARD_NAME: card}
    if held.same(files):
        return Pushed(address=f"{HfApi().endpoint}/{choice.target}/commit/{held.commit}", already=True)
    choice.refuse_model(held)
    if choice.create_pr and held.commit is not None:
        own = _same_pull(choice.target, title, files)
        if own is not None:
            return Pushed(address=own, already=True)
    _write(folder / CARD_NAME, card)
    if held.commit is None:
        with hub_errors(choice.target):
            HfApi().create_repo(choice.target, private=choice.private or None, exist_ok=True)
        held = choice.held()  # its first commit; or a model, where somebody else was faster
        if held.commit is None:
            raise HalfDone(f"{choice.target} was made and cannot be seen: check your token with `hf auth whoami`.")
    return Pushed(address=_commit(choice, held, title, {name: folder / name for name in files}))


def _done(report: PruningReport) -> str:
    """What was done to the model, for the title of a commit."""
    share = f"pruned to {report.sparsity.prunable.sparsity:.0%}"
    if report.rounding is None:
        return share
    rounded = f"rounded to {report.rounding.bits:.3g} bits a projection weight"
    return f"{share} and {rounded}" if report.sparsity.asked else rounded


def _files(folder: Path) -> dict[str, Path]:
    """What a push sends, by its name there.

    Raises:
        ValueError: a link leads out of the folder: to something that nobody asked to publish.
    """
    found, root = {}, folder.resolve()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(fnmatch(part, form) for part in name.parts for form in _LEFT_OUT):
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise ValueError(
                f"{path} is a link to something outside {folder}, and a push sends only what lies in it: put the file "
                "in its place, or remove it."
            )
        if path.is_file():
            found[name.as_posix()] = path
    return found


def _commit(choice: PushChoice, held: Held, title: str, files: dict[str, Path]) -> str:
    """One commit on top of the one that was looked at, or nothing."""
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, str(path)) for name, path in sorted(files.items())
    ]
    operations += [CommitOperationDelete(name) for name in sorted(held.files.keys() - files.keys() - {HUBS_OWN})]
    try:
        with hub_errors(choice.target), bounded_store(files.values()):
            done = HfApi().create_commit(
                choice.target,
                operations,
                commit_message=title,
                create_pr=choice.create_pr,
                revision=choice.revision,
                parent_commit=held.commit,
            )
            return done.pr_url or done.commit_url
    except RuntimeError as error:
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError) and cause.response is not None and cause.response.status_code == 412:
            now = Held.look(choice.target, choice.revision)
            if now.commit != held.commit:
                raise RuntimeError(
                    f"{choice.target} changed while this was pushed, and nothing of this was: another commit came, "
                    f"{now.commit} ({held.changes(now)}). Look at it, then push again, with --overwrite to replace it."
                ) from error
        raise


def _same_pull(repo: str, title: str, files: dict[str, Path | bytes]) -> str | None:
    """Address of an open pull request of this title that holds these files."""
    with hub_errors(repo):
        found = HfApi().get_repo_discussions(repo, discussion_type="pull_request", discussion_status="open")
        pulls = [(pull.git_reference, pull.url) for pull in found if pull.is_pull_request and pull.title == title]
    return next((url for reference, url in pulls if Held.look(repo, reference).same(files)), None)
