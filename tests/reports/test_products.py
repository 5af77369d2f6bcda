"""Pages of approximate products: figures, options, published points, break-even, and records that lack something."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.record.store import read_headers, read_runs
from reports import break_even, html, product_charts, product_figures, products, tables
from reports.cases import Case, cases

TASK = "approximate_matmul"
BASE = f"{TASK}.exact"
CPU, GPU = "AMD EPYC 7B13", "NVIDIA H100 80GB HBM3"
HOSTILE = f"{TASK}.<script>alert(1)</script>"
#: method -> time as a share of the exact product's, NMSE, accuracy retained, options.
ARMS: dict[str, tuple[float, float, float, dict[str, Any]]] = {
    BASE: (1.0, 0.0, 1.0, {}),
    f"{TASK}.int8": (0.4, 1e-4, 1.0, {}),
    f"{TASK}.maddness": (0.1, 0.05, 0.99, {"codebooks": 16, "aggregation": "exact"}),
    f"{TASK}.maddness-avg": (0.05, 0.08, 0.97, {"codebooks": 16, "aggregation": "average"}),
    f"{TASK}.bolt": (0.3, 0.04, 0.995, {"codebooks": 16}),
    f"{TASK}.pca": (0.5, 0.3, 0.9, {"rank": 8}),
    f"{TASK}.hash-jl": (0.6, 7.0, 0.3, {"rank": 8}),
    HOSTILE: (0.7, 0.2, 0.95, {"codebooks": 16}),
}
Problem = tuple[str, tuple[int, ...], int]
PROBLEMS: tuple[Problem, ...] = (
    ("cifar10_net", (10_000, 512, 10), 16),
    ("cifar10_net", (10_000, 512, 10), 4),
    ("lowrank", (640, 64, 8), 8),
)


def described(kind: str, shape: tuple[int, ...], size: int, dtype: str, device: str) -> dict[str, Any]:
    name = f"{kind}_c{size}-{'x'.join(map(str, shape))}-{dtype}-{device}"
    params = {"data": kind, "hyper": {"codebooks": size, "rank": min(size, 8)}}
    return {"id": name, "kind": f"{kind}_c{size}", "shape": list(shape), "dtype": dtype, "device": device,
            "tiers": ["quick"], "params": params, "seed": 0}  # fmt: skip


def lines(problem: dict[str, Any], method: str, blocks: int, status: str) -> list[dict[str, Any]]:
    share, nmse, kept, hyper = ARMS[method]
    n, inner, outer = problem["shape"]
    base = 2.0 * n * inner * outer / (1e11 if problem["device"] == "cpu" else 4e14)
    hyper = {name: problem["params"]["hyper"].get(name, value) for name, value in hyper.items()}
    size = hyper.get("codebooks", 0)
    gate = {"nmse": nmse * (16 / size if size else 1)}
    if problem["kind"].startswith("cifar10"):
        gate["accuracy_retained"] = kept
    if size:
        gate |= {"codes": n * size, "lookups": n * size * outer}
    detail: dict[str, Any] = {"hyper": hyper, "runs": {"backend": "native", "level": "avx2", "threads": 1}}
    if method.endswith("maddness"):
        detail["theorem"] = {"train_loss": 0.1, "test_loss": 0.12, "gap": 0.02, "bound": 7000.0, "sigma": 3.0}
    common = {"record": "run", "case": f"{method}/{problem['id']}", "task": TASK, "method": method,
              "problem": problem["id"], "arm": method, "utc": "2026-11-22T10:00:05Z"}  # fmt: skip
    told = [{"metric": k, "unit": "1", "samples": [v]} for k, v in gate.items()]
    told.append({"metric": "train_s", "unit": "s", "samples": [0.4]})
    reason = None if status == "passed" else "nmse is <b>7</b>, its limit 1"
    found = [{**common, "phase": "gate", "status": status, "reason": reason, "measurements": told, "detail": detail}]
    if status != "passed":
        return found
    for block in range(blocks):
        for arm in (method, f"{method}#aa") if method == BASE else (method,):
            value = base * share * (1 + 0.001 * ((7 * block + len(arm)) % 5))
            measured = [{"metric": "op_s", "unit": "s", "samples": [value] * 3, "clock": "host"}]
            if size:
                measured.append({"metric": "encode_s", "unit": "s", "samples": [value / 4] * 3, "clock": "host"})
            found.append({**common, "phase": "block", "block": block, "arm": arm, "status": "passed",
                          "measurements": measured})  # fmt: skip
    return found


class Store:
    """Synthetic record files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(
        self, name: str, device: str = "cpu", methods: list[str] | None = None, blocks: int = 8,
        problems: Sequence[Problem] = PROBLEMS, fates: dict[str, str] | None = None, dtype: str = "float32",
        gpu: Any = None,
    ) -> Path:  # fmt: skip
        names = methods if methods is not None else list(ARMS)
        told = [described(*problem, dtype, device) for problem in problems]
        suite = {"name": TASK, "task": TASK, "task_errors": {"nmse": "1 - R^2"}, "baseline": BASE,
                 "protocol": {"version": 1}, "problems": told, "methods": names}  # fmt: skip
        environment = {"device": device, "device_name": GPU if device == "cuda" else CPU, "cpu": CPU, "gpu": gpu}
        head = {"record": "header", "schema": 1, "utc": f"2026-11-22T10:00:0{len(name) % 10}Z", "command": "speedclaim",
                "project": {"version": "0.1.0", "commit": "0" * 40, "diff": ""}, "environment": environment,
                "plan": {"hash": "ab" * 32, "tier": "quick", "suites": [suite], "left_out": []},
                "methods": []}  # fmt: skip
        found = [line for p in told for m in names for line in lines(p, m, blocks, (fates or {}).get(m, "passed"))]
        numbered = [{"run": f"{name}-{n}", **{k: v for k, v in line.items() if v is not None}}
                    for n, line in enumerate(found)]  # fmt: skip
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in [head, *numbered]), encoding="utf-8")
        return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def read(*paths: Path) -> tuple[list[Case], dict[str, Any]]:
    headers = read_headers(list(paths))
    return cases(read_runs(list(paths)), headers), tables.problem_index(headers)


