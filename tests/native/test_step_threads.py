"""Decoding steps take half of the threads after one that waited for its cores, and nothing else does."""

from __future__ import annotations

import pytest
import torch
from native_cases import distance

from hf_mamba_prune import native
from hf_mamba_prune.native import step_threads

IDS = torch.arange(1, 9)[None]


class Clock:
    """Time as the steps see it; every layer of the model takes some of it, and works for a part."""

    def __init__(self):
        self.now, self.work = 100.0, 10.0
        self.takes, self.works = 0.03, 0.03

    def monotonic(self) -> float:
        return self.now

    def thread_time(self) -> float:
        return self.work

    def pass_by(self) -> None:
        self.now += self.takes
        self.work += self.works


@pytest.fixture
def clock(monkeypatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(step_threads, "time", found)
    return found


@pytest.fixture
def threads(mamba, clock, monkeypatch):
    """How many threads each call of the model's first layer had, of four."""
    monkeypatch.setattr(step_threads, "_steps", step_threads._Steps())
    seen: list[int] = []

    def layer(*_):
        seen.append(torch.get_num_threads())
        clock.pass_by()

    mamba.backbone.layers[0].register_forward_hook(layer)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield seen
    torch.set_num_threads(before)


@pytest.fixture
def step(mamba):
    """Decodes one token on the kernels."""
    with torch.no_grad():
        cache = mamba(IDS, use_cache=True).cache_params

    def run():
        with torch.no_grad():
            return mamba(IDS[:, :1], cache_params=cache).logits

    with native.use_native(mamba):
        yield run


def test_steps_that_get_their_cores_keep_all_threads(step, threads):
    step()
    step()
    assert threads[-2:] == [4, 4]


def test_a_step_that_waited_halves_the_next_ones_for_a_while(step, threads, clock):
    clock.works = 0.02
    step()
    clock.works = clock.takes
    step()
    step()
    assert threads[-3:] == [4, 2, 2] and torch.get_num_threads() == 4
    clock.now += 0.1
    step()
    assert threads[-1] == 4


def test_cores_that_stay_busy_are_tried_again_ever_later(step, threads, clock):
    for pause in (0.1, 0.2, 0.4, 0.8, 1.0, 1.0):
        clock.works = 0.0
        step()
        assert threads[-1] == 4
        clock.works = clock.takes
        clock.now += pause - 0.05
        step()
        assert threads[-1] == 2
        clock.now += 0.05
    step()
    clock.works = 0.0
    step()
    clock.now += 0.1
    step()
    assert threads[-3:] == [4, 4, 4]


def test_short_interrupts_are_no_busy_cores(step, threads, clock):
    clock.takes, clock.works = 0.001, 0.0002
    step()
    step()
    assert threads[-1] == 4


def test_half_the_threads_give_the_same_logits(mamba, threads, clock):
    clock.works = 0.0
    with native.use_native(mamba), torch.no_grad():
        whole = mamba(IDS).logits
        cache = mamba(IDS[:, :5], use_cache=True).cache_params
        steps = [mamba(IDS[:, i : i + 1], cache_params=cache).logits for i in range(5, 8)]
    assert threads[-3:] == [4, 2, 2]
    assert distance(torch.cat(steps, dim=1), whole[:, 5:]) < 1e-5


def test_prefills_and_steps_with_gradients_keep_all_threads(mamba, step, threads, clock):
    clock.works = 0.0
    step()
    with torch.no_grad():
        cache = mamba(IDS, use_cache=True).cache_params
        mamba(IDS[:, :1])
    mamba(IDS[:, :1], cache_params=cache)
    assert threads[-3:] == [4, 4, 4]
    step()
    assert threads[-1] == 2


def test_deterministic_algorithms_keep_all_threads(step, threads, clock):
    clock.works = 0.0
    torch.use_deterministic_algorithms(True)
    try:
        step()
        step()
    finally:
        torch.use_deterministic_algorithms(False)
    assert threads[-2:] == [4, 4]


def test_a_step_that_fails_gives_the_threads_back(mamba, step, threads, clock):
    clock.works = 0.0
    step()

    def fail(*_):
        raise RuntimeError("no more")

    with mamba.backbone.layers[1].register_forward_hook(fail), pytest.raises(RuntimeError, match="no more"):
        step()
    assert threads[-1] == 2 and torch.get_num_threads() == 4


def test_two_handles_halve_once_and_closing_ends_it(mamba, step, threads, clock):
    clock.works = 0.0
    step()
    with native.use_native(mamba):
        step()
    assert threads[-1] == 2 and torch.get_num_threads() == 4


def test_nothing_is_left_on_the_model(mamba):
    with native.use_native(mamba):
        assert mamba._forward_hooks and mamba._forward_pre_hooks
    assert not mamba._forward_hooks and not mamba._forward_pre_hooks
