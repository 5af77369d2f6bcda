"""Edge cases of the task ``approximate_matmul``: never timed, they belong to conformance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from harness.catalogue.suite import Problem
from harness.conformance import EdgeCase, Expectation
from suites.amm import contents, sources
from suites.amm.contents import Rows

#: N, D, M: one row, one column of B, N no multiple of a block of 32 rows, D not divisible by the codebooks.
_SHAPES = ((1, 37, 12), (33, 37, 1), (97, 41, 17), (64, 64, 16))
_HYPER = {"codebooks": 4, "rank": 1}


def edge_cases(device: str) -> Iterator[EdgeCase]:
    """Odd shapes, transposed and strided memory, scales, zeros, and constant or integer training data, per dtype."""
    for dtype in ("float32", "float16"):
        for shape in _SHAPES:
            hyper = {**_HYPER, "rank": 1}
            yield _case(f"shape {'x'.join(map(str, shape))}", shape, dtype, device, "judged", "gaussian", hyper)
        yield _case("columns in memory", (40, 37, 12), dtype, device, "judged", "gaussian", layout="columns")
        yield _case("strided rows", (40, 37, 12), dtype, device, "judged", "gaussian", layout="strided")
        yield _case("all zero rows", (8, 37, 12), dtype, device, "finite", "gaussian", scale=0.0)
        yield _case("rows ten times larger", (33, 37, 12), dtype, device, "finite", "gaussian", scale=10.0)
        yield _case("constant columns", (33, 38, 12), dtype, device, "judged", "columns")
        yield _case("integers with ties", (33, 38, 12), dtype, device, "judged", "integers")
    yield _case("wholly constant training data", (33, 38, 12), "float32", device, "finite", "constant")


def _case(
    name: str,
    shape: tuple[int, int, int],
    dtype: str,
    device: str,
    expect: Expectation,
    data: str,
    hyper: dict[str, Any] | None = None,
    layout: str = "rows",
    scale: float = 1.0,
) -> EdgeCase:
    problem = Problem(
        kind=f"edge_{data}",
        shape=shape,
        dtype=dtype,
        device="cuda" if device == "cuda" else "cpu",
        params={"data": f"edge:{data}", "hyper": hyper or _HYPER},
    )
    rows = contents.draw(problem, sources.source(problem), 0)
    a = rows.a * scale
    if layout == "columns":
        a = a.t().contiguous().t()
    elif layout == "strided":
        a = torch.cat([a, a], 1)[:, : shape[1]]
    return EdgeCase(name=name, problem=problem, content=Rows(a=a, index=rows.index), expect=expect)
