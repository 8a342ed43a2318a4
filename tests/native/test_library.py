"""The compiled library: forcing instruction sets, forks, threads, the sanitizers and builds without a compiler."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import site
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from native_cases import scan_inputs

from hf_mamba_prune import native

ROOT = Path(__file__).resolve().parents[2]
needs_kernels = pytest.mark.skipif(not native.available(), reason="the kernels are not built or switched off")
needs_compiler = pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake and a C++ compiler")


@needs_kernels
def test_an_instruction_set_can_be_forced(monkeypatch):
    assert native.active_instruction_set() == native.instruction_sets()[0]
    for name in native.instruction_sets():
        monkeypatch.setenv("HF_MAMBA_PRUNE_ISA", name)
        assert native.active_instruction_set() == name
    with native.force_instruction_set(native.instruction_sets()[0]):
        assert native.active_instruction_set() == native.instruction_sets()[0]
    monkeypatch.setenv("HF_MAMBA_PRUNE_ISA", "mmx")
    with pytest.raises(ValueError, match="HF_MAMBA_PRUNE_ISA='mmx': this build and machine have"):
        native.active_instruction_set()
    with pytest.raises(ValueError, match="instruction set='mmx'"):
        native.force_instruction_set("mmx")


INPUTS = scan_inputs(1, 64, 100, 8)


def scanned() -> torch.Tensor:
    return native.selective_scan(**INPUTS, delta_softplus=True)


def scan_in_child(queue) -> None:
    queue.put(scanned().sum().item())


@needs_kernels
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # the point of the test
def test_a_forked_child_works():
    expected = scanned().sum().item()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=scan_in_child, args=(queue,))
    child.start()
    assert queue.get(timeout=60) == expected
    child.join(timeout=60)
    assert child.exitcode == 0


FORKED = """
import os, sys, torch
from hf_mamba_prune import native
torch.set_num_threads(2)
torch.randn(1500, 1500) @ torch.randn(1500, 1500)  # torch's threads exist, and no kernel has run yet
child = os.fork()
if child == 0:
    x = torch.randn(1, 64, 300)
    native.causal_conv1d(x, torch.randn(64, 4), None, "silu")
    native.keep_above(torch.rand(1 << 21), 0, torch.empty(1 << 21, dtype=torch.bool))
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@needs_kernels
def test_a_child_forked_before_any_kernel_ran_works():
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=60)


TOGETHER = """
import os, torch
from hf_mamba_prune import native
torch.set_num_threads(2)
torch.randn(1500, 1500) @ torch.randn(1500, 1500)
allowed, me = os.sched_getaffinity(0), os.getpid()
x, weight = torch.randn(1, 1024, 2000), torch.randn(1024, 4)
others = [int(task) for task in os.listdir("/proc/self/task") if int(task) != me]

def parted(core):
    for other in others:
        os.sched_setaffinity(other, {core})
    for _ in range(300):
        os.sched_setaffinity(me, {core})  # comes here, and may go away again
        os.sched_setaffinity(me, allowed)
        native.causal_conv1d(x, weight, None, "silu")
        if any(core not in os.sched_getaffinity(other) for other in others):
            return True
    return False

assert all(parted(core) for core in sorted(allowed)[:2])
assert os.sched_getaffinity(me) == allowed
"""


@needs_kernels
@pytest.mark.skipif(not sys.platform.startswith("linux") or os.cpu_count() < 2, reason="needs two cores of Linux")
def test_threads_that_meet_on_one_core_part():
    subprocess.run([sys.executable, "-c", TOGETHER], check=True, timeout=60)


@needs_kernels
def test_many_python_threads_share_the_pool():
    expected, found = scanned(), []
    threads = [threading.Thread(target=lambda: found.extend(scanned() for _ in range(20))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80 and all(torch.equal(out, expected) for out in found)


@pytest.mark.slow
@needs_compiler
def test_no_crash_under_the_sanitizers(tmp_path):
    source = ROOT / "hf_mamba_prune" / "native"
    subprocess.run(["cmake", "-S", source, "-B", tmp_path, "-DHMP_SANITIZE=ON"], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", tmp_path, "--parallel", "2"], check=True, capture_output=True)
    ran = subprocess.run([tmp_path / "kernels_driver"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1].endswith("all finite")


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["works", "/bin/false"])
def test_a_wheel_is_built_with_and_without_a_compiler(compiler, tmp_path):
    copy = tmp_path / "source"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "build", "tests", "*.so", "__pycache__"))
    environment = os.environ | ({} if compiler == "works" else {"CXX": compiler})
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "wheels", copy],
        check=True,
        capture_output=True,
        env=environment,
    )
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "hf_mamba_prune/native/plug.py" in names and not any(name.endswith((".cpp", ".h")) for name in names)
    assert any("native/_kernels" in name for name in names) == (compiler == "works")
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    code = "from hf_mamba_prune import native; print(native.info()['built'])"
    environment["PYTHONPATH"] = os.pathsep.join([str(installed), *site.getsitepackages()])
    ran = subprocess.run(  # without the .pth file of an editable installation, which would be found before it
        [sys.executable, "-S", "-c", code], cwd=installed, capture_output=True, text=True, check=True, env=environment
    )
    assert ran.stdout.split()[-1] == str(compiler == "works")
