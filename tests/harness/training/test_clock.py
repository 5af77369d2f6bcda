"""The training clock and its buckets, on a clock that only moves when it is told to."""

import pytest

from harness.measure.training.clock import Buckets, HostMarker, TrainClock


class Hands:
    """A clock whose device finishes ``queued`` seconds of work when it is synchronised."""

    def __init__(self):
        self.now, self.queued, self.synchronised = 100.0, 0.0, 0

    def read(self):
        return self.now

    def synchronize(self):
        self.now += self.queued
        self.queued = 0.0
        self.synchronised += 1


@pytest.fixture
def hands():
    return Hands()


def test_only_running_segments_count(hands):
    clock = TrainClock(hands.synchronize, hands.read)
    clock.resume()
    hands.now += 2.0
    assert clock.pause() == pytest.approx(2.0)
    hands.now += 50.0  # evaluation
    clock.resume()
    hands.now += 3.0
    clock.pause()
    assert clock.elapsed_s == pytest.approx(5.0)


def test_queued_work_is_paid_by_the_segment_that_queued_it(hands):
    clock = TrainClock(hands.synchronize, hands.read)
    hands.queued = 7.0  # an evaluation's leftovers
    clock.resume()
    hands.now += 1.0
    hands.queued = 4.0
    assert clock.pause() == pytest.approx(5.0)
    assert hands.synchronised == 2


def test_the_clock_goes_on_from_an_earlier_process(hands):
    clock = TrainClock(hands.synchronize, hands.read, elapsed_s=10.0)
    clock.resume()
    hands.now += 1.0
    clock.pause()
    assert clock.elapsed_s == pytest.approx(11.0)


def test_misuse_is_refused_and_an_error_ends_the_segment(hands):
    clock = TrainClock(hands.synchronize, hands.read)
    with pytest.raises(RuntimeError):
        clock.pause()
    clock.resume()
    with pytest.raises(RuntimeError):
        clock.resume()
    hands.now += 1.5
    clock.abandon()
    clock.abandon()
    assert clock.elapsed_s == pytest.approx(1.5)


def test_inner_spans_are_not_counted_twice(hands):
    buckets = Buckets(HostMarker(hands.read))
    with buckets.span("optimizer"):
        hands.now += 1.0
        with buckets.span("forward"):
            hands.now += 2.0
        with buckets.span("backward"):
            hands.now += 3.0
        hands.now += 0.5
    with buckets.span("data"):
        hands.now += 0.25
    added = buckets.collect()
    assert added == pytest.approx({"optimizer": 1.5, "forward": 2.0, "backward": 3.0, "data": 0.25})
    assert buckets.collect() == {}
    buckets.add("data", 1.0)
    assert buckets.totals["data"] == pytest.approx(1.25)
    buckets.forget()
    assert buckets.totals == {}


def test_a_span_that_raises_still_ends(hands):
    buckets = Buckets(HostMarker(hands.read))

    def raises():
        with buckets.span("forward"):
            hands.now += 1.0
            raise ValueError

    with pytest.raises(ValueError):
        raises()
    with buckets.span("data"):
        hands.now += 1.0
    assert buckets.collect() == pytest.approx({"forward": 1.0, "data": 1.0})