def drawn(found: list[Case], problems: dict[str, Any], gpu: Any = None, elsewhere: Any = ()) -> dict[str, Any]:
    told = product_charts.sections(found, problems, CPU, gpu or {}, list(elsewhere))
    return {heading: (text, charts) for heading, text, charts in told}


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Case], dict[str, Any]]:
    """Cases and problems of the full synthetic record on a CPU."""
    return read(Store(tmp_path_factory.mktemp("usual")).write("a"))


@pytest.fixture(scope="module")
def figures(usual: tuple[list[Case], dict[str, Any]]) -> dict[str, Any]:
    """Its sections, drawn once."""
    return drawn(*usual)


def pages(out: Path, *paths: Path) -> dict[str, str]:
    html.render(read_runs(list(paths)), read_headers(list(paths)), [], out)
    return {path.name: path.read_text(encoding="utf-8") for path in out.glob("*.html")}


def test_sizes_of_one_problem_share_a_figure_in_which_a_method_without_size_stands_once(
    usual: tuple[list[Case], dict[str, Any]], figures: dict[str, Any]
) -> None:
    found, problems = usual
    groups = products.groups(found, problems)
    assert [(g.name, sorted(g.sizes.values())) for g in groups] == [("cifar10_net", [4, 16]), ("lowrank", [8])]
    charts = figures["Speed against accuracy"][1]
    assert [re.sub(r" against.*: ", " ", c.title).split()[0] for c in charts] == ["Accuracy", "1", "1"]
    rows = [row for row in charts[0].rows if row["method"] == f"{TASK}.maddness"]
    assert [row["size"] for row in rows] == [16, 4]
    assert rows[0]["speedup"] == pytest.approx(10, rel=0.02)
    assert rows[0]["value"] == 0.99
    assert [row["method"] for row in charts[0].rows].count(f"{TASK}.int8") == 1


