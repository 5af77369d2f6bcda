"""A planned training completed by other invocations: when a seed joins a verdict, and when it never does."""

from __future__ import annotations

from typing import Any

import pytest

from harness.judge.claim import Claim
from harness.judge.verdict import Verdict, judge
from harness.record.environment import conditions, tree

FIRST, SECOND, THIRD = (f"2026-01-0{day}T00:00:00Z" for day in (1, 2, 3))
ARMS = ("toy.old", "toy.new", "toy.old#aa")


class Part:
    """Some seeds of both arms and the alias in one file, and the plan that its header tells."""

    def __init__(self, made: Any, planned: range, arms: tuple[str, ...]) -> None:
        self.made = made
        plan = {"workload": "toy-train", "seeds": list(planned), "arms": list(arms)}
        self.header = {"file": made.file, "plan": {"tier": "standard", "training": [plan]}}


@pytest.fixture
def part(book: Any) -> Any:
    def make(
        file: str, seeds: range, planned: range, utc: str = FIRST, same: str | None = "c0ffee", pace: float = 1.0,
        ratio: float = 2.0, arms: tuple[str, ...] = ARMS, **detail: Any,
    ) -> Part:  # fmt: skip
        made = book(file=file, utc=utc)
        made.store.shared["conditions"] = same
        for seed in seeds:
            for arm in arms:
                time = pace * 80 * made.wobble[seed] / (ratio if arm == "toy.new" else 1.0)
                stream = seed + 1_000_003 if arm.endswith("#aa") else seed
                made.run(arm.removesuffix("#aa"), stream, {"time_to_target_s": time}, arm=arm, **detail)
        return Part(made, planned, arms)

    return make


def one(claim: Claim, *parts: Part) -> Verdict:
    frame = parts[0].made.store.frame(*(other.made.store for other in parts[1:]))
    (found,) = judge(claim, frame, [part.header for part in parts])
    return found


def test_seeds_that_an_invocation_planned_and_lacks_come_from_another(training: Any, part: Any) -> None:
    # The second machine takes half as long again: ratios inside a block do not show it.
    halves = part("a.jsonl", range(4), range(7)), part("b.jsonl", range(4, 7), range(4, 7), SECOND, pace=1.5)
    for order in (halves, halves[::-1]):
        found = one(training(), *order)
        assert (found.verdict, found.n, found.file) == ("reproduced", 7, "a.jsonl")
        assert (found.low, found.high, found.floor) == (pytest.approx(2.0), pytest.approx(2.0), 0.005)
        assert found.reason.endswith("seed 4 from b.jsonl; seed 5 from b.jsonl; seed 6 from b.jsonl")


def test_seeds_beyond_the_plan_never_join(training: Any, part: Any) -> None:
    more = part("b.jsonl", range(6, 9), range(6, 9), SECOND)
    found = one(training(), part("a.jsonl", range(6), range(6), ratio=1.5), more)
    assert (found.n, found.high, found.file) == (6, pytest.approx(1.5), "a.jsonl")
    found = one(training(), part("a.jsonl", range(4), range(5)), part("b.jsonl", range(4, 8), range(4, 8), SECOND))
    assert (found.n, found.verdict) == (5, "inconclusive")


def test_what_an_invocation_ran_whole_is_never_replaced(training: Any, part: Any) -> None:
    again = part("b.jsonl", range(3, 4), range(3, 4), SECOND, ratio=9.0)
    found = one(training(), part("a.jsonl", range(6), range(6)), again)
    assert (found.n, found.low, found.high) == (6, pytest.approx(2.0), pytest.approx(2.0))


def test_the_oldest_of_several_whole_blocks_counts(training: Any, part: Any) -> None:
    first, later = (
        part(file, range(5, 6), range(5, 6), utc, ratio=ratio)
        for file, utc, ratio in (("b.jsonl", SECOND, 2.0), ("c.jsonl", THIRD, 9.0))
    )
    for order in ((first, later), (later, first)):
        found = one(training(), part("a.jsonl", range(5), range(6)), *order)
        assert (found.n, found.high) == (6, pytest.approx(2.0))


@pytest.mark.parametrize(
    "more",
    [
        {"same": "decaf"},
        {"same": None},
        {"arms": ("toy.old", "toy.new")},
        {"arms": ("toy.new", "toy.old#aa")},
        {"hyper": {"lr": 3.0}},
        {"resumed": True},
        {"braked": True},
        {"side_by_side": 2},
        {"status": "interrupted", "reason": "Ctrl-C"},
        {"split": "validation"},
    ],
)
def test_a_block_of_other_conditions_or_not_whole_does_not_join(more: dict[str, Any], training: Any, part: Any) -> None:
    other = part("b.jsonl", range(5, 6), range(5, 6), SECOND, **more)
    found = one(training(), part("a.jsonl", range(5), range(6)), other)
    assert (found.n, found.verdict) == (5, "inconclusive")
    assert "b.jsonl" not in found.reason


def test_a_torn_block_is_replaced_whole(training: Any, part: Any) -> None:
    anchor = part("a.jsonl", range(5), range(6))
    anchor.made.run("toy.old", 5, {"time_to_target_s": 1.0})  # its other arms were cut off
    found = one(training(), anchor, part("b.jsonl", range(5, 6), range(5, 6), SECOND))
    assert (found.n, found.high) == (6, pytest.approx(2.0))


def test_without_a_header_an_invocation_stands_alone(training: Any, part: Any) -> None:
    parts = part("a.jsonl", range(5), range(6)), part("b.jsonl", range(5, 6), range(5, 6), SECOND)
    (found,) = judge(training(), parts[0].made.store.frame(parts[1].made.store))
    assert found.n == 5


def test_what_two_invocations_must_share() -> None:
    gpu = {"driver": "1", "uuid": "x", "power_limit_w": 700.0}
    environment = {"device_name": "GPU", "torch": "2.9", "host": "a", "load1": 0.1, "gpu": gpu}
    project = {"commit": "abc", "diff": ""}
    first = conditions(environment, project)
    assert first == conditions({**environment, "host": "b", "load1": 3.0, "gpu": {**gpu, "uuid": "y"}}, project)
    others: tuple[dict[str, Any], ...] = (
        *({"torch": "2.10"}, {"device_name": "CPU"}, {"gpu": {**gpu, "driver": "2"}}, {"gpu": None}, {"threads": 4}),
        *({"gpu": {**gpu, "power_limit_w": 350.0}}, {"gpu": "H100"}, {"cores_usable": 1}),
    )
    digests = {conditions({**environment, **other}, project) for other in others}
    assert not digests & {first, None}
    assert conditions(environment, {**project, "commit": "abd"}) != first
    for unknown in ({"commit": "abc", "diff": "0123"}, {"commit": "abc"}, {"commit": "", "diff": ""}, {}):
        assert conditions(environment, unknown) is None
    same = [conditions(environment, {"commit": c, "diff": d, "tree": "t"}) for c, d in (("abc", ""), ("abd", "0123"))]
    assert same[0] == same[1] != first


def test_the_digest_of_the_sources_tells_an_edit_where_there_is_no_git(tmp_path: Any) -> None:
    for name, text in (("harness/a.py", "1"), ("methods/k/b.cpp", "2"), ("suites/c.toml", "3"), ("suites/d.npz", "4")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    first = tree(tmp_path)
    (tmp_path / "suites/d.npz").write_text("5")
    assert tree(tmp_path) == first
    (tmp_path / "methods/k/b.cpp").write_text("22")
    assert tree(tmp_path) != first
