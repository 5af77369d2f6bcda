"""Edge cases of the task ``polar``: never timed, they belong to conformance."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from harness.catalogue.suite import Problem
from harness.conformance import EdgeCase, Expectation
from suites.polar_inputs import DTYPES

#: Scales of the contract, inside the exponent range of these dtypes; float16 has one of 4e4 alone.
_SCALES = {"float32": (1e-12, 1e12), "bfloat16": (1e-12, 1e12), "float64": (1e-12, 1e12), "float16": (1e-3, 1e3)}
_SHAPES = ((1, 7), (9, 1), (1, 1), (3, 3), (33, 20), (17, 64), (2, 5, 12))


def edge_cases(device: str) -> Iterator[EdgeCase]:
    """Zero, rank one, zero rows, NaN, degenerate and odd shapes, transposed memory, and extreme scales, per dtype."""
    for dtype in DTYPES:
        for shape in _SHAPES:
            # With one to three directions nothing averages the rounding of a half type that the tables amplify.
            coarse = dtype in ("bfloat16", "float16") and min(shape[-2:]) <= 3
            expect: Expectation = "finite" if coarse else "judged"
            yield _case(f"gaussian {'x'.join(map(str, shape))}", _gaussian(shape), dtype, device, expect)
        tall = _gaussian((40, 24))
        yield _case("transposed memory 24x40", tall.mT, dtype, device, "judged")
        for scale in _SCALES[dtype]:
            yield _case(f"scale {scale:g}", scale * _gaussian((24, 40)), dtype, device, "judged")
        yield _case("zero", torch.zeros(8, 12, dtype=torch.float64), dtype, device, "finite")
        column, row = _gaussian((12, 1)), _gaussian((1, 20))
        yield _case("rank one", column @ row, dtype, device, "finite")
        half = _gaussian((16, 24))
        half[8:] = 0.0
        yield _case("zero rows", half, dtype, device, "finite")
        broken = _gaussian((12, 20))
        broken[3, 4] = float("nan")
        yield _case("one NaN", broken, dtype, device, "nan")


def _gaussian(shape: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum((i + 1) * s for i, s in enumerate(shape)))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _case(name: str, value: torch.Tensor, dtype: str, device: str, expect: Expectation) -> EdgeCase:
    kind = "edge_" + name.replace(" ", "_").replace("-", "m").lower()
    problem = Problem(kind=kind, shape=tuple(value.shape), dtype=dtype, device="cuda" if device == "cuda" else "cpu")
    return EdgeCase(name=name, problem=problem, content=value.to(device=device, dtype=DTYPES[dtype]), expect=expect)