def test_published_points_stand_only_beside_their_own_problem(figures: dict[str, Any]) -> None:
    retained, explained, other = figures["Speed against accuracy"][1]
    marks = [row for row in retained.rows if row["method"] == "published (poster)"]
    assert [row["codebooks"] for row in marks] == [64, 32, 16, 8, 4, 2]
    assert marks[2]["speedup"] == 40.8
    assert marks[2]["value"] == pytest.approx(0.932 / 0.9359)
    assert "Hollow: the paper's poster" in retained.sentence
    assert not any(row["method"] == "published (poster)" for row in [*explained.rows, *other.rows])


def test_the_sentence_names_the_fastest_that_is_accurate_enough(store: Store) -> None:
    found, problems = read(store.write("a", fates={f"{TASK}.bolt": "inaccurate"}, problems=PROBLEMS[:2]))
    charts = drawn(found, problems)["Speed against accuracy"][1]
    assert charts[0].sentence.startswith("The fastest while keeping 99 % of the accuracy is maddness 16 with 10")
    assert "2 cases without a time, failed or stopped, are absent." in charts[0].sentence
    assert not any(row["method"] == f"{TASK}.bolt" for chart in charts for row in chart.rows)


def test_a_point_that_another_beats_in_both_is_not_on_the_front(figures: dict[str, Any]) -> None:
    rows = {(r["method"], r["codebooks"]): r["front"] for r in figures["Speed against accuracy"][1][1].rows}
    assert rows[f"{TASK}.maddness", 16]
    assert rows[BASE, 16]
    assert not rows[f"{TASK}.pca", 16]


def test_rates_are_work_divided_by_time(usual: tuple[list[Case], dict[str, Any]], figures: dict[str, Any]) -> None:
    found, _ = usual
    encode, scan = figures["Encoding and scanning"][1]
    case = next(case for case in found if case.method == f"{TASK}.maddness" and "_c16-" in case.problem)
    row = next(row for row in encode.rows if (row["method"], row["problem"]) == (case.method, case.problem))
    assert row["million_codes_s"] == pytest.approx(10_000 * 16 / case.times["encode_s"] / 1e6)
    row = next(row for row in scan.rows if (row["method"], row["problem"]) == (case.method, case.problem))
    assert row["billion_lookups_s"] == pytest.approx(10_000 * 16 * 10 / (case.time_s or 0) / 1e9)
    assert row["billion_lookups_s_without_encoding"] == pytest.approx(row["billion_lookups_s"] / 0.75, rel=1e-6)


def test_options_stand_beside_the_plain_method(usual: tuple[list[Case], dict[str, Any]]) -> None:
    found, _ = usual
    rows = {(row["method"], row["problem"]): row for row in products.ablation(found)}
    assert {method for method, _ in rows} == {"maddness", "maddness-avg"}
    problem = next(problem for _, problem in rows)
    row = rows["maddness-avg", problem]
    assert row["option"] == "aggregation average"
    assert row["ratio_text"].startswith("▲ 2.")
    assert row["change_text"] == "1.6 of plain's"
    assert row["retained_text"] == "97.0 %"
    assert rows["maddness", problem]["ratio_text"] == "plain"


def test_the_page_says_what_really_ran(usual: tuple[list[Case], dict[str, Any]]) -> None:
    found, _ = usual
    assert dict(products.implementations(found))["maddness"] == "native, avx2, 1 thread"
    first = replace(found[0], detail={"runs": {"backend": "torch", "not_native_because": "no compiler"}})
    text = dict(products.implementations([first, *found]))[products.short(first.method)]
    assert text == "torch (no compiler) [1 problem]; native, avx2, 1 thread [3 problems]"


