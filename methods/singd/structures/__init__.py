"""The registry of structures: a new one is a subclass of ``Structure`` in its own file and a line here."""

from __future__ import annotations

from harness.errors import UserError
from methods.singd.structures.arrow import TrilArrow, TriuArrow
from methods.singd.structures.base import Sizes, Structure
from methods.singd.structures.block import Block
from methods.singd.structures.dense import Dense
from methods.singd.structures.diagonal import Diagonal
from methods.singd.structures.hierarchical import Hierarchical
from methods.singd.structures.toeplitz import TrilToeplitz, TriuToeplitz
from methods.singd.structures.triangular import Tril, Triu

STRUCTURES: dict[str, type[Structure]] = {
    one.name: one
    for one in (
        Dense,
        Diagonal,
        Block,
        Hierarchical,
        TrilToeplitz,
        TriuToeplitz,
        Tril,
        Triu,
        TrilArrow,
        TriuArrow,
    )
}


def structure(name: str, d: int, sizes: Sizes | None = None) -> Structure:
    """The structure ``name`` of size ``d``.

    Raises:
        UserError: an unknown name.
    """
    if name not in STRUCTURES:
        raise UserError(f"a structure is one of {', '.join(STRUCTURES)}; got {name!r}.")
    return STRUCTURES[name](d, sizes)


__all__ = ["STRUCTURES", "Sizes", "Structure", "structure"]
