"""The page of scaling: one per device, its numbers those of the judge, and no training page for the same runs."""

import pandas as pd

from reports import scaling


def frame():
    rows = []
    for world, step in ((1, 1.0), (2, 1.1), (4, 1.3)):
        note = {"modes": ["weak", "strong"] if world == 1 else ["weak"], "world": world, "per_rank": 64}
        device = "H200" if world == 1 else f"{world} x H200"
        common = {"run": f"r{world}", "phase": "training", "method": "training.sgd", "workload": "net",
                  "status": "budget_exhausted", "device": device, "reason": "-",
                  "detail": {"scaling": note}}  # fmt: skip
        rows += [
            {**common, "metric": metric, "samples": samples}
            for metric, samples in {"step_s": [5.0, step], "communication_share": [0.05],
                                    "optimizer_state_bytes": [1024.0]}.items()
        ]  # fmt: skip
    other = {**rows[0], "run": "x", "detail": {}}
    return pd.DataFrame([*rows, other])


def test_page_tells_efficiency_and_verdicts():
    (page,) = scaling.pages(frame(), [])
    assert page.title == "Scaling on H200"
    assert "up to 4 processes" in page.lead
    assert "0.77" in page.lead
    verdicts, strong, weak = page.after
    assert [cell.text for cell in verdicts.rows[0][1]][:2] == ["near-linear", "inconclusive"]
    assert strong.heading == "Strong scaling of net"
    assert [row[1][4].text for row in weak.rows] == ["1.000", "0.909", "0.769"]
    ((_, _, charts),) = page.sections
    assert len(charts) == 1, "strong scaling on one process alone is no curve"
    assert charts[0].svg.startswith("<svg")
    assert charts[0].rows[-1] == {"method": "sgd", "processes": 4, "efficiency": 1 / 1.3}


def test_only_scaling_runs_are_taken():
    assert scaling.mine(frame()).tolist() == [True] * 9 + [False]
    assert scaling.pages(frame().tail(1), []) == []
    assert scaling.pages(pd.DataFrame(), []) == []
