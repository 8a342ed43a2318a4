"""Run the command on Hugging Face's machines instead of this one: a Hub Job that pushes its result."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, JobHardwareInfo, JobInfo, JobStage, get_token

from hf_mamba_prune.config import closest
from hf_mamba_prune.measure.versions import version
from hf_mamba_prune.publish.hub import hub_errors

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
        """Start it. The token travels as a secret.

        Raises:
            RuntimeError: not logged in, or the Hub refuses.
        """
        token = get_token()
        if token is None:
            raise RuntimeError("you are not logged in to the Hub: run `hf auth login`, or set HF_TOKEN.")
        with hub_errors("the job"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* is experimental", UserWarning)
            return HfApi().run_uv_job(
                "hf-mamba-prune",
                script_args=list(self.arguments),
                dependencies=[_requirement(self.extras)],
                flavor=self.flavor,
                timeout=round(self.hours * 3600),
                secrets={"HF_TOKEN": token},
            )

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
        api = HfApi()
        with hub_errors("the job"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* is experimental", UserWarning)
            for line in api.fetch_job_logs(job_id=job.id, namespace=job.owner.name, follow=True):
                show(line)
            done = api.wait_for_job(job.id, namespace=job.owner.name)
        if done.status.stage != JobStage.COMPLETED:
            reason = f": {done.status.message}" if done.status.message else ""
            raise RuntimeError(f"the job ended as {done.status.stage}{reason}; its log is at {job.url}.")
        return done


def _requirement(extras: tuple[str, ...]) -> str:
    """This version where it is an installed one."""
    own = version()
    name = "hf-mamba-prune" + (f"[{','.join(extras)}]" if extras else "")
    return f"{name}=={own}" if own[0].isdigit() else name


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
