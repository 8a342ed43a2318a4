"""What a run says of its machine, its packages and its cost."""

from __future__ import annotations

import json
import platform
import time
from importlib import metadata

import psutil
import pytest
import torch

from hf_mamba_prune.measure.environment import CostMeter, hardware
from hf_mamba_prune.measure.versions import PACKAGES, versions


def test_versions_are_those_that_are_installed():
    found = versions()
    assert set(found) == {"python", *PACKAGES} and found["python"] == platform.python_version()
    assert found["torch"] == metadata.version("torch") and all(found.values())


def test_hardware_is_plain_data():
    found = hardware(torch.device("cpu"))
    assert json.loads(json.dumps(found)) == found
    assert found["device"] == "cpu" and found["threads"] == torch.get_num_threads()
    assert found["memory_bytes"] == psutil.virtual_memory().total and found["cores"] >= 1
    assert all(found[key] for key in ("processor", "system", "kernels"))


def test_steps_are_measured_in_order_and_summed_by_name():
    meter = CostMeter()
    for name, seconds in (("first", 0.02), ("second", 0.0), ("first", 0.03)):
        with meter.step(name):
            time.sleep(seconds)
    first, second = meter.costs
    assert (first.step, second.step) == ("first", "second")
    assert first.seconds >= 0.05 and second.seconds >= 0


def test_the_peak_is_that_of_the_step():
    meter = CostMeter()
    before = psutil.Process().memory_info().rss
    with meter.step("large"):
        held = bytearray(b"x") * (256 << 20)  # more than an allocator of an old process has at hand
    del held
    with meter.step("small"):
        pass
    large, small = meter.costs
    assert large.peak_bytes >= before + (128 << 20) > small.peak_bytes >= before // 2


def test_a_step_that_fails_is_measured_too_and_its_error_goes_on():
    meter = CostMeter()
    with pytest.raises(KeyError), meter.step("failing"):
        raise KeyError
    assert [cost.step for cost in meter.costs] == ["failing"]
