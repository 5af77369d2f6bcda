"""State of an optimizer counted from the layers' sizes, independently of any method's code.

A layer of ``groups`` maps from d_in (a bias counts as an input) to d_out has the Kronecker factors of sizes d_in and
d_out. K-FAC keeps both factors and both inverses; SINGD (Lin et al., arXiv 2312.05705) keeps K, C and their Riemannian
momenta, each in its structure. Beside them a momentum of the weights in float32, and the fallback's state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from torch import nn

FLOAT32 = 4
#: torch keeps the step count of every AdamW parameter as one float32.
STEP = 4
#: Members of a hierarchy at either end, width of a block, rows of an arrow: the structures' names (arXiv 2312.05705).
ENDS, BLOCK = 15, 30


@dataclass(frozen=True)
class Sizes:
    """One layer: ``groups`` maps from ``d_in`` to ``d_out``."""

    groups: int
    d_in: int
    d_out: int


def layers(model: nn.Module) -> list[Sizes]:
    """Every nn.Linear and nn.Conv2d."""
    found = []
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            groups = module.groups if isinstance(module, nn.Conv2d) else 1
            weight = module.weight
            found.append(Sizes(groups, prod(weight.shape[1:]) + (module.bias is not None), weight.shape[0] // groups))
    return found


def entries(structure: str, d: int, rank: int = 1) -> int:
    """Numbers that one d x d member of a structure has.

    Raises:
        KeyError: a structure that is not listed.
    """
    top = min(ENDS, d)
    low = min(ENDS, d - top)
    middle, rank = d - top - low, min(rank, d)
    counts = {
        "dense": d * d,
        "diagonal": d,
        "block30": (d // BLOCK) * BLOCK**2 + (d % BLOCK) ** 2,
        "hierarchical15": top * d + middle + low * (middle + low),
        "tril": d * (d + 1) // 2,
        "triu": d * (d + 1) // 2,
        "tril-toeplitz": d,
        "triu-toeplitz": d,
        "rank1-arrow": 2 * d - 1,
        "rankk-arrow": rank * d + d - rank,
    }
    return counts[structure]


def kfac(sizes: list[Sizes]) -> int:
    """Bytes of two factors and two inverses a layer in float32, and its count of batches."""
    return sum(2 * FLOAT32 * s.groups * (s.d_in**2 + s.d_out**2) + FLOAT32 for s in sizes)


def singd(sizes: list[Sizes], structure: str, itemsize: int, momentum: bool = True, rank: int = 1) -> int:
    """Bytes of K and C, with their momenta unless the method has none."""
    each = 2 if momentum else 1
    pairs = ((s.groups, entries(structure, s.d_in, rank) + entries(structure, s.d_out, rank)) for s in sizes)
    return sum(each * itemsize * groups * both for groups, both in pairs)


def first_order(coverage: Mapping[str, int], tensors: int) -> int:
    """Bytes of AdamW's two buffers and step counts, and of one momentum for every other part.

    Args:
        coverage: parameters (scalars) by part.
        tensors: parameters (tensors) of the part ``adamw``.
    """
    total = STEP * tensors
    for part, scalars in coverage.items():
        total += (2 if part == "adamw" else 1) * FLOAT32 * scalars
    return total
