"""Two stores side by side: pairing, words, environment differences."""

from __future__ import annotations

from typing import Any

import pytest

from harness.judge.compare import ComparisonRow, compare


def only(rows: list[ComparisonRow], method: str = "toy.new") -> ComparisonRow:
    found = [row for row in rows if row.case.startswith(method + "/")]
    assert len(found) == 1
    return found[0]


def timed(store: Any, file: str, ratio: float, **more: Any) -> Any:
    return store(file).times("toy.new", ratio, seed=len(file), **more).aa()


@pytest.mark.parametrize(("ratio", "word"), [(1.2, "faster"), (0.8, "slower"), (1.0, "no difference")])
def test_same_blocks_in_one_environment_are_paired(store: Any, ratio: float, word: str) -> None:
    row = only(compare(timed(store, "a", 1.0).frame(), timed(store, "bb", ratio).frame()))
    assert (row.word, row.paired, row.n) == (word, True, 10)
    assert row.ratio == pytest.approx(ratio, rel=0.01)
    assert row.a == pytest.approx(1.0, rel=0.01)
    assert row.floor >= 0.005
    assert row.device == "Toy CPU"


def test_other_blocks_or_environments_are_not_paired(store: Any) -> None:
    a, b = timed(store, "a", 1.0), timed(store, "b", 1.3, blocks=9)
    row = only(compare(a.frame(), b.frame()))
    assert (row.paired, row.word, row.n) == (False, "faster", 9)
    for entry in b.rows:
        entry["threads"] = 2.0
    row = only(compare(a.frame(), b.frame()))
    assert row.differences == ("threads: 1.0 → 2.0",)
    headers = [{"file": name, "environment": {"torch": torch}} for name, torch in (("a", "2.11"), ("b", "2.14"))]
    row = only(compare(a.frame(), b.frame(), headers_a=headers, headers_b=headers))
    assert "torch: 2.11 → 2.14" in row.differences


def test_other_protocols_and_clocks_do_not_compare(store: Any) -> None:
    a, b = timed(store, "a", 1.0), timed(store, "b", 1.3)
    for entry in b.rows:
        entry["protocol"] = 2.0
    row = only(compare(a.frame(), b.frame()))
    assert (row.word, "protocols differ" in row.reason) == ("inconclusive", True)
    c = timed(store, "c", 1.3, clock="graph")
    assert "clocks differ" in only(compare(a.frame(), c.frame())).reason


def test_few_blocks_noise_and_a_missing_aa_arm_stay_inconclusive(store: Any) -> None:
    a = timed(store, "a", 1.0)
    few = [store(name).times("toy.new", r, blocks=5).aa() for name, r in (("x", 1.0), ("y", 1.5))]
    assert "too few" in only(compare(few[0].frame(), few[1].frame())).reason
    bare = [store(name).times("toy.new", r) for name, r in (("x", 1.0), ("y", 1.5))]
    assert "A/A" in only(compare(bare[0].frame(), bare[1].frame())).reason
    noisy = timed(store, "n", 1.08, spread=0.05)
    noisy.rows = [r for r in noisy.rows if r["method"] == "toy.new"]
    noisy.aa(0.2)
    row = only(compare(a.frame(), noisy.frame()))
    assert (row.word, row.floor > 0.05) == ("inconclusive", True)


def test_cases_of_one_side_and_failed_or_discarded_runs_are_left_out(store: Any) -> None:
    a, b = timed(store, "a", 1.0), timed(store, "b", 1.3).times("toy.other", 2.0)
    assert [row.case.split("/")[0] for row in compare(a.frame(), b.frame())] == ["toy.new", "toy.plain"]
    for entry in b.rows:
        if entry["method"] == "toy.new" and entry["block"] in (0.0, 1.0):
            entry["discarded"] = "thermal"
    row = only(compare(a.frame(), b.frame()))
    assert (row.n, row.paired) == (8, False)
    assert compare(a.frame(), store().frame()) == []


def test_the_newest_file_of_a_side_speaks(store: Any) -> None:
    old, new = store("old", utc="2026-01-01").times("toy.new", 1.0).aa(), store("new", utc="2026-02-01")
    new.times("toy.new", 2.0).aa()
    row = only(compare(old.frame(), old.frame(new)))
    assert row.ratio == pytest.approx(2.0, rel=0.01)
    assert row.describe()["differences"] == []