def test_what_was_never_tried_has_no_row_of_options(usual: tuple[list[Case], dict[str, Any]]) -> None:
    found, _ = usual
    left = [replace(case, status="unsupported") if case.method.endswith("-avg") else case for case in found]
    assert {row["method"] for row in products.ablation(left)} == {"maddness"}


def test_ratios_between_files_are_not_formed(store: Store) -> None:
    one = store.write("a", methods=[BASE, f"{TASK}.maddness"])
    two = store.write("bb", methods=[BASE, f"{TASK}.maddness-avg"])
    found, _ = read(one, two)
    row = next(row for row in products.ablation(found) if row["method"] == "maddness-avg")
    assert row["ratio"] is None
    assert row["ratio_text"] == "—"


def test_families_follow_names() -> None:
    told = {name: products.family(f"{TASK}.{name}") for name in ("maddness-triton-lut", "int8-static", "opq", "new")}
    assert told == {
        "maddness-triton-lut": "look-ups by trees",
        "int8-static": "fewer bits",
        "opq": "look-ups by centroids",
        "new": "other",
    }
    looks = product_figures.looks([f"{TASK}.{name}" for name in ("maddness", "maddness-avg", "pca")])
    assert looks[f"{TASK}.maddness"]["color"] == looks[f"{TASK}.maddness-avg"]["color"]
    assert looks[f"{TASK}.maddness"]["marker"] != looks[f"{TASK}.maddness-avg"]["marker"]
    assert looks[f"{TASK}.maddness"]["color"] != looks[f"{TASK}.pca"]["color"]


def test_break_even_is_the_ratio_of_the_peaks() -> None:
    """H100 SXM: 132 multiprocessors at 1.83 GHz are 989 TFLOP/s in bf16 and 1979 in int8 and fp8."""
    dense = break_even.peaks({"capability": [9, 0]})
    assert 132 * 1.83e9 * 2 * dense["bf16"] == pytest.approx(989e12, rel=0.001)
    ways = break_even.lookups(dense)
    told = {arm: {way: peak / rate for way, rate in ways.items()} for arm, peak in dense.items()}
    assert told["bf16"] == {
        "shared memory": 16.0, "integer units": 32.0, "one-hot products": 8.0, "sparse one-hot products": 4.0,
    }  # fmt: skip
    assert told["int8"]["one-hot products"] == told["fp8"]["one-hot products"] == 16.0
    for unknown in ({}, {"capability": None}, {"capability": [12, 7]}):
        assert break_even.lookups(break_even.peaks(unknown)) == {}


def test_a_gpu_record_draws_the_break_even_and_says_who_loses(store: Store, tmp_path: Path) -> None:
    gpu = {"name": GPU, "capability": [9, 0]}
    path = store.write("g", "cuda", dtype="bfloat16", gpu=gpu, problems=(("lowrank", (65_536, 1024, 1024), 64),))
    found, problems = read(path)
    text, charts = drawn(found, problems, gpu)["Break-even on a GPU"]
    assert "medians" in text
    assert [chart.title for chart in charts] == ["Break-even with bf16 products", "Break-even with int8 products"]
    row = next(row for row in charts[1].rows if row["method"] == f"{TASK}.maddness")
    assert row["inner_per_codebook"] == 16
    assert row["speedup"] == pytest.approx(4, rel=0.02)
    slow = [case for case in found if case.method in (f"{TASK}.int8", HOSTILE, f"{TASK}.bolt")]
    text, charts = drawn([c for c in slow if c.method != f"{TASK}.bolt"], problems, gpu)["Break-even on a GPU"]
    assert (text, charts) == (product_charts.NO_DENSE, [])
    few, small = [BASE, f"{TASK}.maddness"], (("lowrank", (640, 64, 8), 8),)
    site = pages(tmp_path / "site", path, store.write("c", methods=few, problems=small))
    on_cpu = next(text for name, text in site.items() if "amd" in name)
    assert f"Drawn on the page of {GPU}." in on_cpu
    assert "Break-even with bf16 products" in next(text for name, text in site.items() if "nvidia" in name)


