"""The Space for programs: endpoints, tools for agents, crowds, and those who mean harm."""

from __future__ import annotations

import json
import threading
import time
import zipfile
from io import BytesIO

import httpx2
import psutil
import pytest
import torch
from conftest import wait_until
from gradio_client.exceptions import AppError
from payload import Payload

BUNDLED = "mamba-wiki-3m"


def fetch(space, path: str) -> httpx2.Response:
    return httpx2.get(f"{space.url}/{path}", timeout=30)


def test_a_model_is_described(space):
    found = space.client().predict(BUNDLED, api_name="/describe_model")
    assert (found["kind"], found["weights"], found["fits"]) == ("mamba", 2_800_320, True)


def test_a_model_from_the_hub_is_pruned(space):
    found = space.client().predict("alice/small", 0.5, "quick", 8, api_name="/prune_model")
    assert found["sparsity"] == pytest.approx(0.5, abs=0.01)
    with zipfile.ZipFile(BytesIO(fetch(space, found["download"]).content)) as archive:
        report = json.loads(archive.read("small-pruned-50/report.json"))
    assert report["model"]["id"] == "alice/small"
    assert report["after"][0]["perplexity"] == pytest.approx(found["perplexity"])


def test_the_endpoints_are_typed_and_the_rest_is_hidden(space):
    described = space.client().view_api(return_format="dict")["named_endpoints"]
    assert set(described) == {"/describe_model", "/prune_model"}
    types = {part["parameter_name"]: part["python_type"]["type"] for part in described["/prune_model"]["parameters"]}
    assert types == {"model_id": "str", "sparsity": "float", "recipe": "str", "samples": "int"}


def test_agents_find_both_as_tools(space):
    tools = {tool["name"]: tool for tool in fetch(space, "gradio_api/mcp/schema").json()}
    assert set(tools) == {"describe_model", "prune_model"}
    assert all(tool["description"] and tool["inputSchema"]["properties"] for tool in tools.values())


def test_ten_visitors_at_once(space):
    """Each gets its own result or is told that the queue is full; memory and files stay within bounds."""
    sparsities = [0.3 + 0.05 * i for i in range(10)]
    answers, peak, over = {}, [0], threading.Event()

    def visit(sparsity: float) -> None:
        try:
            answers[sparsity] = space.client().predict(BUNDLED, sparsity, "quick", 8, api_name="/prune_model")
        except AppError as error:
            answers[sparsity] = str(error)

    def weigh() -> None:
        while not over.wait(0.5):
            peak[0] = max(peak[0], sum(map(_memory, space.processes())))

    visitors = [threading.Thread(target=visit, args=(sparsity,)) for sparsity in sparsities]
    scales = threading.Thread(target=weigh)
    for thread in (scales, *visitors):
        thread.start()
    for thread in visitors:
        thread.join()
    over.set()
    scales.join()
    served = {sparsity: found for sparsity, found in answers.items() if isinstance(found, dict)}
    refused = [found for found in answers.values() if isinstance(found, str)]
    print(f"{len(served)} served, {len(refused)} refused, {peak[0] / 1e9:.2f} GB at most")
    assert len(served) in (6, 7) and len(served) + len(refused) == 10
    assert all("The queue is full" in found for found in refused)
    for sparsity, found in served.items():
        assert found["sparsity"] == pytest.approx(sparsity, abs=1e-4)
    assert len({found["download"] for found in served.values()}) == len(served)
    assert peak[0] < 8e9
    for client in space.clients:
        client.close()
    space.clients.clear()
    assert wait_until(lambda: not space.jobs(), 60), "results of visitors who have gone"


