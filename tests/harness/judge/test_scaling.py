"""Efficiency, state ratios and verdicts of scaling, on records with known answers."""

import pandas as pd
import pytest

from harness.judge import scaling

KFAC, FOP, SGD = "training.kfac-cholesky", "training.fop", "training.sgd"


def run(
    name, method, world, per_rank, modes, step, *, sharding="none", state=100.0, share=0.0, status="budget_exhausted"
):
    device = "H200" if world == 1 else f"{world} x H200"
    common = {
        "run": name, "phase": "training", "method": method, "workload": "net", "device": device, "status": status,
        "reason": "no target", "detail": {"scaling": {"modes": modes, "world": world, "per_rank": per_rank,
                                                       "sharding": sharding}},
    }  # fmt: skip
    metrics = {"step_s": [9.0, step, step], "peak_device_bytes": [500.0]}
    if world == 1:
        metrics["optimizer_state_bytes"] = [state]
    else:
        metrics |= {"rank_optimizer_state_bytes": [state, state / 2], "communication_share": [share],
                    "rank_peak_device_bytes": [400.0, 600.0]}  # fmt: skip
    if status == "error":
        metrics = {"steps": [0.0]}
    return [{**common, "metric": metric, "samples": samples} for metric, samples in metrics.items()]


def table(*runs):
    return scaling.rows(scaling.cells(pd.DataFrame([row for one in runs for row in one])))


def test_efficiency_is_against_one_process_of_the_same_mode():
    both = ["weak", "strong"]
    rows = table(
        run("a", SGD, 1, 64, both, 1.0),
        run("b", SGD, 2, 64, ["weak"], 1.25, share=0.1),
        run("c", SGD, 2, 32, ["strong"], 0.625),
    )
    found = {(row.key.mode, row.key.world): row for row in rows}
    assert found["weak", 2].efficiency == pytest.approx(0.8)
    assert found["strong", 2].efficiency == pytest.approx(0.8)
    assert found["weak", 1].efficiency == pytest.approx(1.0)
    assert found["weak", 2].rate == pytest.approx(128 / 1.25)
    assert found["weak", 2].share == 0.1
    assert found["weak", 2].peak == 600.0, "the process that needs most"
    assert {row.key.device for row in rows} == {"H200"}


def test_state_of_owned_layers_is_over_that_of_one_process():
    rows = table(run("a", KFAC, 1, 64, ["weak"], 1.0, state=100.0),
                 run("b", KFAC, 4, 64, ["weak"], 1.0, sharding="owner", state=30.0))  # fmt: skip
    shared = next(row for row in rows if row.key.sharding == "owner")
    assert shared.state_ratio == pytest.approx(0.3)
    assert shared.key.label == "kfac-cholesky, layers owned"


@pytest.mark.parametrize(("state", "verdict"), [(33.0, "reproduced"), (34.0, "not reproduced")])
def test_a_third_of_the_state_is_judged_on_four_processes(state, verdict):
    rows = table(run("a", KFAC, 1, 64, ["weak"], 1.0, state=100.0),
                 run("b", KFAC, 2, 64, ["weak"], 1.0, sharding="owner", state=50.0),
                 run("c", KFAC, 4, 64, ["weak"], 1.0, sharding="owner", state=state))  # fmt: skip
    (found,) = [one for one in scaling.findings(rows) if "third" in one.claim]
    assert (found.subject, found.verdict) == ("kfac-cholesky, layers owned", verdict)


def test_the_layout_is_the_run_s_own_where_the_invocation_has_several():
    runs = run("a", KFAC, 2, 64, ["weak"], 1.0, sharding="owner")
    for row in runs:
        row["detail"]["scaling"].pop("sharding", None)
        row["detail"]["hyper"] = {"sharding": "owner"}
    (found,) = table(runs)
    assert found.key.sharding == "owner"
    alone = run("b", KFAC, 1, 64, ["weak"], 1.0)
    for row in alone:
        row["detail"]["scaling"].pop("sharding", None)
        row["detail"]["hyper"] = {"sharding": "owner"}
    (found,) = table(alone)
    assert found.key.sharding == "none", "one process has every layer"


@pytest.mark.parametrize(
    ("steps", "verdict"),
    [
        ((1.01, 1.05, 1.1), "reproduced"),
        ((1.2, 1.3, 1.4), "not reproduced"),
        ((1.05, 1.1, 1.2), "inconclusive"),
        ((1.01, 1.02), "inconclusive"),
    ],
)
def test_near_linear_needs_three_repeats_on_one_side(steps, verdict):
    runs = [run(f"a{i}", SGD, 1, 64, ["weak"], 1.0) for i in range(len(steps))]
    runs += [run(f"b{i}", SGD, 2, 64, ["weak"], step) for i, step in enumerate(steps)]
    (found,) = scaling.findings(table(*runs))
    assert (found.claim, found.verdict) == ("near-linear", verdict)
    assert f"n = {len(steps)}" in found.reason


@pytest.mark.parametrize(("state", "verdict"), [(110.0, "reproduced"), (150.0, "not reproduced")])
def test_memory_like_kfac_is_judged_on_bytes(state, verdict):
    rows = table(run("a", KFAC, 2, 64, ["weak"], 1.0, state=100.0), run("b", FOP, 2, 64, ["weak"], 1.0, state=state))
    found = [one for one in scaling.findings(rows) if one.claim.startswith("memory")]
    assert [one.verdict for one in found] == [verdict]


def test_a_failed_point_keeps_its_reason():
    (row,) = table(run("a", SGD, 2, 64, ["weak"], 1.0, status="error"))
    assert row.step_s is None
    assert row.reason == "no target"
    assert scaling.findings([row]) == []
