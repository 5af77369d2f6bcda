"""The ledger of K-FAC claims: growth, and times to further levels of a target."""

import pandas as pd
import pytest

from harness.catalogue import registry
from harness.judge.claim import load_claims
from harness.judge.trained_runs import Trained
from harness.judge.verdict import judge

LEDGER = [claim for claim in load_claims() if claim.file.endswith("kfac.toml")]
GROWTH = [claim for claim in LEDGER if claim.kind == "growth"]
LEVELS = [claim for claim in LEDGER if "_to_target_0" in claim.metric]


def grown(claim, exponent):
    """Ten blocks, or seeds of the gate, whose value grows with the width to an exponent."""
    device = "cuda" if "cuda" in claim.needs else "cpu"
    shared = {"file": "x.jsonl", "device": "Toy", "utc": "2026-01-01", "status": "passed", "method": claim.candidate}
    rows = []
    for width in (512, 1024, 2048, 4096):
        problem = f"refresh-256x{width}-float32-{device}" if claim.timed else claim.problems[0].replace("*", str(width))
        for block in range(10):
            value = (width / 512) ** exponent * (1 + 1e-4 * block)
            value = 0.01 * value if claim.timed else value
            clock = {"op": "op-cold", "host": "host"}.get(str(claim.clock)) if claim.timed else None
            rows.append({**shared, "arm": claim.candidate, "problem": problem, "metric": claim.metric, "clock": clock,
                         "phase": "block", "block": block, "value": value})  # fmt: skip
            assert problem.endswith(device)
    return pd.DataFrame(rows)


def test_every_named_claim_has_rows_and_the_headline_is_told_three_ways():
    groups = {claim.id.split(".")[1] for claim in LEDGER}
    assert {f"rk{n}" for n in range(1, 8)} | {"bk1", "bk2", "wa1", "se1", "growth", "spectrum"} <= groups
    for part in ("epoch", "target"):
        ways = {c.id.rsplit(".", 1)[1]: c for c in LEDGER if c.id.startswith(f"kfac.rk1.{part}.")}
        assert {(c.workload, c.baseline) for c in ways.values()} == {
            ("cifar10-vgg16bn-paper", "training.kfac-eigh"),
            ("cifar10-vgg16bn", "training.kfac-eigh"),
            ("cifar10-vgg16bn", "training.kfac-cholesky"),
        }
        assert [c.counter for c in ways.values()] == [False, True, True]


def test_an_objection_is_confirmed_by_its_own_row():
    """The candidate is what the objection says is faster, so that "reproduced" means that the objection holds."""
    objections = [claim for claim in LEDGER if claim.words.startswith("Objection")]
    assert len(objections) == 2
    assert {claim.candidate for claim in objections} == {"preconditioning.cholesky"}
    assert not [claim.id for claim in objections if "should fail" in claim.words]


@pytest.mark.parametrize("claim", GROWTH, ids=lambda claim: claim.id)
def test_growth_can_come_out_either_way(claim):
    (verdict,) = judge(claim, grown(claim, claim.ratio))
    assert verdict.verdict == "reproduced", verdict.reason
    (verdict,) = judge(claim, grown(claim, claim.ratio + 0.6))
    assert verdict.verdict == "not reproduced"


@pytest.mark.parametrize("claim", LEVELS, ids=lambda claim: claim.id)
def test_further_levels_are_recorded_by_the_workload(claim):
    target = registry.workload(claim.workload).target
    level = float(claim.metric.split("_to_target_")[1].removesuffix("_s"))
    assert level in (target.value, *target.others)
    assert claim.timed == claim.metric.startswith("time")


def run(status, crossings=(), **metrics):
    detail = {
        "crossings": [{"level": a, "time_s": t, "steps": 10 * t, "samples": 100 * t} for a, t in crossings],
        "censored_at": {"time_to_target_s": 50.0, "steps_to_target": 500.0} if status != "target_reached" else None,
    }
    return Trained(
        file="f", device="d", workload="w", method="m", arm="m", seed=0, status=status, metrics=metrics, detail=detail
    )


def test_a_level_counts_where_it_was_crossed_and_is_censored_where_it_was_not():
    missed = run("budget_exhausted", [(0.91, 20.0)])
    assert missed.hit("time_to_target_0.91_s").value == 20.0
    assert missed.hit("steps_to_target_0.91").value == 200.0
    later = missed.hit("time_to_target_0.915_s")
    assert (later.value, later.budget) == (None, 50.0)
    assert missed.hit("steps_to_target_0.915").budget == 500.0
    ended = run("target_reached", [(0.92, 30.0), (0.91, 20.0)], elapsed_s=31.0, steps=310.0)
    assert ended.hit("time_to_target_0.91_s").value == 20.0
    assert ended.hit("time_to_target_0.93_s").budget == 31.0
    assert ended.hit("steps_to_target_0.93").budget == 310.0
    with pytest.raises(ValueError, match="not recorded"):
        run("target_reached", [(0.92, 30.0)]).hit("time_to_target_0.93_s")
