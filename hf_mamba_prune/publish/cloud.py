"""Run the command on Hugging Face's machines instead of this one: a Hub Job that pushes its result."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, JobHardwareInfo, JobInfo, JobStage, Volume, get_token
from huggingface_hub.errors import HfHubHTTPError

from hf_mamba_prune.config import closest
from hf_mamba_prune.hub_answers import ODD_ANSWER, hub_errors
from hf_mamba_prune.publish.package import NAME, Wheel, running_wheel

_IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"
_FOLDER = "/package"
_SCRIPT = (
    'echo "$SHA256  $WHEEL" | sha256sum --check --quiet'
    ' && exec uv run --no-project --with "$NEEDED" hf-mamba-prune "$@"'
)
"""The whole of what a job does; all that differs from job to job comes as a variable or an argument."""

_HOURS = {"second": 1 / 3600, "minute": 1 / 60, "hour": 1.0}


@dataclass(frozen=True, kw_only=True)
class HubJob:
    """A command on the Hub's machines.

    Args:
        arguments: of the command, which must push its result: nothing else of the job is kept.
        flavor: of the machine, `cpu-upgrade`, `t4-small`, `l4x1` ...
        hours: after which the Hub stops it.
        extras: of this package that the command needs.

    Raises:
        ValueError: no time at all, or time without end.
    """

    arguments: tuple[str, ...]
    flavor: str
    hours: float
    extras: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.hours) and self.hours * 3600 >= 1):
            raise ValueError(f"a job is given {self.hours:g} hours; expected at least a second, and an end.")

    def machine(self) -> JobHardwareInfo:
        """The machine, with its price.

        Raises:
            ValueError: the Hub has none of this flavor.
            RuntimeError: the Hub refuses.
        """
        with hub_errors("the list of machines"):
            machines = {machine.name: machine for machine in HfApi().list_jobs_hardware()}
            if not all(isinstance(machine.unit_cost_usd, (int, float)) for machine in machines.values()):
                raise ValueError("a machine without a price")  # an answer of another shape
        if not machines:
            raise RuntimeError(f"the Hub's list of machines {ODD_ANSWER}.")
        if self.flavor not in machines:
            raise ValueError(closest("flavor", self.flavor, tuple(machines)))
        return machines[self.flavor]

    def price(self) -> str:
        """What it would cost, as a sentence.

        Raises:
            ValueError: an unknown flavor.
            RuntimeError: the Hub refuses.
        """
        machine = self.machine()
        price = machine.unit_cost_usd / _HOURS.get(machine.unit_label, 1.0)
        return (
            f"On {machine.pretty_name} ({machine.cpu}, {machine.ram}): ${price:.2f} an hour, stopped after "
            f"{self.hours:g} hours, so ${price * self.hours:.2f} at most."
        )

    def start(self) -> JobInfo:
        """Start it, with this very package: no name is looked up for it. The token travels as a secret.

        The package goes as a wheel to a private repository of the user, `<user>/hf-mamba-prune-jobs`, which the job
        sees as a folder at the commit of this upload; the wheel is installed when its SHA-256 is the one known here.

        Raises:
            RuntimeError: not logged in, the package is not installed here, or the Hub refuses.
        """
        token = get_token()
        if token is None:
            raise RuntimeError("you are not logged in to the Hub: run `hf auth login`, or set HF_TOKEN.")
        wheel = running_wheel()
        volume = _upload(wheel)
        path = f"{_FOLDER}/{_place(wheel)}"
        extras = f"[{','.join(self.extras)}]" if self.extras else ""
        environment = {"WHEEL": path, "SHA256": wheel.sha256, "NEEDED": f"{NAME}{extras} @ file://{path}"}
        try:
            with hub_errors("the job"), warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".* is experimental", UserWarning)
                return HfApi().run_job(
                    image=_IMAGE,
                    command=["bash", "-c", _SCRIPT, NAME, *self.arguments],
                    env=environment,
                    flavor=self.flavor,
                    timeout=round(self.hours * 3600),
                    secrets={"HF_TOKEN": token},
                    volumes=[volume],
                    name=NAME,
                )
        except RuntimeError as error:
            if isinstance(error.__cause__, HfHubHTTPError):
                raise
            raise RuntimeError(
                f"{error} It may run all the same: look with `hf jobs ps` before you repeat this."
            ) from error

    def run(self, show: Callable[[str], None]) -> JobInfo:
        """Start it and follow its log to the end.

        Args:
            show: takes each line, first the price and the limits.

        Raises:
            ValueError: an unknown flavor.
            RuntimeError: the Hub refuses, or the job fails.
        """
        show(self.price())
        job = self.start()
        show(f"Started {job.url}; it goes on when this command is interrupted.")
        try:
            for line in _log(job):
                show(line)
            with hub_errors("the job"), warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".* is experimental", UserWarning)
                done = HfApi().wait_for_job(job.id, namespace=job.owner.name)
                stage, message = done.status.stage, done.status.message
        except RuntimeError as error:
            raise RuntimeError(f"{error} The job goes on: {job.url}") from error
        if stage != JobStage.COMPLETED:
            raise RuntimeError(
                f"the job ended as {stage}{f': {message}' if message else ''}; its log is at {job.url}."
            )
        return done


def _log(job: JobInfo) -> Iterator[str]:
    """Lines of a job's log as they come."""
    with hub_errors("the job's log"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* is experimental", UserWarning)
        lines = iter(HfApi().fetch_job_logs(job_id=job.id, namespace=job.owner.name, follow=True))
    while True:
        with hub_errors("the job's log"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* is experimental", UserWarning)
            line = next(lines, None)
        if line is None:
            return
        yield line


def _place(wheel: Wheel) -> str:
    """Where a wheel lies in the repository."""
    return f"{wheel.sha256}/{wheel.name}"


def _upload(wheel: Wheel) -> Volume:
    """The commit of the user's repository that holds the wheel, as a folder for a job."""
    with hub_errors("your user name"):
        repo = f"{HfApi().whoami()['name']}/{NAME}-jobs"
    with hub_errors(repo):
        HfApi().create_repo(repo, private=True, exist_ok=True)
        addition = CommitOperationAdd(_place(wheel), wheel.content)
        done = HfApi().create_commit(repo, [addition], commit_message=f"What a job installs: {wheel.name}")
    return Volume(type="model", source=repo, mount_path=_FOLDER, revision=done.oid, read_only=True)


def refuse_local(sources: list[str]) -> None:
    """A job on the Hub sees nothing of this machine.

    Raises:
        ValueError: one of them is a file or folder here.
    """
    for source in sources:
        if Path(source).expanduser().exists():
            raise ValueError(f"{source} lies on this machine and a job on the Hub cannot see it: push it there first.")


def without_option(arguments: list[str], name: str) -> tuple[str, ...]:
    """Arguments without an option that has a value, written `NAME VALUE` or `NAME=VALUE`."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument != name and not argument.startswith(f"{name}="):
            kept.append(argument)
        skip = not skip and argument == name
    return tuple(kept)
