"""Joules per call: several windows, each from tick to tick; a counter that stands still or is absent says so."""

import pytest

from harness import read_runs
from harness.measure import executor, micro
from harness.measure.plan import Request, build


class Runtime:
    def buffer_like(self, content):
        return content

    def fill(self, buffer, content):
        pass


class Device:
    """Every call costs ``joules``; the counter shows it at every ``every``-th call and wraps around at ``top``."""

    def __init__(self, joules=0.5, every=1, top=float("inf")):
        self.joules, self.every, self.top, self.calls = joules, every, top, 0

    def energy_j(self):
        return (self.calls // self.every * self.every * self.joules) % self.top

    def synchronize(self):
        pass

    def op(self, buffer):
        self.calls += 1


@pytest.fixture(autouse=True)
def one_call_a_look(monkeypatch):
    monkeypatch.setattr(micro, "LOOKS", 0.0)


def measure(device, seconds=0.03, **more):
    return micro.energy_pass(op=device.op, runtime=Runtime(), content=None, device=device, seconds=seconds, **more)


@pytest.mark.parametrize("every", [1, 7])
def test_joules_a_call_in_as_many_windows_as_a_verdict_needs(every):
    assert measure(Device(every=every)) == pytest.approx([0.5] * micro.ENERGY_WINDOWS)


def test_one_window_where_a_block_asks_for_one():
    assert measure(Device(), count=1) == [pytest.approx(0.5)]


def test_a_counter_that_wraps_costs_its_window():
    device = Device(top=60.0)
    found = measure(device, seconds=0.0, count=3)
    assert all(joules == pytest.approx(0.5) for joules in found)
    device.calls = 116  # two calls more find how many go together
    assert len(measure(device, seconds=0.0, count=3)) == 2


def test_a_counter_that_stands_still_says_so(monkeypatch):
    monkeypatch.setattr(micro, "LONGEST_TICK_S", 0.01)
    assert "did not move" in measure(Device(joules=0.0))


def test_no_counter_says_so():
    device = Device()
    device.energy_j = lambda: None
    assert "no readable energy counter" in measure(device)


class Slow:
    """A device of one watt with a clock of its own: a call takes 10 us, a look 5 ms, the counter moves every 20 ms."""

    def __init__(self):
        self.now = 0.0

    def energy_j(self):
        self.now += 5e-3
        return self.now // 20e-3 * 20e-3

    def synchronize(self):
        self.now += 1e-5

    def op(self, buffer):
        self.now += 1e-5


def test_looking_at_the_counter_is_not_charged_to_the_calls(monkeypatch):
    device = Slow()
    monkeypatch.setattr(micro.time, "monotonic", lambda: device.now)
    assert min(measure(device, seconds=0.4)) > 5e-3  # a look after each call
    monkeypatch.setattr(micro, "LOOKS", 10.0)
    found = measure(device, seconds=0.4)
    assert len(found) == micro.ENERGY_WINDOWS
    assert sum(found) / len(found) == pytest.approx(1e-5, rel=0.15)  # of it 10 % are looks


def test_a_slow_first_call_does_not_decide_how_many_go_together(monkeypatch):
    device, plain = Slow(), Slow.op

    def op(buffer):
        device.now += 0.06 if device.now < 0.02 else 0.0
        plain(device, buffer)

    device.op = op
    monkeypatch.setattr(micro.time, "monotonic", lambda: device.now)
    monkeypatch.setattr(micro, "LOOKS", 10.0)
    found = measure(device, seconds=0.4)
    assert sum(found) / len(found) == pytest.approx(1e-5, rel=0.15)


def test_slow_calls_need_few_of_them(monkeypatch):
    device, made = Slow(), []

    def op(buffer):
        made.append(buffer)
        device.now += 3.0

    device.op = op
    monkeypatch.setattr(micro.time, "monotonic", lambda: device.now)
    monkeypatch.setattr(micro, "LOOKS", 10.0)
    assert measure(device, seconds=0.4) == pytest.approx([3.0] * micro.ENERGY_WINDOWS, rel=0.05)
    assert len(made) <= micro.ENERGY_WINDOWS + 4


COUNTED = """

import time
from harness.measure import device, worker

worker.ENERGY_S = 0.002
device.PlainDevice.energy_j = lambda self: 10 * time.monotonic()
"""


@pytest.mark.parametrize("asked", [True, False])
def test_every_block_has_joules_where_they_are_asked_for(asked, plugin, warm_workers, tmp_path):
    folder = plugin(
        {"toy.plain": "toy_methods:PLAIN", "toy.wrong": "toy_methods:WRONG"}, suites={"toy": "toy_task:SUITE"}
    )
    with (folder / "toy_task.py").open("a") as task:
        task.write(COUNTED)
    request = Request(suites=("toy",), tier="quick", blocks=6, problems=("uniform-2000-float64-cpu",), energy=asked)
    frame = read_runs(executor.execute(build(request), tmp_path / "out", "test").path)
    joules = frame[frame["metric"] == "call_energy_j"]
    assert set(joules["unit"]) == {"J"}
    assert set(joules[joules["phase"] == "memory"]["arm"]) == {"toy.plain"}
    blocks = joules[joules["phase"] == "block"]
    assert sorted(blocks["arm"]) == (6 * ["toy.plain"] + 6 * ["toy.plain#aa"] if asked else [])
    assert (blocks["samples"].map(len) == 1).all()
    times = frame[(frame["metric"] == "op_s") & (frame["arm"] == "toy.plain")]["value"]
    assert not asked or blocks["value"].median() == pytest.approx(10 * times.median(), rel=3.0)
