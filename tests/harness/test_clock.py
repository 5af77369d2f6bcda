"""Clocks and the sampling loop, with a fake clock: no assertion depends on real time."""

import pytest

from harness.catalogue.protocol import Protocol
from harness.measure import micro
from harness.measure.clock import HostClock
from harness.measure.device import PlainDevice


class FakeTime:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


def test_the_host_clock_synchronises_before_and_after():
    fake, order = FakeTime(), []

    def synchronize():
        order.append("sync")
        fake.advance(1.0 if len(order) > 2 else 5.0)

    clock = HostClock(synchronize, fake)
    elapsed = clock.time(lambda: order.append("call") or fake.advance(2.0))
    assert order == ["sync", "call", "sync"]
    assert elapsed == 3.0, "the first synchronisation (5 s) is outside, the call (2 s) and the last (1 s) inside"


class FakeDevice(PlainDevice):
    def __init__(self, fake):
        super().__init__()
        self.fake = fake

    def clocks(self):
        return {"op_s": HostClock(now=self.fake)}


@pytest.mark.parametrize(
    ("cost", "samples"),
    [(1.0, 1), (0.04, 3), (0.0001, 50)],
    ids=["slower than the window: one", "fills the window", "never more than the limit"],
)
def test_samples_fill_the_window(plugin, cost, samples):
    plugin({"toy.plain": "toy_methods:PLAIN"})
    import toy_task

    fake = FakeTime()
    seen = []

    def op(values):
        seen.append(tuple(values[:3]))
        fake.advance(cost)
        return [2 * x for x in values]

    problem = toy_task.SUITE.problems[0]
    timing = micro.time_arm(
        op=op,
        runtime=toy_task.RUNTIME,
        problem=problem,
        content=toy_task.RUNTIME.content(problem, 5),
        device=FakeDevice(fake),
        protocol=Protocol(inner_s=0.1, max_inner=50),
    )
    clock, values = timing.samples["op_s"]
    assert clock == "host"
    assert values == pytest.approx([cost] * (samples + 1)), "the last timed call is the checked one"
    assert len(seen) == samples + 2, "one warm-up call"
    assert timing.output == [2 * x for x in timing.checked]
    assert len(set(seen)) == len(seen), "every timed call saw new content"


def test_copying_new_content_is_outside_the_clock(plugin):
    plugin({"toy.plain": "toy_methods:PLAIN"})
    import toy_task

    fake = FakeTime()

    class Slow(type(toy_task.RUNTIME)):
        def fill(self, buffer, content):
            fake.advance(100.0)
            super().fill(buffer, content)

    problem = toy_task.SUITE.problems[0]
    timing = micro.time_arm(
        op=lambda values: fake.advance(0.2) or list(values),
        runtime=Slow(),
        problem=problem,
        content=toy_task.RUNTIME.content(problem, 5),
        device=FakeDevice(fake),
        protocol=Protocol(inner_s=0.1),
    )
    assert timing.samples["op_s"][1] == pytest.approx([0.2, 0.2])


def test_host_memory_sees_what_one_call_needs():
    from harness.measure.device import HostMemory

    memory = HostMemory()
    for _ in range(2):
        block = bytearray(b"x" * (24 << 20))  # a warm-up call leaves free heap behind
        del block
    memory.start()
    block = bytearray(b"x" * (24 << 20))
    peak = memory.peak()
    assert len(block) == 24 << 20
    assert 20 << 20 <= peak <= 100 << 20


def test_every_arm_stands_at_every_position_once():
    from harness.measure.worker import ordered

    arms = [f"toy.{letter}" for letter in "abcdef"]
    orders = [ordered(arms, "run/problem", block) for block in range(6)]
    assert all(sorted(order) == arms for order in orders)
    assert orders != [ordered(arms, "another run/problem", block) for block in range(6)]
    rotations = [ordered(arms, "run/problem", block)[:: -1 if block % 2 else 1] for block in range(6)]
    for position in range(6):
        assert {order[position] for order in rotations} == set(arms)
