"""A Space in a process of its own with a local Hub behind it, and a browser in front."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil
import pytest
from gradio_client import Client
from local_hub import ALICE, LocalHub
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from tiny_models import build_model, build_tokenizer

APP = Path(__file__).parents[2] / "space_app" / "app.py"
SIGNED_IN = "mock-oauth-token-for-local-dev"
"""What gradio hands out on a developer's machine instead of an OAuth token."""
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
FLAGS += ("--disable-background-networking", "--disable-component-update")


@dataclass
class Space:
    """A running app.

    Args:
        url: of its page.
        process: that serves it.
        place: everything that it may write lies in here.
        hub: behind it.
    """

    url: str
    process: psutil.Popen
    place: Path
    hub: LocalHub
    clients: list[Client] = field(default_factory=list)

    def client(self) -> Client:
        """A new visitor that is a program."""
        self.clients.append(Client(self.url, verbose=False, analytics_enabled=False))
        return self.clients[-1]

    def log(self) -> str:
        """All that it printed."""
        return (self.place / "log.txt").read_text(encoding="utf-8")

    def files(self) -> list[Path]:
        """Of jobs, downloads and uploads."""
        return [path for path in (self.place / "tmp").rglob("*") if path.is_file()]

    def processes(self) -> list[psutil.Process]:
        """The app and all that it started."""
        return [self.process, *self.process.children(recursive=True)]

    def jobs(self) -> list[Path]:
        """Folders of jobs."""
        return list((self.place / "tmp").glob("hf-mamba-prune-space-*/jobs/*"))

    def health(self) -> dict:
        """What the health check says."""
        return httpx2.get(f"{self.url}/health").json()


def wait_until(true, seconds: float = 30) -> bool:
    """Whether a condition comes true in time."""
    until = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < until:
        time.sleep(0.1)
    return bool(found)


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


@pytest.fixture(scope="session")
def hub(tmp_path_factory) -> Iterator[LocalHub]:
    """With a model that can be pruned, and the visitor whom gradio signs in."""
    model = tmp_path_factory.mktemp("model")
    build_model("mamba").save_pretrained(model)
    build_tokenizer().save_pretrained(model)
    with LocalHub(tmp_path_factory.mktemp("hub")) as made:
        made.add_user(ALICE.name, ALICE.token)
        made.add_user(ALICE.name, SIGNED_IN)
        made.add_model("alice/small", model)
        yield made


@pytest.fixture(scope="session")
def space(hub, tmp_path_factory) -> Iterator[Space]:
    """One app for all tests."""
    place, port = tmp_path_factory.mktemp("space"), free_port()
    (place / "tmp").mkdir()
    environment = hub.env(place / "home", ALICE.token) | {
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "TMPDIR": str(place / "tmp"),
        "OMP_NUM_THREADS": "1",  # two would wait for each other wherever something else runs
        "HF_MAMBA_PRUNE_THREADS": "1",
        "SPACE_WAITING": "6",
        "SPACE_PER_ADDRESS": "10",
        "SPACE_LEFT_MINUTES": "0.3",
    }
    with open(place / "log.txt", "w", encoding="utf-8") as log:
        process = psutil.Popen([sys.executable, str(APP)], env=environment, stdout=log, stderr=log, cwd=place)
        running = Space(f"http://localhost:{port}", process, place, hub)
        try:
            assert wait_until(lambda: _answers(running), 120), running.log()
            yield running
        finally:
            for client in running.clients:
                client.close()
            if process.poll() is None:
                process.terminate()
            process.wait(30)
    assert not running.files(), "files were left behind"
    assert ALICE.token not in running.log() and SIGNED_IN not in running.log()


def _answers(space: Space) -> bool:
    assert space.process.poll() is None, space.log()
    try:
        return space.health()["status"] == "ok"
    except httpx2.TransportError:
        return False


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The system's Chromium, or Playwright's own."""
    with sync_playwright() as playwright:
        found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
        made = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield made
        made.close()


@pytest.fixture
def context(browser) -> Iterator[BrowserContext]:
    """A visitor with a desktop and no past."""
    made = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    made.set_default_timeout(60_000)
    yield made
    made.close()


@pytest.fixture
def page(context, space) -> Page:
    """The Space, opened; an error in its scripts fails the test."""
    return open_page(context, space)


def open_page(context: BrowserContext, space: Space, theme: str = "light") -> Page:
    """The Space, when it has said what the model is."""
    page = context.new_page()
    page.goto(f"{space.url}/?__theme={theme}")
    page.wait_for_selector("#facts .card")
    return page


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    """Takes pictures for people, into the folder that SPACE_SCREENSHOTS names."""
    folder = Path(os.environ.get("SPACE_SCREENSHOTS") or tmp_path_factory.mktemp("pictures"))

    def take(page: Page, name: str) -> None:
        page.wait_for_timeout(400)
        page.screenshot(path=folder / f"{name}.png", full_page=True)

    return take
