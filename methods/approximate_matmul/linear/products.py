"""Scaled int8 products on a GPU: the library's and a pass of scaling, or one kernel; which is measured at fit."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from methods.approximate_matmul.linear import calls, fused, integers

#: The library's product into int32, then a pass that scales.
LIBRARY = "int_mm"
#: Columns of Q and rows of W that every tile divides.
_DEPTH, _OUTPUTS = 128, 256
#: Rows that products are compared on: enough to fill a GPU some times over.
_SAMPLE_ROWS, _SAMPLE_BYTES = 1 << 16, 1 << 28
#: Tiles in a row that are worked on together.
_GROUP = 8


@dataclass(frozen=True)
class Tile:
    """Rows and outputs of one program, its warps, and the steps of 128 columns in flight."""

    rows: int
    outputs: int
    warps: int
    stages: int


#: Few, as each is compiled at fit: 32-bit accumulators of 128 x 256 fill the registers of eight warps.
TILES = {
    "tile 128x256": Tile(128, 256, 8, 4),
    "tile 128x128": Tile(128, 128, 8, 4),
    "tile 64x256": Tile(64, 256, 4, 3),
}


@dataclass(frozen=True)
class Weight:
    """B as one of the products takes it, and its columns' scales."""

    name: str
    values: Tensor
    scale: Tensor

    @property
    def width(self) -> int:
        """Columns that quantised rows must have."""
        return int(self.values.shape[0 if self.name == LIBRARY else 1])

    def rows(self, n: int) -> int:
        """Rows that n quantised rows must be stored in."""
        return integers.least_rows(n, self.values.device) if self.name == LIBRARY else n

    def __call__(self, q: Tensor, steps: Tensor | None, out: Tensor) -> Tensor:
        """Fill ``out`` [n, M] with the product of ``q``, scaled by its rows' ``steps`` [n] and B's scales."""
        if self.name == LIBRARY:
            return fused.scaled(torch._int_mm(q, self.values), steps, self.scale, out)
        tile = TILES[self.name]
        n, m = out.shape
        programs = -(-n // tile.rows) * -(-m // tile.outputs)
        importlib.import_module("methods.approximate_matmul.linear._kernels_product").product_kernel[(programs,)](
            q,
            self.values,
            self.scale if steps is None else steps,
            self.scale,
            out,
            n,
            m,
            self.width,
            ROWS=steps is not None,
            BM=tile.rows,
            BN=tile.outputs,
            BK=_DEPTH,
            GROUP=_GROUP,
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=False,
        )
        return out


def weight(name: str, b: Tensor, scale: Tensor) -> Weight:
    """B [D, M] int8 for the product ``name``, padded with zeros."""
    if name == LIBRARY:
        return Weight(name, integers.padded(b), scale)
    if name not in TILES:
        raise ValueError(f"product must be one of {LIBRARY}, {', '.join(TILES)}; got {name!r}")
    inner, outer = b.shape
    return Weight(name, functional.pad(b, (0, -outer % _OUTPUTS, 0, -inner % _DEPTH)).t().contiguous(), scale)


def usable(name: str | None, b: Tensor, scale: Tensor) -> Weight:
    """B for the product ``name`` that a fit chose; for the library's where that is none or gives other numbers."""
    library = weight(LIBRARY, b, scale)
    if name is None or name not in TILES:
        return library
    inner, outer = b.shape
    q = torch.full((integers.least_rows(1, b.device), library.width), integers.TOP, dtype=torch.int8, device=b.device)
    q[:, inner:] = 0
    q[1::2] *= -1
    wanted = library(q, None, torch.empty((len(q), outer), device=b.device))
    chosen = weight(name, b, scale)
    try:
        q = functional.pad(q[:, :inner], (0, chosen.width - inner))
        same = torch.equal(chosen(q, None, torch.empty_like(wanted)), wanted)
    except Exception:  # whatever a compiler may say, the library's remains
        same = False
    return chosen if same else library


def choose(b: Tensor, sample: Tensor, floor: float) -> tuple[str, dict[str, float], list[str]]:
    """The fastest product on rows like ``sample`` [n, D]: name, seconds of each, what was left out and why.

    A tile that does not compile here, or gives other numbers than the library's, is left out.
    """
    scale = torch.linspace(0.5, 2.0, b.shape[1], device=b.device)
    rows = max(1, min(_SAMPLE_ROWS, _SAMPLE_BYTES // (sample.shape[1] * sample.element_size())))
    sample = sample.repeat(-(-rows // len(sample)), 1)[:rows] if sample.is_cuda else sample
    usable: dict[str, Callable[[Tensor], Tensor]] = {}
    left_out: list[str] = []
    wanted: Tensor | None = None
    for name in (LIBRARY, *TILES):
        run = _call(weight(name, b, scale), floor)
        try:
            got = run(sample)
        except Exception as error:  # whatever a compiler may say, the library's remains
            if name == LIBRARY:
                raise
            left_out.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:120]}")
            continue
        wanted = got if wanted is None else wanted
        if not torch.equal(got, wanted):
            left_out.append(f"{name}: gives other numbers than {LIBRARY}")
            continue
        usable[name] = run
    chosen, seconds = calls.fastest(usable, sample)
    return chosen, seconds, left_out


def _call(given: Weight, floor: float) -> Callable[[Tensor], Tensor]:
    def run(a: Tensor) -> Tensor:
        q, steps = fused.quantise(a, given.width, given.rows(len(a)), torch.int8, integers.TOP, floor)
        return given(q, steps, a.new_empty((len(a), len(given.scale))))

    return run
