"""The lines that ``bench`` ends with: rates, ratios, shares of the bounds, goals."""

from __future__ import annotations

from typing import Any

from methods.approximate_matmul.native import _bench_arms as arms
from methods.approximate_matmul.native import _bench_bound as bound

#: Goals of the project where AVX-512 VBMI exists: times over ``_int_mm`` by codebooks, codes and look-ups a second,
#: times on two threads. They were set on a Zen 4 core, whose int8 products have VNNI and no AMX.
OVER_INT8 = {16: 14.0, 64: 4.5}
CODES_PER_S, LOOKUPS_PER_S, TWO_THREADS = 4.3e9, 110e9, 1.8


def about(facts: dict[str, Any]) -> list[str]:
    """The machine."""
    flags = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in facts["flags"].items())
    caches = ", ".join(f"{name} {size}" for name, size in facts["caches"].items())
    return [
        f"processor: {facts['model']}; {facts['cores']} logical, {facts['cores_apart']} cores; siblings of cpu0: "
        f"{facts['siblings']}; {facts['gigahertz']:.2f} GHz measured; {caches}; "
        f"{'in a virtual machine' if facts['hypervisor'] else 'bare'}",
        f"flags: {flags}",
        f"level {facts['level']}; {facts['compiler']}; torch {facts['torch']}; "
        f"freed memory kept: {facts['memory_kept']}",
    ]


def levels(found: list[dict[str, Any]], ghz: float) -> list[str]:
    """Rates of every level; shares of the bounds where they apply."""
    told = [
        "rates of one thread, each alone: M codes/s of columns, of 2 MiB of columns, of rows | "
        "G look-ups/s to u8, u16, u16 by column, f32"
    ]
    for one in found:
        codes = [one["codes_per_s"][f"encode {kind}"] / 1e6 for kind in ("columns", "near", "rows")]
        looks = [one["lookups_per_s"][f"scan {kind}"] / 1e9 for kind in ("u8", "u16 rows", "u16", "f32")]
        line = f"  {one['level']:>10} C={one['codebooks']:<2} {_row(codes)} | {_row(looks)}"
        line += f" | product {one['us']['product columns']:.0f} us, of rows {one['us']['product rows']:.0f} us"
        if one["level"] in bound.WIDE and ghz > 0:
            encode = one["codes_per_s"]["encode near"] / (1e9 * ghz * bound.CODES_PER_CYCLE)
            scan = one["lookups_per_s"]["scan u16"] / (1e9 * ghz * bound.LOOKUPS_PER_CYCLE)
            line += f" | of the bound: encode {encode:.0%}, u16 {scan:.0%}"
        told.append(line)
        if not one["habits"]:
            continue
        habits = ", ".join(
            f"{name} {us['product columns']:.0f} / {us['product rows']:.0f}" for name, us in one["habits"].items()
        )
        told.append(f"{'':>17} product of columns / rows, us, by habits: {habits}")
    return told


def _row(values: list[float]) -> str:
    return " ".join(f"{value:6.0f}" for value in values)


def bounds(shape: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    """A shape's times beside what its memory takes and the least that the arithmetic allows."""
    (n, d, m), ghz, us = shape["shape"], facts["gigahertz"], shape["us"]
    written, read = us["memory write"], us["memory read"]
    memory = written + read
    told = [f"  memory alone: outputs written {written:.0f} us, as much as the columns read {read:.0f} us"]
    if facts["level"] not in bound.WIDE or not ghz:
        return told
    ours = bound.product_us(n, m, shape["codebooks"], ghz)
    line = (
        f"  bounds at {ghz:.2f} GHz: product {ours:.0f} us by arithmetic ({ours / us['product columns']:.0%} reached)"
    )
    line += f", {max(ours, memory):.0f} us with memory ({max(ours, memory) / us['product columns']:.0%} reached)"
    exact = bound.int8_us(n, d, m, ghz, facts["flags"])
    if exact is not None and "_int_mm" in us:
        line += f"; int8 {exact:.0f} us ({exact / us['_int_mm']:.0%} reached by _int_mm)"
        line += (
            f"; ours at its bound over _int_mm at its own {exact / ours:.2f}x, as measured {us['_int_mm'] / ours:.1f}x"
        )
    return [*told, line]


def goals(found: dict[str, Any]) -> list[str]:
    """Each goal with what was found."""
    told = []
    for shape in found["shapes"]:
        wanted = OVER_INT8.get(shape["codebooks"])
        if shape["shape"] == [10000, 512, 100] and wanted and "_int_mm" in shape["us"]:
            told.append(
                _goal(f"C={shape['codebooks']} over _int_mm", shape["speedup"]["product columns"]["_int_mm"], wanted)
            )
    best = [one for one in found["levels"] if one["level"] == found["about"]["level"]]
    if best:
        told.append(_goal("M codes/s", max(one["codes_per_s"]["encode near"] for one in best) / 1e6, CODES_PER_S / 1e6))
        told.append(
            _goal("G look-ups/s u16", max(one["lookups_per_s"]["scan u16"] for one in best) / 1e9, LOOKUPS_PER_S / 1e9)
        )
    twos = [row for scaled in found["threads"] for row in scaled["rows"] if row["threads"] == 2]
    told += [_goal("two threads", row["speedup"]["product columns"], TWO_THREADS) for row in twos]
    return ["goals: " + "; ".join(told)] if told else []


def _goal(name: str, value: float, wanted: float) -> str:
    return f"{name} {value:.4g} of {wanted:g} {'met' if value >= wanted else 'not met'}"


def threads(scaled: dict[str, Any]) -> list[str]:
    """Times by threads."""
    label = " x ".join(map(str, scaled["shape"]))
    told = [f"threads, {label} C={scaled['codebooks']}: microseconds (speed-up over one thread)"]
    for row in scaled["rows"]:
        cells = [f"{name} {us:.0f} ({row['speedup'].get(name, 0):.2f}x)" for name, us in row["us"].items()]
        told.append(f"  {row['threads']:>3}: {', '.join(cells)}")
    return told


def everything(found: dict[str, Any], training_s: float) -> list[str]:
    """All of it."""
    facts = found["about"]
    told = [*about(facts), *levels(found["levels"], facts["gigahertz"])]
    for shape in found["shapes"]:
        told += [*arms.lines(shape), *bounds(shape, facts)]
    for scaled in found["threads"]:
        told += threads(scaled)
    if "training" in found:
        told.append(f"training: {found['training']['seconds']:.1f} s, goal {training_s:.0f} s")
    return told + goals(found)
