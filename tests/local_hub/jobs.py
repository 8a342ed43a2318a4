"""Actions of Hub Jobs: prices, starting one, its state and its log. No job runs: it ends as the test says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .access import require_user
from .wire import Answer, HubError, Request

if TYPE_CHECKING:
    from . import LocalHub

MACHINES = (
    {
        "name": "cpu-upgrade", "prettyName": "CPU Upgrade", "cpu": "8 vCPU", "ram": "32 GB",
        "unitCostMicroUSD": 500, "unitCostUSD": 0.0005, "unitLabel": "minute",
    },
    {
        "name": "l4x1", "prettyName": "1x Nvidia L4", "cpu": "8 vCPU", "ram": "30 GB",
        "unitCostMicroUSD": 13333, "unitCostUSD": 0.013333, "unitLabel": "minute",
    },
)  # fmt: skip


@dataclass
class Job:
    """A job that was asked for, and how it ends."""

    id: str
    owner: str
    spec: dict
    stage: str = "COMPLETED"
    log: tuple[str, ...] = ("===== Job started at 2026-01-01 =====", "pruning", "pushed")

    def answer(self) -> Answer:
        """What the Hub says of it."""
        secrets = {name: None for name in self.spec.get("secrets", {})}  # their values are never shown
        owner = {"id": self.owner, "name": self.owner, "type": "user"}
        status = {"stage": self.stage, "message": None}
        return Answer.json(
            {"id": self.id, "owner": owner, "status": status, "flavor": self.spec["flavor"]} | {"secrets": secrets}
        )


def hardware(hub: LocalHub, request: Request) -> Answer:
    """GET /api/jobs/hardware"""
    return Answer.json(list(MACHINES))


def start(hub: LocalHub, request: Request) -> Answer:
    """POST /api/jobs/{owner}"""
    user = require_user(request)
    if user.role != "write":
        raise HubError(403, "This token may not start jobs.")
    job = Job(f"job{len(hub.jobs)}", request.params["owner"], request.json(), hub.jobs_end)
    hub.jobs.append(job)
    return job.answer()


def inspect(hub: LocalHub, request: Request) -> Answer:
    """GET /api/jobs/{owner}/{job}"""
    return _find(hub, request).answer()


def logs(hub: LocalHub, request: Request) -> Answer:
    """GET /api/jobs/{owner}/{job}/logs, as server-sent events"""
    events = [
        {"timestamp": f"2026-01-01T00:00:0{i}.000Z", "data": line} for i, line in enumerate(_find(hub, request).log)
    ]
    stream = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return Answer(200, {"Content-Type": "text/event-stream"}, stream.encode())


def _find(hub: LocalHub, request: Request) -> Job:
    require_user(request)
    for job in hub.jobs:
        if job.id == request.params["job"]:
            return job
    raise HubError(404, "No such job.")