def test_look_ups_that_lose_are_a_result(store: Store) -> None:
    gpu = {"capability": [9, 0]}
    path = store.write("g", "cuda", [BASE, f"{TASK}.int8", f"{TASK}.bolt"], dtype="bfloat16",
                       problems=(("lowrank", (4096, 512, 256), 64),))  # fmt: skip
    found, problems = read(path)
    for case in found:
        if case.method == f"{TASK}.bolt":
            object.__setattr__(case, "time_s", 10 * (case.time_s or 0))
    _, charts = drawn(found, problems, gpu)["Break-even on a GPU"]
    assert charts[0].sentence.startswith("Look-ups lose to bf16 at every measured point; nearest is 0.33")
    assert "win against bf16 only from D / C = 16 by shared memory" in charts[0].sentence
    _, charts = drawn(found, problems, {"name": "a chip without figures"})["Break-even on a GPU"]
    assert "only from" not in charts[0].sentence


def test_the_page_is_escaped_offline_and_complete(store: Store, tmp_path: Path) -> None:
    site = pages(
        tmp_path / "site", store.write("a", fates={f"{TASK}.maddness-avg": "inaccurate"}, problems=PROBLEMS[2:])
    )
    text = next(text for name, text in site.items() if name.startswith("task--"))
    assert "<script>alert(1)" not in text
    assert "<b>7</b>" not in text
    assert not re.search(r"""(?:src|href)=["']https?://(?!arxiv)""", text)
    assert 'id="ablation-table"' in text
    assert 'id="theorem-table"' in text
    assert product_charts.NO_GPU in text
    assert "Singular values" not in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("methods", "blocks", "fates"),
    [
        ([BASE], 8, {}),
        ([f"{TASK}.maddness"], 8, {}),
        ([BASE, f"{TASK}.maddness"], 1, {}),
        ([BASE, f"{TASK}.maddness"], 0, {}),
        ([BASE, f"{TASK}.maddness"], 8, dict.fromkeys([BASE, f"{TASK}.maddness"], "inaccurate")),
        ([BASE, f"{TASK}.maddness"], 8, {BASE: "error"}),
    ],
)
def test_a_poor_record_still_has_a_page(
    store: Store, tmp_path: Path, methods: list[str], blocks: int, fates: dict[str, str]
) -> None:
    problems = (("lowrank", (64, 32, 8), 4),)
    site = pages(tmp_path / "site", store.write("a", methods=methods, blocks=blocks, fates=fates, problems=problems))
    text = next(text for name, text in site.items() if name.startswith("task--"))
    assert text.index("Speed against accuracy") < text.index("Encoding and scanning") < text.index('id="cases"')


def test_a_record_without_products_has_none_of_it(make_record: Any, tmp_path: Path) -> None:
    few = make_record(tmp_path / "few", 2, [("gaussian", (64, 64))], ["polar.svd", "polar.ns-torch"])
    html.render(few.runs, few.headers, [], tmp_path)
    text = next(tmp_path.glob("task--*.html")).read_text(encoding="utf-8")
    assert "Speed against accuracy" not in text
    assert "Singular values" in text
    assert 'id="ablation"' not in text


def test_variants_of_one_option_stand_in_the_table_and_in_no_figure(store: Store, monkeypatch: Any) -> None:
    variant = f"{TASK}.maddness-strict"
    monkeypatch.setitem(ARMS, variant, (0.01, 0.001, 1.0, {"codebooks": 16, "compare": ">"}))
    found, problems = read(store.write("variants"))
    for _, charts in drawn(found, problems).values():
        assert not any(row.get("method") == variant for chart in charts for row in chart.rows)
    assert variant.split(".")[1] in {row["method"] for row in products.ablation(found)}
