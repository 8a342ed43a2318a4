"""What runs in the process of a job. It is forked from one that has imported all of this, so it starts at once."""

from __future__ import annotations

import os
import resource
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from orders import BUNDLED, Order, sentence, source_of
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging as transformers_logging

from hf_mamba_prune import HubJob, PushChoice, follow, load_model, push_folder, use_native
from hf_mamba_prune.packed.checkpoint import load_packed

Say = Callable[[object], None]
RESULT = "model"


def run(
    connection: Connection, work: Callable, folder: Path, arguments: tuple, secret: str | None, memory: int
) -> None:
    """Do one job and send what comes of it: messages, then a result or an error."""
    os.setsid()  # all that it starts can be ended with it
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OAUTH_TOKEN"):
        os.environ.pop(name, None)
    if secret is not None:
        os.environ["HF_TOKEN"] = secret
    _bound_memory(memory)
    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT, 0o600)  # what libraries print goes away with the job
    os.dup2(log, 1)
    os.dup2(log, 2)
    transformers_logging.set_verbosity_error()
    try:
        result = work(folder, lambda message: connection.send(("message", message)), *arguments)
    except MemoryError:
        connection.send(("error", "There was not enough memory for this model."))
    except (ValueError, RuntimeError, OSError) as error:
        connection.send(("error", _sentence(error, arguments)))
    else:
        connection.send(("result", result))
    connection.close()
    sys.stdout.flush()
    os._exit(0)


def _bound_memory(memory: int) -> None:
    """More memory than this fails in the job, and not somewhere else; and the system ends jobs first."""
    with open("/proc/self/statm", encoding="ascii") as file:
        held = int(file.read().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (held + memory, held + memory))
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


def _sentence(error: Exception, arguments: tuple) -> str:
    """An error for the visitor, without folders of this machine."""
    model = next((order.model for order in arguments if isinstance(order, Order)), BUNDLED)
    text = sentence(error, model)
    short = "allocate memory" in text or "bad_alloc" in text
    return "There was not enough memory for this model." if short else text


def prune(folder: Path, say: Say, order: Order) -> dict:
    """Prune, pack, measure and zip; gives the report back."""
    with follow(say):
        report = order.job(folder / RESULT).run()
    with zipfile.ZipFile(folder / "part.zip", "w", zipfile.ZIP_STORED) as archive:
        for path in sorted((folder / RESULT).rglob("*")):
            archive.write(path, Path(order.name) / path.relative_to(folder / RESULT))
    (folder / "part.zip").rename(folder / f"{RESULT}.zip")
    return report.to_dict()


class _Words(BaseStreamer):
    """Sends the text so far and its speed, token by token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, say: Say) -> None:
        self._tokenizer, self._name, self._say = tokenizer, name, say
        self._ids: list[int] = []
        self._times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self._ids += value.flatten().tolist()
        self._times.append(time.perf_counter())
        done = len(self._times) - 2
        rate = done / (self._times[-1] - self._times[1]) if done > 0 else 0.0
        self._say((self._name, self._tokenizer.decode(self._ids), rate))

    def end(self) -> None:
        """Nothing is left to do."""


def generate(folder: Path, say: Say, order: Order, result: Path, prompt: str, tokens: int, sampled: bool) -> None:
    """Let the dense model write and then the packed one, from the same prompt and seed."""
    for name, model, tokenizer in _writers(order, result):
        ids = tokenizer(prompt, return_tensors="pt").input_ids[:, -512:]
        torch.manual_seed(order.seed)
        how = dict(do_sample=True, temperature=0.8, top_k=50) if sampled else dict(do_sample=False)
        model.generate(ids, max_new_tokens=tokens, streamer=_Words(tokenizer, name, say), **how)


def _writers(order: Order, result: Path) -> Iterator[tuple[str, PreTrainedModel, PreTrainedTokenizerBase]]:
    loaded = load_model(source_of(order.model), device="cpu")
    with use_native(loaded.model):
        yield "dense", loaded.model, loaded.tokenizer
    tokenizer = loaded.tokenizer
    del loaded
    yield "packed", load_packed(result / "packed", unpack=False), tokenizer


def push(folder: Path, say: Say, result: Path, choice: PushChoice) -> str:
    """Push a result as the visitor whose token this process has; gives the address back."""
    return push_folder(result, choice)


def price(folder: Path, say: Say, order: Order, flavor: str, hours: float) -> str:
    """What the same would cost on the Hub's machines."""
    return _hub_job(order, flavor, hours).price()


def launch(folder: Path, say: Say, order: Order, flavor: str, hours: float) -> str:
    """Start the same on the Hub's machines, on the visitor's account; gives its address back."""
    return _hub_job(order, flavor, hours).start().url


def _hub_job(order: Order, flavor: str, hours: float) -> HubJob:
    if order.model == BUNDLED:
        raise ValueError("the bundled model is small enough for this machine: no job is needed.")
    return HubJob(arguments=(*order.arguments(), "--push", "--private"), flavor=flavor, hours=hours)