def _memory(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0


@pytest.fixture
def result(space) -> dict:
    """Of somebody else."""
    return space.client().predict("alice/small", 0.5, "quick", 8, api_name="/prune_model")


def test_nobody_finds_the_files_of_another_by_guessing(space, result):
    id = result["download"].removeprefix("result/").removesuffix(".zip")
    folder = next(folder for folder in space.jobs() if folder.name == id)
    assert fetch(space, result["download"]).status_code == 200
    for name in (id[:-1], id[::-1], "..", "%2e%2e", "*", f"../jobs/{id}", f"{id}/../{id}x", "", "x" * 5000):
        assert fetch(space, f"result/{name}.zip").status_code == 404, name
    for path in (folder / "model.zip", folder / "model" / "config.json", folder / "log.txt", "/etc/passwd"):
        for route in ("gradio_api/file=", "file=", "gradio_api/proxy=", "static/", "result/"):
            answer = fetch(space, f"{route}{path}")
            assert answer.status_code in (400, 403, 404), (route, path)
    for route in ("queue/data?session_hash=00000000000", f"call/prune_model/{id}", f"call/prune_model/{'0' * 32}"):
        said = listen(space, f"gradio_api/{route}")
        assert id not in said and "perplexity" not in said


def listen(space, path: str) -> str:
    """What an address says until it is silent or hangs up."""
    said = ""
    try:
        with httpx2.stream("GET", f"{space.url}/{path}", timeout=5) as answer:
            for line in answer.iter_lines():
                said += line
                if "process_completed" in line or "close_stream" in line:
                    break
    except httpx2.TransportError:
        pass
    return said


HOSTILE = [
    "../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "<script>alert(1)</script>", "a/<b onclick=x>",
    "$(touch /tmp/x)/b", "a/b; rm -rf /", "-x/--trust-remote-code", "a/b\x00", "\u202ea/b", "ａ/ｂ", "x" * 100_000,
    "hf_" + "C" * 34, "{{7*7}}/b", "a/b?x=1", "http://127.0.0.1:1/a/b", "", " ",
]  # fmt: skip


@pytest.mark.parametrize("api", ["/describe_model", "/prune_model"])
def test_hostile_ids_are_refused_and_not_repeated(space, api):
    client = space.client()
    for model in HOSTILE:
        with pytest.raises(AppError) as refusal:
            client.predict(model, api_name=api)
        assert len(model) < 3 or model not in str(refusal.value)
    log = space.log()
    assert not [model for model in HOSTILE if len(model) > 2 and model in log]


@pytest.mark.parametrize(
    "sparsity, recipe, samples",
    [
        (1e308, "quick", 8), (-1, "quick", 8), ("0.5", "quick", 8), (None, "quick", 8), (0.5, "../quick", 8),
        (0.5, "<script>", 8), (0.5, "quick", 10**12), (0.5, "quick", -1), (0.5, "quick", [1]),
        ([0.5] * 999, "quick", 8),
    ],
)  # fmt: skip
def test_hostile_numbers_are_refused(space, sparsity, recipe, samples):
    before = space.log()
    with pytest.raises(AppError):
        space.client().predict(BUNDLED, sparsity, recipe, samples, api_name="/prune_model")
    assert space.log() == before


def test_the_functions_of_the_page_give_a_stranger_nothing(space, result):
    """They can be called by those who speak as the page does; a result still belongs to its visitor."""
    functions = [part for part in fetch(space, "config").json()["dependencies"] if part["backend_fn"]]
    assert len(functions) >= 8
    for part in functions:
        if part["api_visibility"] == "private":
            said = call_as_page(space, part["id"], ["The history of"] * len(part["inputs"]))
            assert "result/" not in said and "perplexity" not in said and "/tmp" not in said


def call_as_page(space, function: int, data: list) -> str:
    session = f"stranger{function}"
    body = {"data": data, "fn_index": function, "session_hash": session}
    httpx2.post(f"{space.url}/gradio_api/queue/join", json=body, timeout=30)
    return listen(space, f"gradio_api/queue/data?session_hash={session}")


def test_a_repository_with_pickled_code_runs_nothing(space, tmp_path):
    trace = tmp_path / "executed"
    torch.save({"backbone.embeddings.weight": Payload(trace)}, tmp_path / "pytorch_model.bin")
    files = {name: content for name, content in space.hub.files("alice/small").items() if "safetensors" not in name}
    files["pytorch_model.bin"] = (tmp_path / "pytorch_model.bin").read_bytes()
    space.hub.add_model("alice/pickled", files)
    with pytest.raises(AppError, match="^The weights in its folder are damaged or cut short"):
        space.client().predict("alice/pickled", 0.5, "quick", 8, api_name="/prune_model")
    assert not trace.exists()


def test_a_job_that_is_killed_leaves_the_app_to_the_next_visitor(space):
    before = {process.pid for process in space.processes()}
    job = space.client().submit(BUNDLED, 0.7, "quick", 64, api_name="/prune_model")
    assert wait_until(lambda: space.health()["running"] == 1, 60)
    time.sleep(3)
    own = [process for process in space.processes() if process.pid not in before]
    worker = max(own, key=_memory)
    worker.kill()
    with pytest.raises(AppError, match="stopped by the system"):
        job.result(timeout=60)
    assert space.health()["status"] == "ok"
    found = space.client().predict("alice/small", 0.5, "quick", 8, api_name="/prune_model")
    assert found["sparsity"] == pytest.approx(0.5, abs=0.01)
