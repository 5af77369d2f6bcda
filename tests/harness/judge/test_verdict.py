"""Every verdict word through the whole path, from stored rows to the phrase that people read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from harness.judge import rules
from harness.judge.verdict import Verdict, judge

OTHER = "gaussian-128x128-float32-cpu"
PROBLEM = "gaussian-64x64-float32-cpu"


def one(claim: Any, *stores: Any, **more: Any) -> Verdict:
    verdicts = judge(claim, stores[0].frame(*stores[1:]), **more)
    assert len(verdicts) == 1
    assert verdicts[0].verdict in rules.WORDS
    return verdicts[0]


@pytest.mark.parametrize(
    ("ratio", "word"), [(1.6, "reproduced"), (1.2, "partly"), (1.0, "not reproduced"), (0.8, "not reproduced")]
)
def test_words_of_a_speedup(claim: Any, store: Any, ratio: float, word: str) -> None:
    found = one(claim(), store().pair(ratio))
    assert found.verdict == word
    assert found.ratio == pytest.approx(ratio, rel=0.01)
    assert found.low < found.ratio < found.high
    assert (found.n, found.claimed, found.device) == (10, 1.6, "Toy CPU")
    assert found.level == pytest.approx(0.951, abs=1e-3)
    assert ("reversed" in found.reason) == (ratio == 0.8)


def test_noise_hides_the_claim(claim: Any, store: Any) -> None:
    found = one(claim(), store().pair(1.6, aa=0.6))
    assert found.verdict == "inconclusive"
    assert "noise hides the claim" in found.reason
    assert found.floor > 0.26


def test_wide_interval_is_inconclusive_and_says_what_would_decide(claim: Any, store: Any) -> None:
    found = one(claim(), store().pair(1.4, spread=0.15))
    assert found.verdict == "inconclusive"
    assert "blocks would be needed" in found.reason


def test_fewer_than_six_blocks_are_inconclusive(claim: Any, store: Any) -> None:
    found = one(claim(), store().pair(1.6, blocks=5))
    assert (found.verdict, found.n) == ("inconclusive", 5)
    assert "too few blocks" in found.reason
    assert one(claim(), store().pair(1.6, blocks=6)).verdict == "reproduced"


def test_without_an_aa_arm_the_noise_is_unknown(claim: Any, store: Any) -> None:
    data = store().errors("toy.old", 0.1).errors("toy.new", 0.1).times("toy.old").times("toy.new", 1.6)
    found = one(claim(), data)
    assert (found.verdict, found.floor) == ("inconclusive", None)
    assert "A/A" in found.reason


def test_grid_is_a_geometric_mean_with_one_row_per_problem(claim: Any, store: Any) -> None:
    found = one(claim(), store().pair(1.2).pair(2.4, problem=OTHER))
    assert found.ratio == pytest.approx((1.2 * 2.4) ** 0.5, rel=0.01)
    assert [p["problem"] for p in found.problems] == [PROBLEM, OTHER]
    assert [p["ratio"] for p in found.problems] == [pytest.approx(1.2, rel=0.01), pytest.approx(2.4, rel=0.01)]
    assert all(p["floor"] >= 0.005 and p["baseline"] > p["candidate"] for p in found.problems)


def test_up_to_takes_the_best_cell_at_a_corrected_level(claim: Any, store: Any) -> None:
    up_to = claim(kind="speedup-up-to", ratio=2.4)
    found = one(up_to, store().pair(1.2).pair(2.4, problem=OTHER))
    assert (found.verdict, found.ratio) == ("reproduced", pytest.approx(2.4, rel=0.01))
    assert found.level >= 0.975
    assert f"best of 2 problems: {OTHER}" in found.reason
    six = one(up_to, store().pair(1.2, blocks=6).pair(2.4, problem=OTHER, blocks=6))
    assert six.verdict == "inconclusive"
    assert "7 are needed" in six.reason
    assert one(up_to, store().pair(1.2).pair(1.3, problem=OTHER)).verdict == "partly"


@pytest.mark.parametrize("status", ["inaccurate", "unfaithful", "nonfinite", "impure"])
def test_wrong_answer_on_any_hardware(claim: Any, store: Any, status: str) -> None:
    data = store(device="Other CPU").pair(1.6).status("toy.new", status, "over the gate", problem=OTHER)
    found = one(claim(), data)
    assert found.verdict == "not reproduced"
    assert found.phrase == "not reproduced (wrong answer)"
    assert status in found.reason


def test_a_newer_wrong_answer_outweighs_an_older_good_run(claim: Any, store: Any) -> None:
    old = store("old.jsonl", utc="2026-01-01").pair(1.6)
    new = store("new.jsonl", utc="2026-02-01").status("toy.new", "inaccurate", "over the gate")
    assert one(claim(), old, new).phrase == "not reproduced (wrong answer)"


@pytest.mark.parametrize("status", ["error", "unsupported", "timeout", "out_of_memory"])
def test_a_candidate_that_cannot_run_is_not_testable_with_its_reason(claim: Any, store: Any, status: str) -> None:
    data = store().errors("toy.old", 0.1).times("toy.old").aa().status("toy.new", status, "needs avx512", phase="plan")
    found = one(claim(), data)
    assert found.verdict == "not testable here"
    assert "needs avx512" in found.phrase


def test_a_baseline_that_cannot_run_is_not_testable(claim: Any, store: Any) -> None:
    data = (
        store()
        .errors("toy.new", 0.1)
        .times("toy.new")
        .status("toy.old", "unsupported", "needs package x", phase="plan")
    )
    found = one(claim(), data)
    assert (found.verdict, "needs package x" in found.reason) == ("not testable here", True)


def test_a_cell_without_a_number_is_listed_with_its_reason(claim: Any, store: Any) -> None:
    data = store().pair(1.6).errors("toy.old", 0.1, problem=OTHER).times("toy.old", problem=OTHER)
    data.status("toy.new", "out_of_memory", "40 GiB asked", problem=OTHER)
    found = one(claim(problems=[PROBLEM, OTHER, "gaussian-9x9-float32-cpu"]), data)
    assert found.verdict == "inconclusive"
    assert "only 1 of the claim's 3 problems measured; there: reproduced" in found.reason
    assert "2 of 3 problems without a number" in found.reason
    assert [p.get("reason") for p in found.problems] == [
        None,
        "toy.new is out_of_memory: 40 GiB asked",
        "not in this run",
    ]


def test_missing_need_is_named_when_nothing_ran(claim: Any, store: Any) -> None:
    cuda = claim(problems=["gaussian-*-cuda"], needs=["cuda"])
    plain = store().pair(1.6)
    found = one(cuda, plain)
    assert (found.verdict, found.device) == ("not testable here", "Toy CPU")
    assert found.reason.startswith("needs cuda; no stored run of toy.new")
    plain.status("toy.new", "unsupported", "needs CUDA: no NVIDIA device", phase="plan")
    assert one(cuda, plain).reason == "needs CUDA: no NVIDIA device"
    assert one(cuda, store()).device == ""


def test_error_margin_caps_a_faster_but_worse_method(claim: Any, store: Any) -> None:
    found = one(claim(), store().pair(1.6, error=1.3))
    assert found.verdict == "partly"
    assert "outside the error margin" in found.phrase
    assert "1.30" in found.reason
    assert one(claim(), store().pair(1.6, error=1.05)).verdict == "reproduced"
    assert one(claim(), store().pair(1.0, error=1.3)).verdict == "not reproduced"
    unknown = store().times("toy.old").times("toy.new", 1.6).aa()
    assert "error margin is unknown" in one(claim(), unknown).reason
    exact = store().errors("toy.old", 0.0).errors("toy.new", 0.1).times("toy.old").times("toy.new", 1.6).aa()
    found = one(claim(), exact)
    assert (found.verdict, "∞ times the baseline's" in found.reason) == ("partly", True)
    both = store().errors("toy.old", 0.0).errors("toy.new", 0.0).times("toy.old").times("toy.new", 1.6).aa()
    assert one(claim(), both).verdict == "reproduced"


@pytest.mark.parametrize(
    ("ratio", "phrase"),
    [(1.6, "holds on Other CPU"), (1.2, "partly holds on Other CPU"), (1.0, "does not carry over to Other CPU")],
)
def test_other_hardware_is_worded_fairly(claim: Any, store: Any, ratio: float, phrase: str) -> None:
    found = one(claim(), store(device="Other CPU").pair(ratio))
    assert found.phrase.startswith(phrase)
    assert "claimed on Toy CPU" in found.phrase
    strict = one(claim(hardware_free=True), store(device="Other CPU").pair(ratio))
    assert strict.verdict == found.verdict
    assert strict.phrase.startswith(strict.verdict)
    assert "not stated" in one(claim(hardware=None), store().pair(ratio)).phrase


def test_one_verdict_per_device(claim: Any, store: Any) -> None:
    fast, slow = store("a.jsonl", device="A").pair(1.6), store("b.jsonl", device="B").pair(1.0)
    found = judge(claim(), fast.frame(slow))
    assert [(v.device, v.verdict) for v in found] == [("A", "reproduced"), ("B", "not reproduced")]


def test_files_and_environments_never_mix(claim: Any, store: Any) -> None:
    base = store("a.jsonl", utc="2026-01-01").errors("toy.old", 0.1).times("toy.old").aa()
    new = store("b.jsonl", utc="2026-01-02").errors("toy.new", 0.1).times("toy.new", 1.6).aa()
    apart = one(claim(), base, new)
    assert apart.verdict == "not testable here"
    assert "not run together" in apart.reason
    two_threads = store("c.jsonl").pair(1.6)
    for row in two_threads.rows:
        row["threads"] = 2.0 if row["method"] == "toy.new" else 1.0
    assert one(claim(), two_threads).verdict == "not testable here"


def test_newest_file_wins_but_a_quick_tier_only_when_alone(claim: Any, store: Any) -> None:
    old = store("old.jsonl", utc="2026-01-01T00:00:00Z").pair(1.6)
    new = store("new.jsonl", utc="2026-03-01T00:00:00Z").pair(1.0)
    tiers = [{"file": "old.jsonl", "plan": {"tier": "standard"}}, {"file": "new.jsonl", "plan": {"tier": "quick"}}]
    assert one(claim(), old, new).file == "new.jsonl"
    assert one(claim(), old, new, headers=tiers).file == "old.jsonl"
    assert one(claim(), new, headers=tiers).file == "new.jsonl"


def test_six_blocks_are_preferred_to_a_newer_short_run(claim: Any, store: Any) -> None:
    old = store("old.jsonl", utc="2026-01-01").pair(1.6)
    new = store("new.jsonl", utc="2026-03-01").pair(1.6, blocks=3)
    assert one(claim(), old, new).file == "old.jsonl"


def test_discarded_blocks_leave_all_arms(claim: Any, store: Any) -> None:
    data = store().pair(1.6)
    for row in data.rows:
        if row["block"] == 3.0 and row["method"] == "toy.old":
            row["discarded"], row["value"] = "thermal", 900.0
    found = one(claim(), data)
    assert (found.n, found.verdict) == (9, "reproduced")


def test_several_clocks_in_one_ratio_are_invalid(claim: Any, store: Any) -> None:
    data = store().errors("toy.old", 0.1).errors("toy.new", 0.1).aa()
    data.times("toy.old", clock="op-cold").times("toy.new", 1.6, clock="op-hot")
    found = one(claim(), data)
    assert found.verdict == "invalid"
    assert "several clocks" in found.reason
    assert one(claim(clock="op-cold"), data).verdict == "not testable here"


def test_broken_times_are_invalid(claim: Any, store: Any) -> None:
    data = store().pair(1.6)
    data.rows[-30]["value"] = 0.0
    for row in data.rows:
        if row["method"] == "toy.new" and row["metric"] == "op_s":
            row["value"] = 0.0
    assert one(claim(), data).verdict == "invalid"


def test_metric_claim_reads_errors_of_methods_that_failed_the_gate(claim: Any, store: Any) -> None:
    better = claim(kind="metric-better", metric="error", ratio=None, error_metric=None)
    data = store()
    for problem in (PROBLEM, OTHER):
        data.errors("toy.old", 0.9, problem=problem, status="inaccurate")
        data.errors("toy.new", 0.6, problem=problem, status="inaccurate")
    found = one(better, data)
    assert (found.verdict, found.n, found.floor) == ("reproduced", 6, 0.005)
    assert found.ratio == pytest.approx(1.5, rel=0.01)
    single = store().errors("toy.old", 0.9, status="inaccurate").errors("toy.new", 0.6, status="inaccurate")
    assert one(better, single).verdict == "inconclusive"
    assert one(better, store().errors("toy.old", 0.9).status("toy.new", "nonfinite", "NaN")).phrase.endswith("answer)")


def test_metric_claim_pairs_gate_seeds_and_blocks(claim: Any, store: Any) -> None:
    better = claim(kind="metric-better", metric="error", ratio=2.0, error_metric=None)
    data = store().errors("toy.old", 0.4, blocks=6).errors("toy.new", 0.2, blocks=6)
    found = one(better, data)
    assert (found.n, found.verdict) == (9, "reproduced")
    assert (
        one(claim(kind="metric-better", metric="error", larger_is_better=True, ratio=None), data).verdict
        == "not reproduced"
    )


def test_metric_may_be_a_difference_of_two(claim: Any, store: Any) -> None:
    band = claim(kind="metric-better", metric="high - low", ratio=None, error_metric=None)
    data = store()
    for method, high, low in (("toy.old", 1.2, 0.7), ("toy.new", 1.1, 0.9)):
        data.errors(method, high, metric="high", blocks=4).errors(method, low, metric="low", blocks=4)
    found = one(band, data)
    assert found.verdict == "reproduced"
    assert found.ratio == pytest.approx(2.5, rel=0.05)


@pytest.mark.parametrize(
    ("error", "one_sided", "word"),
    [(1.02, False, "reproduced"), (0.8, True, "reproduced"), (1.2, True, "not reproduced")],
)
def test_on_par(claim: Any, store: Any, error: float, one_sided: bool, word: str) -> None:
    parity = claim(kind="on-par", metric="error", ratio=None, one_sided=one_sided, error_metric=None)
    found = one(parity, store().errors("toy.old", 0.1, blocks=6).errors("toy.new", 0.1 * error, blocks=6))
    assert (found.verdict, found.claimed) == (word, 1.0)


@pytest.mark.parametrize(("cost", "word"), [(1.0, "reproduced"), (1.2, "not reproduced")])
def test_at_most_reports_candidate_over_baseline(claim: Any, store: Any, cost: float, word: str) -> None:
    found = one(claim(kind="at-most", ratio=1.05), store().pair(1 / cost))
    assert (found.verdict, found.ratio) == (word, pytest.approx(cost, rel=0.01))
    assert found.problems[0]["ratio"] == pytest.approx(cost, rel=0.01)


def test_at_most_of_counted_memory_needs_one_value(claim: Any, store: Any) -> None:
    half = claim(kind="at-most", metric="peak_device_bytes", ratio=0.5, error_metric=None)
    data = store()
    for method, value in (("toy.old", 2000.0), ("toy.new", 1000.0)):
        data.row(method=method, problem=PROBLEM, phase="memory", status="passed", metric="peak_device_bytes",
                 unit="bytes", value=value)  # fmt: skip
    found = one(half, data)
    assert (found.verdict, found.ratio, found.n) == ("reproduced", pytest.approx(0.5), 1)
    host = claim(kind="at-most", metric="peak_host_bytes", ratio=0.5, error_metric=None)
    for row in data.rows:
        row["metric"] = "peak_host_bytes"
    assert one(host, data).verdict == "inconclusive"


def test_absolute_at_most_reads_the_worst_problem(claim: Any, store: Any) -> None:
    limit = claim(kind="at-most", metric="error", baseline=None, ratio=0.2, error_metric=None)
    data = store().errors("toy.new", 0.1, blocks=6).errors("toy.new", 0.19, problem=OTHER, blocks=6)
    assert one(limit, data).verdict == "reproduced"
    assert (
        one(limit, data.errors("toy.new", 0.3, problem="gaussian-8x8-float32-cpu", blocks=6)).verdict
        == "not reproduced"
    )


@pytest.mark.parametrize(("exponent", "word"), [(2.0, "reproduced"), (3.0, "not reproduced")])
def test_growth_is_read_above_the_launch_knee(claim: Any, store: Any, exponent: float, word: str) -> None:
    growth = claim(kind="growth", ratio=2.0, baseline=None, error_metric=None)
    data = store()
    for n in (16, 32, 64, 128, 256, 512):
        seconds = max(1.0, (n / 64) ** exponent)
        data.times("toy.new", 1 / seconds, problem=f"gaussian-{n}x{n}-float32-cpu")
    found = one(growth, data)
    assert (found.verdict, found.ratio) == (word, pytest.approx(exponent, abs=0.02))
    assert len(found.problems) == 3
    short = store().times("toy.new").times("toy.new", 0.1, problem=OTHER)
    assert "slope needs three" in one(growth, short).reason


@pytest.mark.parametrize(("clock", "word"), [("host", "reproduced"), ("op", "inconclusive")])
def test_what_hardly_grows_is_judged_where_no_launch_could_hide_it(
    claim: Any, store: Any, clock: str, word: str
) -> None:
    flat = claim(kind="growth", ratio=0.2, tolerance=0.0, baseline=None, error_metric=None, clock=clock)
    rows = {"host": "host", "op": "op-cold"}[clock]
    data = store()
    for n in (16, 32, 64, 128):
        data.times("toy.new", n**-0.1, problem=f"gaussian-{n}x{n}-float32-cpu", clock=rows)
    found = one(flat, data)
    assert found.verdict == word
    if clock == "host":
        assert found.ratio == pytest.approx(0.1, abs=0.01)
        assert len(found.problems) == 4
    else:
        assert "slope needs three" in found.reason


def training(claim: Any, **fields: Any) -> Any:
    defaults = {"workload": "toy-train", "problems": [], "metric": "time_to_target_s", "error_metric": None}
    return claim(**{**defaults, **fields})


def wobbling(centre: float, missed: int = 0) -> list[float | None]:
    return [None if seed < missed else centre * (1 + 0.004 * (seed - 5)) for seed in range(10)]


def test_training_ratio_with_a_censored_baseline(claim: Any, store: Any) -> None:
    data = store().trained("toy.old", wobbling(80, missed=3)).trained("toy.new", wobbling(40))
    data.trained("toy.plain", wobbling(90)).trained("toy.plain", wobbling(90.2), arm="toy.plain#aa")
    found = one(training(claim), data)
    assert (found.verdict, found.n) == ("reproduced", 10)
    assert found.high is None
    assert "toy.old hits 7 of 10" in found.reason
    data = store().trained("toy.old", wobbling(80)).trained("toy.new", wobbling(40, missed=5))
    data.trained("toy.plain", wobbling(90)).trained("toy.plain", wobbling(90.2), arm="toy.plain#aa")
    assert one(training(claim), data).verdict == "inconclusive"


def test_training_needs_six_seeds_an_aa_arm_and_a_budget(claim: Any, store: Any) -> None:
    few = store().trained("toy.old", wobbling(80)[:5]).trained("toy.new", wobbling(40)[:5])
    assert "too few seeds: 5" in one(training(claim), few).reason
    ten = store().trained("toy.old", wobbling(80)).trained("toy.new", wobbling(40))
    assert "A/A" in one(training(claim), ten).reason
    ten.rows[0].update(status="budget_exhausted", reason="missed", metric=None, value=None)
    found = one(training(claim), ten)
    assert (found.verdict, "budget" in found.reason) == ("invalid", True)
    assert one(training(claim), store().trained("toy.old", wobbling(80))).verdict == "not testable here"


def test_only_reaches(claim: Any, store: Any) -> None:
    only = training(claim, kind="only-reaches", baseline=None, ratio=None)
    alone = store().trained("toy.new", wobbling(40)).trained("toy.old", wobbling(80, missed=9), detail={"trials": 7})
    found = one(only, alone)
    assert (found.verdict, "holds within 7 trials" in found.reason) == ("reproduced", True)
    beaten = one(only, alone.trained("toy.other", wobbling(90, missed=2)))
    assert beaten.verdict == "not reproduced"
    assert "refuted: toy.other" in beaten.reason


def test_often_counts_events_and_a_failure_is_data(claim: Any, store: Any) -> None:
    often = training(claim, kind="often", baseline=None, ratio=None)
    assert one(often, store().trained("toy.new", wobbling(40))).verdict == "reproduced"
    assert one(often, store().trained("toy.new", wobbling(40, missed=10))).verdict == "not reproduced"
    wrong = claim(kind="often", metric="error", baseline=None, ratio=None, error_metric=None, events=["nonfinite"])
    data = store()
    for n in range(2, 10):
        data.status("toy.new", "nonfinite", "NaN", problem=f"gaussian-{n}x{n}-float32-cpu")
    assert one(wrong, data).verdict == "reproduced"


def test_exists_is_judged_by_dated_evidence(claim: Any, store: Any) -> None:
    def seen(*finds: tuple[str, bool]) -> Verdict:
        evidence = [{"date": d, "found": f, "what": "the repository", "source": "its address"} for d, f in finds]
        return one(claim(kind="exists", evidence=evidence, error_metric=None, ratio=None), store())

    assert seen(("2026-01-01", True)).verdict == "reproduced"
    assert seen(("2026-01-01", False)).verdict == "not reproduced"
    gone = seen(("2026-01-01", True), ("2026-02-01", False))
    assert (gone.verdict, "2026-02-01" in gone.reason) == ("partly", True)
    assert gone.device == "any"


@pytest.mark.parametrize(
    ("value_s", "author", "likeness"),
    [
        (1.05, "re-implementation of the published design", "like for like"),
        (1.30, "re-implementation of the published design", "own implementation"),
        (1.30, "library", "library"),
    ],
)
def test_likeness_to_the_published_code(claim: Any, store: Any, value_s: float, author: str, likeness: str) -> None:
    anchor = {
        "device": "toy",
        "problem": "anchor-8x8-float32-cpu",
        "method": "toy.new",
        "value_s": value_s,
        "source": "us",
    }
    data = store().pair(1.6).times("toy.new", 1.0, problem="anchor-8x8-float32-cpu")
    found = one(claim(anchors=[anchor], candidate_author=author, baseline_author="library"), data)
    assert found.likeness == likeness
    assert found.authors == {"candidate": author, "baseline": "library"}
    elsewhere = one(claim(anchors=[{**anchor, "device": "H100"}], candidate_author=author), data)
    assert elsewhere.likeness == "unknown"


def test_a_verdict_is_plain_json_with_the_contract_keys(claim: Any, store: Callable[..., Any]) -> None:
    found = one(claim(), store().pair(1.6), program="python -m harness")
    plain = json.loads(json.dumps(found.describe(), allow_nan=False))
    contract = ("id", "verdict", "claimed", "ratio", "low", "high", "floor", "device", "reason", "command")
    assert set(contract) <= set(plain)
    assert plain["command"].startswith("python -m harness run --suite toy")
