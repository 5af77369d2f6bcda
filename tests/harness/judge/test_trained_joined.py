"""Seeds of one training from several invocations: when they are blocks of one verdict, and that no block is torn."""

from __future__ import annotations

from typing import Any

import pytest

from harness.judge import trained_runs, training_summary
from harness.judge.claim import Claim
from harness.judge.verdict import Verdict, judge
from harness.record.environment import conditions

FIRST, SECOND = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def one(claim: Claim, *books: Any) -> Verdict:
    (found,) = judge(claim, books[0].store.frame(*(other.store for other in books[1:])))
    return found


@pytest.fixture
def part(book: Any) -> Any:
    """Some seeds of both arms and the alias, in one file."""

    def make(
        file: str, seeds: range, utc: str = FIRST, same: str | None = "c0ffee", pace: float = 1.0, ratio: float = 2.0,
        arms: tuple[str, ...] = ("toy.old", "toy.new", "toy.old#aa"), **detail: Any,
    ) -> Any:  # fmt: skip
        made = book(file=file, utc=utc)
        made.store.shared["conditions"] = same
        for seed in seeds:
            for arm in arms:
                time = pace * 80 * made.wobble[seed] / (ratio if arm == "toy.new" else 1.0)
                made.run(arm.removesuffix("#aa"), seed, {"time_to_target_s": time}, arm=arm, **detail)
        return made

    return make


def test_seeds_of_two_invocations_of_one_commit_and_machine_make_one_verdict(training: Any, part: Any) -> None:
    # The second machine takes half as long again: ratios inside a block do not show it.
    halves = part("a.jsonl", range(4)), part("b.jsonl", range(4, 7), SECOND, pace=1.5)
    found = one(training(), *halves)
    assert (found.verdict, found.n, found.file) == ("reproduced", 7, "b.jsonl")
    assert (found.low, found.high) == (pytest.approx(2.0), pytest.approx(2.0))
    assert found.floor == 0.005
    assert "seeds of 2 invocations: a.jsonl, b.jsonl" in found.reason
    rows = training_summary.summary(trained_runs.from_rows(row for half in halves for row in half.store.rows))
    (row,) = [row for row in rows if row["arm"] == "toy.new"]
    assert (row["n"], row["shared"], row["ratio"]) == (7, 7, pytest.approx(2.0))


@pytest.mark.parametrize("other", ["decaf", None])
def test_another_commit_or_an_unclean_tree_stands_alone(other: str | None, training: Any, part: Any) -> None:
    found = one(training(), part("a.jsonl", range(4)), part("b.jsonl", range(4, 7), SECOND, same=other))
    assert (found.n, found.file) == (4, "a.jsonl")
    assert found.reason.startswith("too few seeds: 4")
    assert "invocations" not in found.reason


def test_a_seed_run_twice_counts_once_and_whole(training: Any, part: Any) -> None:
    # Torn, the ratio would be 2.4 or 1.67: the second machine is slower and holds the newer runs.
    again = part("b.jsonl", range(2, 4), SECOND, pace=1.2)
    found = one(training(), part("a.jsonl", range(6)), again)
    assert (found.n, found.low, found.high) == (6, pytest.approx(2.0), pytest.approx(2.0))
    torn = part("b.jsonl", range(2, 4), SECOND, pace=1.2, arms=("toy.new",))
    found = one(training(), part("a.jsonl", range(6)), torn)
    assert (found.n, found.low, found.high, found.file) == (6, pytest.approx(2.0), pytest.approx(2.0), "a.jsonl")


def test_a_value_tried_in_between_takes_no_seed_away(training: Any, part: Any) -> None:
    tried = part("b.jsonl", range(2), SECOND, ratio=3.0, hyper={"lr": 1.0}, hyper_sources={"lr": "command line"})
    found = one(training(), part("a.jsonl", range(6), hyper={"lr": 0.1}), tried)
    assert (found.n, found.ratio) == (6, pytest.approx(2.0))


def test_what_two_invocations_must_share() -> None:
    environment = {"device_name": "GPU", "torch": "2.9", "host": "a", "load1": 0.1, "gpu": {"driver": "1", "uuid": "x"}}
    project = {"commit": "abc", "diff": ""}
    first = conditions(environment, project)
    assert first == conditions({**environment, "host": "b", "load1": 3.0, "gpu": {"driver": "1", "uuid": "y"}}, project)
    for other in ({"torch": "2.10"}, {"device_name": "CPU"}, {"gpu": {"driver": "2"}}, {"gpu": None}, {"threads": 4}):
        assert conditions({**environment, **other}, project) not in (first, None)
    assert conditions(environment, {**project, "commit": "abd"}) != first
    for unknown in ({"commit": "abc", "diff": "0123"}, {"commit": "", "diff": ""}, {}):
        assert conditions(environment, unknown) is None
