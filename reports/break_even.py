"""Where look-ups break even with dense products on a GPU: the device's own measured rates and NVIDIA's figures.

A dense product does D / C multiply-adds where one look-up stands, so the ratio of both rates is the D / C at which they
take equally long while neither waits for memory. Dense rates are the best that the stored exact, bf16, int8 and fp8
products reached on the device; look-ups are bounded from above by what the hardware can do in a clock.
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
#: CUDA C++ Programming Guide, compute capability 9.0: shared memory, and throughput of arithmetic instructions).
SHARED_BYTES, INTEGER_OPS = 128.0, 64.0
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


def rates(cases: list[Case], problems: Mapping[str, Row]) -> dict[str, float]:
    """Dense arm -> best multiply-adds a second over all problems of the device."""
    found: dict[str, float] = {}
    for case in cases:
        row = describe_problem(case.problem, problems)
        arm = dense_arm(case, row["dtype"])
        if arm is not None and case.time_s and len(row["shape"]) == 3:
            found[arm] = max(found.get(arm, 0.0), row["shape"][0] * row["shape"][1] * row["shape"][2] / case.time_s)
    return found


def lookups(dense: Mapping[str, float], gpu: Mapping[str, Any]) -> dict[str, float]:
    """Way of looking up -> look-ups of one byte a second that it cannot exceed; a way without figures is left out."""
    found: dict[str, float] = {}
    cores, mhz = plain.number(gpu.get("sm_count")), plain.number(gpu.get("max_sm_mhz"))
    if cores and mhz:
        found["shared memory"] = cores * mhz * 1e6 * SHARED_BYTES
        found["integer units"] = cores * mhz * 1e6 * INTEGER_OPS
    if dense:
        found["one-hot products"] = max(dense.values()) / LEAVES
        found["sparse one-hot products"] = SPARSITY * found["one-hot products"]
    return found


def charts(
    cases: list[Case], problems: Mapping[str, Row], gpu: Mapping[str, Any], styles: Mapping[str, Row], device: str
) -> list[Chart]:
    """One figure for each dense product that was measured beside a look-up method."""
    dense = rates(cases, problems)
    ways = lookups(dense, gpu)
    drawn = []
    for arm in dense:
        rows = _points(cases, problems, arm)
        if rows:
            lines = [{"way": way, "ratio": dense[arm] / rate} for way, rate in ways.items()]
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
        f" Against {arm} at its best measured rate, and while neither waits for memory, look-ups can win only from "
        f"D / C = {told}."
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
