"""What the page's buttons do. Each gives back what is shown; a refusal is shown, not raised."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import gradio as gr
import views
from endpoints import visitor_of
from inspection import inspect
from jobs import CANCELLED, DONE, RUNNING, WAITING, Job, Service
from orders import Order, Refusal, refuse_tokens
from worker import generate, launch, price, prune, push

from hf_mamba_prune import PruningReport, PushChoice, render_card

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
PAUSE = 0.4
"""Seconds between two pictures of the progress."""


class Handlers:
    """The page's side of the service.

    Gradio passes the values of the page's parts in order, and then what the annotations of the last arguments name.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    def inspect(self, *values: object) -> tuple[str, gr.Button]:
        """What the model is; the start button works only where it fits."""
        try:
            found = inspect(Order(*values), self._service.limits)
        except Refusal as refusal:
            return views.notice(str(refusal), "bad"), gr.Button(interactive=False)
        return views.facts(found), gr.Button(interactive=found.too_big is None)

    def prune(self, model, sparsity, recipe, text, samples, seed, request: gr.Request) -> Iterator[tuple]:
        """Prune, with the progress as it goes; then the result."""
        hold = (gr.Button(interactive=False), gr.Button(interactive=True))
        free = (gr.Button(interactive=True), gr.Button(interactive=False))
        try:
            order = Order(model, sparsity, recipe, text, samples, seed)
            found = inspect(order, self._service.limits)
            if found.too_big:
                raise Refusal(f"This model does not fit here: {found.too_big}.")
            visitor = visitor_of(request)
            self._forget(visitor.session)
            job = self._service.submit(visitor, prune, order)
        except Refusal as refusal:
            yield views.notice(str(refusal), "bad"), *free, *_hidden()
            return
        for _ in _until_over(job):
            yield views.progress(job, self._service.position(job)), *hold, *_hidden()
        if job.state != DONE:
            kind = "" if job.state == CANCELLED else "bad"
            yield views.notice(job.error or "The job ended.", kind), *free, *_hidden()
            return
        yield views.notice("Done.", "good"), *free, *_shown_result(job)

    def restore(self, kept: str, request: gr.Request) -> tuple:
        """The result of a visitor who has loaded the page again."""
        job = self._service.adopt(kept, visitor_of(request)) if kept else None
        if job is None:
            return "", *_hidden()
        return views.notice("This is your last result.", "good"), *_shown_result(job)

    def _forget(self, session: str) -> None:
        """A visitor's older result makes room for the new one."""
        old = self._service.last(session, prune)
        if old is not None and old.over:
            self._service.remove(old)

    def cancel(self, request: gr.Request) -> None:
        """Stop the visitor's own pruning."""
        job = self._service.last(visitor_of(request).session, prune)
        if job is not None and not job.over:
            self._service.cancel(job)

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        self._service.leave(visitor_of(request).session)

    def write(self, prompt: str, tokens: float, sampled: bool, request: gr.Request) -> Iterator[tuple]:
        """Both models write, one after the other, so that neither slows the other down."""
        shown = {"dense": ("", ""), "packed": ("", "")}
        try:
            refuse_tokens(prompt)
            if not prompt.strip():
                raise Refusal("Write at least one word for them to go on from.")
            result = self._result(request)
            arguments = result.arguments[0], result.folder / "model", prompt[:500], int(min(max(tokens, 1), 128))
            job = self._service.submit(visitor_of(request), generate, *arguments, bool(sampled), first=True)
        except Refusal as refusal:
            yield "", str(refusal), "", ""
            return
        for _ in _until_over(job):
            for _, (name, text, rate) in list(job.messages):
                shown[name] = views.written(name, text, rate)
            if job.state == WAITING:
                shown["dense"] = "", "Waiting for the pruning before you ..."
            yield *shown["dense"], *shown["packed"]
        for _, (name, text, rate) in job.messages:
            shown[name] = views.written(name, text, rate)
        if job.state != DONE:
            shown["packed"] = "", job.error or "It was stopped."
        yield *shown["dense"], *shown["packed"]

    def _result(self, request: gr.Request) -> Job:
        found = self._service.last(visitor_of(request).session, prune)
        if found is None or found.state != DONE or not (found.folder / "model").is_dir():
            raise Refusal("The result is not here any more: prune it again.")
        return found

    def push(
        self,
        name: str,
        private: bool,
        proposal: bool,
        request: gr.Request,
        profile: gr.OAuthProfile | None,
        token: gr.OAuthToken | None,
    ) -> Iterator[str]:
        """Push the result to the visitor's account."""
        try:
            refuse_tokens(name)
            if profile is None or token is None:
                raise Refusal("Sign in first.")
            result = self._result(request)
            name = name.strip() or result.arguments[0].name
            if not _NAME.fullmatch(name) or ".." in name or "--" in name:
                raise Refusal("That is no name of a repository: letters, digits, '-', '_' and '.' only.")
            choice = PushChoice(repo=f"{profile.username}/{name}", private=bool(private), create_pr=bool(proposal))
            arguments = result.folder / "model", choice
            job = self._service.submit(visitor_of(request), push, *arguments, secret=token.token, heavy=False)
        except Refusal as refusal:
            yield views.notice(str(refusal), "bad")
            return
        yield from _shown(job, "Pushing ...", "Pushed:")

    def price(
        self, model, sparsity, recipe, text, samples, seed, flavor, hours,
        request: gr.Request, token: gr.OAuthToken | None,
    ) -> Iterator[str]:  # fmt: skip
        """What a Job would cost."""
        values = model, sparsity, recipe, text, samples, seed, flavor, hours
        yield from self._on_hub(price, "Asking for the price ...", values, request, token)

    def launch(
        self, model, sparsity, recipe, text, samples, seed, flavor, hours,
        request: gr.Request, token: gr.OAuthToken | None,
    ) -> Iterator[str]:  # fmt: skip
        """Start a Job on the visitor's account."""
        values = model, sparsity, recipe, text, samples, seed, flavor, hours
        yield from self._on_hub(launch, "Starting ...", values, request, token)

    def _on_hub(self, work, waiting: str, values: tuple, request: gr.Request, token) -> Iterator[str]:
        try:
            if token is None:
                raise Refusal("Sign in first, under Publish or with the button above.")
            *order, flavor, hours = values
            if not isinstance(flavor, str) or not re.fullmatch(r"[a-z0-9-]{2,32}", flavor) or not 0.1 <= hours <= 24:
                raise Refusal("Choose one of the machines, and 0.5 to 12 hours.")
            arguments = Order(*order), flavor, float(hours)
            job = self._service.submit(visitor_of(request), work, *arguments, secret=token.token, heavy=False)
        except Refusal as refusal:
            yield views.notice(str(refusal), "bad")
            return
        yield from _shown(job, waiting, "Started:" if work is launch else "")


def _shown_result(job: Job) -> tuple:
    """The parts of a result, and its id for the visitor's browser."""
    report = PruningReport.from_dict(job.result)
    card = render_card(report, job.arguments[0].name).split("---\n", 2)[2]
    text = re.sub(r"!\[[^]]*\]\([^)]*\)\n*", "", card)  # its pictures lie in the folder
    parts = views.result(report, job), views.heat_map(report), views.download(job), text
    return gr.Column(visible=True), *parts, job.id


def _hidden() -> tuple:
    return gr.Column(visible=False), "", "", "", "", ""


def _shown(job: Job, waiting: str, done: str) -> Iterator[str]:
    """A small job as one line."""
    yield views.notice(waiting)
    for _ in _until_over(job):
        pass
    if job.state != DONE:
        yield views.notice(job.error or "It was stopped.", "bad")
    else:
        yield views.link(done, str(job.result)) if done else views.notice(str(job.result), "good")


def _until_over(job: Job) -> Iterator[None]:
    """Again whenever there is something new, but not more often than anyone can look."""
    seen = 0
    while not job.over:
        yield
        seen = job.wait(seen, 1.0)
        if job.state == RUNNING:
            time.sleep(PAUSE)
