"""The server: folders, limits, the page, a health check and the files of results."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

PREFIX = "hf-mamba-prune-space-"
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def main() -> None:
    """Serve until a signal comes; then remove every file."""
    folder = prepare()
    import page  # reads the environment that has just been prepared
    from jobs import Service
    from limits import Limits

    service = Service(Limits.from_environment(), folder)

    def stop(*_: object) -> None:
        service.close()
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)
    try:
        page.launch(service, files_of(service))
    finally:
        service.close()


def prepare() -> Path:
    """A folder for all that the Space writes, and an environment in which nothing is written elsewhere.

    In a Space the token of its owner is put away: a visitor must not see what only the owner may see.
    """
    for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        owner = old.name.removeprefix(PREFIX).split("-")[0]
        if not Path("/proc", owner).exists():  # left by one that was killed
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    os.environ["HF_HOME"] = str(folder / "hub")
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "gradio")
    os.environ["MPLCONFIGDIR"] = str(folder / "matplotlib")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if os.environ.get("SYSTEM") == "spaces":
        for name in SECRETS:
            os.environ.pop(name, None)
    return folder


def files_of(service) -> list:
    """Routes beside the page's own: the health check, and results for those who know their ids."""
    from jobs import DONE, RUNNING, WAITING
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, Response
    from starlette.routing import Route

    async def health(request: Request) -> Response:
        states = [job.state for job in service.jobs.values()]
        alive = service.alive()
        facts = {"running": states.count(RUNNING), "waiting": states.count(WAITING)}
        return JSONResponse({"status": "ok" if alive else "broken", **facts}, 200 if alive else 503)

    async def result(request: Request) -> Response:
        job = service.find(request.path_params["id"])
        path = job.folder / "model.zip" if job else None
        if job is None or job.state != DONE or not path.is_file():
            return Response("There is no such result, or not any more.", 404, media_type="text/plain")
        name = f"{job.arguments[0].name}.zip"
        return FileResponse(path, media_type="application/zip", filename=name, headers={"Cache-Control": "no-store"})

    return [Route("/health", health), Route("/result/{id}.zip", result)]
