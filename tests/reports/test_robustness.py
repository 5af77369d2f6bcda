"""The pages of robustness and memory: on written records, with failures, gaps and hostile names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.catalogue.method import Method
from harness.record.store import read_headers, read_runs
from reports import html, memory, robustness
from suites import robustness as robust_suite
from suites import state_memory as memory_suite
from suites.recorded import recording

BAD = "own failure <script>alert(1)</script>"


def method(name: str) -> Method:
    return Method(name=f"training.{name}", impl="a:b", summary="s", source="s")


@pytest.fixture
def robust(tmp_path: Path) -> Path:
    """K-FAC fails with half factors from a condition of 1e6 on; SINGD at jumps, in float64 too."""
    suite = robust_suite.SUITE
    problems = suite.tier("standard", ("cpu",))
    methods = [method("kfac-cholesky"), method("singd-dense")]
    with recording(suite, problems, methods, tmp_path / "r", "standard", "cpu") as recorder:
        for problem in problems:
            power, half = problem.params["condition"], problem.kind.endswith("+half")
            kfac = {"update_error": (10.0 ** (power - 9), "1"), "growth": (2.0, "1"), "rung_damping": (7.0, "1")}
            if half and power >= 6:
                failed = {**kfac, "failed_factorisations": (7.0, "1")}
                recorder.run("gate", "training.kfac-cholesky", problem, "inaccurate", BAD, failed)
            else:
                recorder.run("gate", "training.kfac-cholesky", problem, "passed", None, kfac)
            if "jump" in problem.kind:
                why = "update 3 is not finite (not finite in float64 either: the recursion's own instability)"
                recorder.run("gate", "training.singd-dense", problem, "nonfinite", why, {"growth": (1e30, "1")})
            elif "rank" not in problem.kind:
                recorder.run("gate", "training.singd-dense", problem, "passed", None, {"update_error": (0.1, "1")})
    return tmp_path / "r"


@pytest.fixture
def bytes_(tmp_path: Path) -> Path:
    suite = memory_suite.SUITE
    problems = [p for p in suite.problems if p.device == "cuda" and p.kind in ("vgg16_bn", "resnet50")]
    names = ("adamw", "kfac-cholesky", "singd-diagonal")
    with recording(suite, problems, [method(name) for name in names], tmp_path / "m", "standard", "cpu") as recorder:
        for problem in problems:
            for name, times in zip(names, (2.0, 18.0, 1.05), strict=True):
                if problem.dtype != "float32" and name != "singd-diagonal":
                    continue
                if problem.kind == "resnet50" and name == "kfac-cholesky":
                    recorder.run("memory", f"training.{name}", problem, "out_of_memory", "too large", {})
                    continue
                state = {"optimizer_state_bytes": (1e6 * times, "bytes"), "formula_bytes": (1e6 * times, "bytes")}
                state |= {"peak_device_bytes": (1e7 + 1e6 * times, "bytes"), "parameter_bytes": (1e6, "bytes")}
                recorder.run("memory", f"training.{name}", problem, "passed", None, state)
    return tmp_path / "m"


def test_the_summary_counts_stable_streams_by_setting(robust: Path) -> None:
    (page,) = robustness.pages(read_runs(robust), read_headers(robust))
    (summary,) = page.tables
    assert summary.columns == [
        *("float32", "bfloat16, factors in float32", "bfloat16, factors in bfloat16"),
        *("float16, factors in float32", "float16, factors in float16"),
    ]
    rows = {name: [cell.text for cell in cells] for name, cells in summary.rows}
    count = len(robust_suite.STREAMS)
    lost = sum(params["condition"] >= 6 for params in robust_suite.STREAMS.values())
    assert rows["kfac-cholesky"] == [f"{count} of {count}"] * 2 + [f"{count - lost} of {count}", f"{count} of {count}",
                                                                  f"{count - lost} of {count}"]  # fmt: skip
    jumps = sum("jump" in name for name in robust_suite.STREAMS)
    assert rows["singd-dense"][0] == f"{count - 1 - jumps} of {count - 1}"
    assert dict(summary.rows)["singd-dense"][0].sub == (f"{jumps} also in float64",)
    assert f"kfac-cholesky with bfloat16 factors is stable in {count - lost} of {count} streams" in page.lead


def test_cells_tell_number_growth_and_rung(robust: Path) -> None:
    (page,) = robustness.pages(read_runs(robust), read_headers(robust))
    half = next(table for table in page.after if table.heading == "bfloat16, factors in bfloat16")
    cells = dict(zip(half.columns, dict(half.rows)["kfac-cholesky"], strict=True))
    assert (cells["condition 1e4"].text, cells["condition 1e4"].tone) == ("✓ 1e-05", "good")
    assert cells["condition 1e8"].text == "✗ 0.1"
    assert cells["condition 1e8"].sub == ("grows 2×", "7 failed: more damping")
    assert cells["condition 1e8"].title == BAD
    other = dict(zip(half.columns, dict(half.rows)["singd-dense"], strict=True))
    assert other["A jumps × 1e4"].text == "✗ not finite"
    assert "in float64 too" in other["A jumps × 1e4"].sub
    assert other["a quarter of the rank"].text == "—"


def test_the_figure_reads_where_failures_begin(robust: Path) -> None:
    (page,) = robustness.pages(read_runs(robust), read_headers(robust))
    ((_, _, charts),) = page.sections
    assert len(charts) == 2
    assert charts[0].sentence == "kfac-cholesky fails from 1e6 on; singd-dense holds throughout."
    assert "1e12" in charts[0].svg
    assert "mathdefault" not in charts[0].svg
    assert {row["method"] for row in charts[0].rows} == {"kfac-cholesky", "singd-dense"}


def test_the_memory_page_relates_bytes_to_weights_and_adamw(bytes_: Path) -> None:
    (page,) = memory.pages(read_runs(bytes_), read_headers(bytes_))
    assert "Of 9 measured states, 9 equal their formula" in page.lead
    vgg, resnet = page.after
    assert vgg.heading == "vgg16 bn"
    kfac = dict(zip(vgg.columns, dict(vgg.rows)["kfac-cholesky"], strict=True))
    assert (kfac["state ÷ weights"].text, kfac["÷ AdamW's"].text) == ("18×", "9×")
    assert (kfac["state ÷ formula"].text, kfac["state ÷ formula"].tone) == ("1.0000", "good")
    assert kfac["peak ÷ AdamW's"].text == "2.33×"
    gone = dict(resnet.rows)["kfac-cholesky"][0]
    assert (gone.text, gone.tone, gone.title) == ("out of memory", "bad", "too large")
    assert {"singd-diagonal, factors bfloat16", "singd-diagonal, factors float16"} <= set(dict(vgg.rows))
    ((_, _, charts),) = page.sections
    assert len(charts) == 3
    assert charts[0].sentence.startswith("On average over these networks kfac-cholesky keeps 18 times")


def test_the_newest_record_of_a_case_stands(robust: Path) -> None:
    runs = read_runs(robust)
    later = runs.copy()
    later["run"], later["utc"], later["status"] = later["run"] + "x", "2999-01-01T00:00:00Z", "passed"
    (page,) = robustness.pages(pd.concat([runs, later], ignore_index=True), read_headers(robust))
    assert all(cell.tone in ("", "good") for _, cells in page.tables[0].rows for cell in cells)


def test_both_pages_stand_in_the_report_and_nowhere_else(robust: Path, bytes_: Path, tmp_path: Path) -> None:
    source = [str(robust), str(bytes_)]
    verdict = _verdict(read_runs(source)["device"].iloc[0])
    html.render(read_runs(source), read_headers(source), [verdict], tmp_path / "out")
    pages = sorted(path.name for path in (tmp_path / "out").glob("*--*.html"))
    assert [name.split("--")[0] for name in pages] == ["memory", "robustness"]
    texts = {name.split("--")[0]: (tmp_path / "out" / name).read_text(encoding="utf-8") for name in pages}
    assert BAD not in texts["robustness"]
    assert "own failure &lt;script&gt;" in texts["robustness"]
    assert "claim about streams" in texts["robustness"]
    assert "claim about streams" not in texts["memory"]
    front = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert all(name in front for name in pages)
    for text in texts.values():
        found = re.findall(r'id="([^"]+)"', text)
        assert len(found) == len(set(found))


def test_without_such_records_there_is_no_page() -> None:
    empty = pd.DataFrame(columns=["task", "problem", "run", "device", "method"])
    assert robustness.pages(empty, []) == memory.pages(empty, []) == []


def _verdict(device: str) -> dict[str, Any]:
    texts = dict.fromkeys(("phrase", "reason", "words", "source", "likeness", "note", "hardware", "file"), "")
    return {
        **texts, "id": "one", "verdict": "reproduced", "claimed": None, "ratio": 1.0, "low": 0.6, "high": 1.0,
        "level": 0.95, "floor": None, "n": 7, "device": device, "command": "python -m suites.robustness --tier full",
        "group": "g", "title": "claim about streams", "kind": "often", "metric": "update_error", "candidate": "a.b",
        "baseline": None, "problems": [], "authors": {}, "counter": False,
    }  # fmt: skip
