"""Pages of K-FAC: where the time goes, break-even widths, modes against width, from records made here."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pandas as pd
import pytest

from harness.judge.trained_runs import Trained
from reports import break_even_width, html, kfac_spectrum, time_parts, training

DEVICE = "Toy GPU"
WIDTHS = (256, 512, 1024, 2048)


def header(file, task, methods, problems, **plan):
    suite = {"name": task, "task": task, "baseline": methods[0], "problems": problems, "methods": methods,
             "task_errors": {"solve_error": "error"}, "primary_error": "solve_error"}  # fmt: skip
    return {
        "record": "header", "file": file, "utc": "2026-01-01T00:00:00", "complete": True,
        "environment": {"device": "cuda", "device_name": DEVICE, "cpu": "Toy CPU", "gpu": {"name": DEVICE}},
        "plan": {"tier": "standard", "suites": [suite], "workloads": [], **plan},
        "methods": [{"name": name, "task": task, "summary": name, "source": "here"} for name in methods],
    }  # fmt: skip


def problem(kind, shape):
    text = "x".join(map(str, shape))
    return {"id": f"{kind}-{text}-float32-cuda", "kind": kind, "shape": list(shape), "dtype": "float32",
            "device": "cuda", "params": {}}  # fmt: skip


def frame(rows):
    base = {"device": DEVICE, "device_kind": "cuda", "status": "passed", "reason": None, "workload": None,
            "seed": None, "block": None, "unit": "1", "clock": None, "samples": None, "discarded": None,
            "utc": "2026-01-01", "threads": 1, "commit": "c", "protocol": 2, "precision": "ieee",
            "detail": {}, "metric": None, "value": math.nan}  # fmt: skip
    return pd.DataFrame([{**base, **row} for row in rows])


def timed(times):
    """Six noiseless blocks of every method and width; ``times`` is method -> function of the width."""
    rows = []
    for method, seconds in times.items():
        for width in WIDTHS:
            own = {"task": "preconditioning", "method": f"preconditioning.{method}", "file": "a.jsonl",
                   "problem": f"refresh-256x{width}-float32-cuda"}  # fmt: skip
            name = f"preconditioning.{method}"
            rows.append({**own, "run": f"g{method}{width}", "phase": "gate", "arm": name, "metric": "solve_error",
                         "value": 1e-4, "samples": [1e-4], "case": f"{name}/{own['problem']}"})  # fmt: skip
            arms = [name, f"{name}#aa"] if method == "cholesky" else [name]
            for block in range(6):
                rows += [
                    {**own, "run": f"{arm}{width}{block}", "phase": "block", "arm": arm, "block": block, "unit": "s",
                     "metric": "op_s", "clock": "op-cold", "value": seconds(width), "samples": [seconds(width)],
                     "case": f"{name}/{own['problem']}"}
                    for arm in arms
                ]  # fmt: skip
    names = [f"preconditioning.{method}" for method in times]
    return frame(rows), [header("a.jsonl", "preconditioning", names, [problem("refresh", (256, w)) for w in WIDTHS])]


@pytest.fixture
def refreshes():
    return timed(
        {
            "cholesky": lambda w: 1e-3 * (w / 1000) ** 3,
            "rsvd": lambda w: 2e-3 * (w / 1000) ** 2,
            "eigh": lambda w: 1e-2 * (w / 1000) ** 3,
            "brand": lambda w: 3e-3 * (w / 1000),
        }
    )


def test_break_even_widths_are_interpolated_where_lines_cross(refreshes):
    runs, headers = refreshes
    (page,) = break_even_width.pages(runs, headers)
    assert page.device == DEVICE
    growth, pairs = page.tables
    table = {label: dict(zip(pairs.columns, cells, strict=True)) for label, cells in pairs.rows}
    # 1e-3 x^3 = 2e-3 x^2 at x = 2: between the last two widths.
    assert table["cholesky"]["rsvd"].sort == pytest.approx(2000, rel=1e-6)
    assert table["cholesky"]["rsvd"].text == "from about 2,000"
    # The same crossing seen from the other side: at the three smaller widths Cholesky takes less time.
    assert table["rsvd"]["cholesky"].text == "only up to about 2,000"
    assert table["rsvd"]["eigh"].text == "never up to 2048"
    # 1e-2 x^3 = 2e-3 x^2 at x = 0.2: below the first width.
    assert table["eigh"]["rsvd"].text == "from 256 or less"
    assert table["cholesky"]["eigh"].tone == "bad"
    local = {label: [cell.sub for cell in cells[1:4]] for label, cells in growth.rows}
    assert local["rsvd"] == [("exponent 2.00",)] * 3
    assert local["brand"] == [("exponent 1.00",)] * 3
    assert "None is above" in page.lead
    assert "from about 2,000" in page.lead
    (_, _, (chart,)) = page.sections[0]
    assert chart.svg.startswith("<svg")
    assert len(chart.rows) == 16


def test_growth_above_the_claim_is_said(refreshes):
    runs, headers = timed({"cholesky": lambda w: 1e-9 * w**3, "rsvd": lambda w: 1e-12 * w**3})
    (page,) = break_even_width.pages(runs, headers)
    assert "Above the claimed exponent: rsvd." in page.lead


def test_one_width_or_no_record_makes_no_page(refreshes):
    runs, headers = refreshes
    assert break_even_width.pages(runs[runs["problem"].str.contains("x256-")], headers) == []
    assert break_even_width.pages(runs.iloc[:0], headers) == []


def spectra(exponent):
    rows = []
    for width in WIDTHS:
        name = f"digits_cnn_r95-{width}-float32-cuda"
        detail = {"path": [[20, 2, 5], [200, 4, 9]], "spectrum_a": [[1, 1.0], [3, 0.1], [10, 0.01]],
                  "spectrum_g": [[1, 1.0], [9, 0.5]]}  # fmt: skip
        for metric, value in (("modes_a", 4.0), ("modes_g", (width / 256) ** exponent * 8)):
            rows.append({"run": name, "phase": "gate", "task": "spectrum", "method": "spectrum.factors",
                         "arm": "spectrum.factors", "problem": name, "file": "s.jsonl", "metric": metric,
                         "value": value, "detail": detail, "case": f"spectrum.factors/{name}"})  # fmt: skip
    problems = [problem("digits_cnn_r95", (w,)) for w in WIDTHS]
    return frame(rows), [header("s.jsonl", "spectrum", ["spectrum.factors"], problems)]


@pytest.mark.parametrize(("exponent", "flat"), [(0.0, 2), (0.5, 1)])
def test_modes_that_grow_with_width_are_said_to(exponent, flat):
    (page,) = kfac_spectrum.pages(*spectra(exponent))
    assert f"In {flat} of 2 series" in page.lead
    assert f"exponent is {exponent:.2f}" in page.lead
    (table,) = page.tables
    rows = dict(table.rows)
    cells = rows["factor of output gradients, decay 0.95"]
    assert cells[0].sub == ("5 → 9",)
    assert cells[-1].sort == pytest.approx(exponent, abs=1e-9)
    assert cells[-1].tone == ("good" if exponent <= 0.25 else "bad")
    drawn = [chart for _, _, charts in page.sections for chart in charts]
    assert len(drawn) == 4
    assert "at or before index 10" in drawn[2].sentence
    assert "never falls" in drawn[3].sentence


def test_without_widths_nothing_is_concluded():
    runs, headers = spectra(0.0)
    (page,) = kfac_spectrum.pages(runs[runs["problem"].str.contains("-256-")], headers)
    assert "cannot be told" in page.lead


def test_parts_of_an_update_add_up_to_it():
    metrics = {"steps": 10.0, "bucket_data_s": 0.1, "bucket_forward_s": 0.2, "bucket_backward_s": 0.5,
               "bucket_optimizer_s": 0.4, "bucket_optimizer_factor_s": 0.3, "bucket_optimizer_refresh_s": 0.1,
               "bucket_optimizer_apply_s": 0.15, "bucket_optimizer_sketch_s": 0.05,
               "bucket_optimizer_communication_s": 0.2}  # fmt: skip  # inside factor and apply
    run = Trained(file="f", device="d", workload="w", method="m", arm="m", seed=0, status="passed", metrics=metrics)
    found = time_parts.split(run)
    assert list(found) == ["factor", "refresh", "apply", "sketch", time_parts.REST]
    assert sum(found.values()) == pytest.approx(0.12)
    assert found[time_parts.REST] == pytest.approx(0.06)
    assert (
        time_parts.split(Trained(file="f", device="d", workload="w", method="m", arm="m", seed=0, status="x")) is None
    )


def test_every_page_is_in_the_report_and_the_spectrum_is_no_timed_task(refreshes, tmp_path):
    (first, one), (second, two) = refreshes, spectra(0.5)
    html.render(pd.concat([first, second], ignore_index=True), [*one, *two], [], tmp_path)
    names = {path.name for path in tmp_path.glob("*.html")}
    assert {name.split("--")[0] for name in names} >= {"spectrum", "break-even-width"}
    assert not any(name.startswith("task--spectrum") for name in names)
    text = next(tmp_path.glob("break-even-width--*.html")).read_text(encoding="utf-8")
    assert "speedclaim run --suite preconditioning" in text
    assert "from about 2,000" in text


def counting(**counters):
    detail = {"counters": counters} if counters else {}
    return Trained(file="f", device="d", workload="w", method="m", arm="m", seed=0, status="x", detail=detail)


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([counting(kept=1, skipped_batches=0), counting(kept=2)], ["counted in 2 runs: kept 3"]),
        ([counting(kept=0)], ["counted in 1 run: no failure"]),
        ([counting()], []),
    ],
)
def test_what_optimizers_counted_is_told_over_all_runs(runs, said):
    place = SimpleNamespace(arms={"m": dict(enumerate(runs))})
    assert training._counted(place, "m") == said
