"""Where look-ups break even with dense products on a GPU: measured points beside the ratios of the chip's peaks.

A dense product does D / C multiply-adds where one look-up stands, so the ratio of both peaks is the D / C below which a
way of looking up cannot win while neither side waits for memory and both are equally near their peaks. Peaks are
NVIDIA's figures for a clock of a multiprocessor, so no clock rate enters; timed int8 and fp8 products also quantise A.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reports import plain, product_figures, products
from reports.cases import Case
from reports.figures import Chart
from reports.tables import describe_problem

Row = dict[str, Any]
#: Entries of a codebook's table (arXiv 2106.10860, section 4): multiply-adds of a look-up as a one-hot product.
LEAVES = 16
#: Of one multiprocessor in a clock: 32 banks of shared memory of 4 bytes, and 64 32-bit integer operations (NVIDIA,
#: CUDA C++ Programming Guide, compute capabilities 8.0 to 9.0: shared memory, throughput of arithmetic instructions).
SHARED_BYTES, INTEGER_OPS = 128.0, 64.0
#: Compute capability -> multiply-adds of dense tensor-core products in a clock of one multiprocessor (NVIDIA's white
#: papers of the A100, Ada and H100 architectures: peak rates over multiprocessors and boost clock).
PEAKS: Mapping[tuple[int, int], Mapping[str, float]] = {
    (8, 0): {"bf16": 1024.0, "int8": 2048.0},
    (8, 9): {"bf16": 512.0, "int8": 1024.0, "fp8": 1024.0},
    (9, 0): {"bf16": 2048.0, "int8": 4096.0, "fp8": 4096.0},
}
#: Sparse tensor cores, whose pattern every one-hot row satisfies, do twice the dense work (NVIDIA H100 white paper).
SPARSITY = 2.0
#: Dense arm -> the methods that are one.
DENSE: Mapping[str, tuple[str, ...]] = {
    "bf16": ("bf16",),
    "int8": ("int8", "int8-static"),
    "fp8": ("fp8",),
}


def dense_arm(case: Case, dtype: str) -> str | None:
    """Which dense product a case is; an exact product of bfloat16 operands is bf16."""
    name = products.short(case.method)
    if name == "exact":
        return "bf16" if dtype == "bfloat16" else None
    return next((arm for arm, names in DENSE.items() if name in names), None)


def peaks(gpu: Mapping[str, Any]) -> Mapping[str, float]:
    """Dense arm -> multiply-adds a clock of one multiprocessor; empty for a chip whose figures are not known here."""
    found = gpu.get("capability")
    return PEAKS.get((int(found[0]), int(found[1])), {}) if isinstance(found, list | tuple) and len(found) == 2 else {}


def lookups(dense: Mapping[str, float]) -> dict[str, float]:
    """Way of looking up -> look-ups of one byte a clock of one multiprocessor that it cannot exceed."""
    if not dense:
        return {}
    one_hot = dense["int8"] / LEAVES
    return {
        "shared memory": SHARED_BYTES,
        "integer units": INTEGER_OPS,
        "one-hot products": one_hot,
        "sparse one-hot products": SPARSITY * one_hot,
    }


def charts(
    cases: list[Case], problems: Mapping[str, Row], gpu: Mapping[str, Any], styles: Mapping[str, Row], device: str
) -> list[Chart]:
    """One figure for each dense product that was measured beside a look-up method."""
    dense = peaks(gpu)
    ways = lookups(dense)
    drawn = []
    for arm in DENSE:
        rows = _points(cases, problems, arm)
        if rows:
            known = ways.items() if arm in dense else ()
            lines = [{"way": way, "ratio": dense[arm] / rate} for way, rate in known]
            drawn.append(_chart(rows, lines, arm, styles, device))
    return drawn


def _points(cases: list[Case], problems: Mapping[str, Row], arm: str) -> list[Row]:
    """Look-up methods beside the fastest dense product of the same problem and file."""
    best: dict[tuple[str, str], float] = {}
    for case in cases:
        if case.time_s and dense_arm(case, describe_problem(case.problem, problems)["dtype"]) == arm:
            key = (case.file, case.problem)
            best[key] = min(best.get(key, case.time_s), case.time_s)
    sizes = {problem: size for group in products.groups(cases, problems) for problem, size in group.sizes.items()}
    rows = []
    for case in cases:
        base, size = best.get((case.file, case.problem)), sizes.get(case.problem)
        looks_up = products.family(case.method) in ("look-ups by trees", "look-ups by centroids")
        if looks_up and base is not None and case.time_s and size:
            inner = describe_problem(case.problem, problems)["shape"][1]
            rows.append(
                {
                    "method": case.method,
                    "problem": case.problem,
                    "codebooks": size,
                    "inner_per_codebook": inner / size,
                    "speedup": base / case.time_s,
                }
            )
    return rows


def _chart(rows: list[Row], lines: list[Row], arm: str, styles: Mapping[str, Row], device: str) -> Chart:
    best = max(rows, key=lambda row: row["speedup"])
    ahead = sum(row["speedup"] > 1 for row in rows)
    told = ", ".join(f"{line['ratio']:.3g} by {line['way']}" for line in lines)
    where = f"{products.short(best['method'])} with D / C = {best['inner_per_codebook']:.3g} on {best['problem']}"
    verdict = (
        f"{ahead} of {plain.count(len(rows), 'measured point')} beat {arm}; the best is {plain.times(best['speedup'])} "
        f"by {where}."
        if ahead
        else f"Look-ups lose to {arm} at every measured point; nearest is {plain.times(best['speedup'])} by {where}."
    )
    bound = (
        f" With both sides equally near the chip's peaks, and while neither waits for memory, look-ups win against "
        f"{arm} only from D / C = {told}."
        if told
        else ""
    )
    title = f"Break-even with {arm} products"
    name = plain.anchor("chart", "break-even", device, arm)
    svg = product_figures.break_even(name, title, rows, lines, styles, arm)
    data = [*rows, *({"method": f"break-even, {line['way']}", "inner_per_codebook": line["ratio"]} for line in lines)]
    keys = ("method", "problem", "codebooks", "inner_per_codebook", "speedup")
    return Chart(
        id=name, title=title, sentence=verdict + bound, svg=svg, rows=[{k: r.get(k) for k in keys} for r in data]
    )
