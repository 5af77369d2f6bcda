"""MADDNESS: rows hashed by trees, tables of products, no multiplication while A is encoded.

encode: 4 compares per code (``tree``) · tables: T[c, k, m] = <P[c, k], B[:, m]> (``tables``) · scan: y = sum of
T[c, code_c] over c (``scan``).

Source: Blalock and Guttag, Multiplying Matrices Without Multiplying (ICML 2021, arXiv 2106.10860). Departures, each an
option: exact 16-bit sums instead of averaged bytes (``aggregation``), a scale per output instead of one power of two
(``scale``), float thresholds (``thresholds``), x >= v as in the paper's text (``compare``; its programs use >).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from harness.errors import UserError
from methods.approximate_matmul import tables as lut
from methods.approximate_matmul import tree, tree_device
from methods.approximate_matmul.checks import one_of, positive, whole
from methods.approximate_matmul.encoders import TreeEncoder
from methods.approximate_matmul.estimator import Estimator, Trained, check_common, upcast_of
from methods.approximate_matmul.tables import Scale
from methods.approximate_matmul.tree import F32, F64, U8


def make(**hyper: Any) -> Estimator:
    """MADDNESS with ridge-optimised dense prototypes."""
    return build("maddness", **hyper)


def make_pq(**hyper: Any) -> Estimator:
    """MADDNESS-PQ: prototypes are means on their own subspace, so that tables cost C times less to build."""
    return build("maddness-pq", **{"nonzeros": 1, **hyper})


def make_sparse(**hyper: Any) -> Estimator:
    """Prototypes with at most ``nonzeros`` D / C non-zero columns (published: 2 and 4)."""
    return build("maddness-sparse", **{"nonzeros": 4, **hyper})


def make_direct(**hyper: Any) -> Estimator:
    """Tables fitted to A B instead of prototypes fitted to A."""
    return build("maddness-direct", **{"tables": "direct", **hyper})


def make_average(**hyper: Any) -> Estimator:
    """The paper's averaged bytes, with its bias correction."""
    return build("maddness-avg", **{"aggregation": "average", **hyper})


def build(
    name: str,
    *,
    codebooks: int = 16,
    candidates: int = tree.CANDIDATES,
    ridge: float = 1.0,
    lut_bits: int | None = 8,
    aggregation: str = "exact",
    upcast: int = 16,
    tables: str = "prototype",
    thresholds: str = "float",
    compare: tree.Compare = ">=",
    nonzeros: int | None = None,
    scale: Scale = "output",
    min_leaf: int = 1,
    backend: str = "auto",
    seed: int = 0,
) -> Estimator:
    """The estimator of every variant.

    Args:
        name: the method's name, without the task.
        codebooks: C.
        candidates: columns tried per level (4: section 4.2 of the paper).
        ridge: lambda (1: the published programs).
        lut_bits: bits of a table entry (8: the paper), or None for float32 tables.
        aggregation: ``exact`` or ``average``.
        upcast: codebooks averaged together (16: the published programs); lowered to a power of two that divides C.
            An odd C leaves groups of one, whose sums are exact: ``describe()`` then says so.
        tables: ``prototype`` or ``direct``.
        thresholds: ``float``, or ``int8``: rounded to a power-of-two grid per level. The grid changes what is learned
            alone: thresholds are kept, and rows compared, in float32, so encoding takes as long and reads as much.
        compare: ``>=`` or ``>``.
        nonzeros: columns of a prototype in units of D / C; None is dense, 1 is MADDNESS-PQ.
        scale: ``output``, ``shared`` or ``power-of-two`` table scales.
        min_leaf: least training rows of a leaf.
        backend: ``auto`` (native, else torch), ``native``, ``torch`` or ``numpy``.
        seed: unused by this deterministic method; part of the common options.

    Raises:
        UserError: an option out of its range.
    """
    hyper = {key: value for key, value in locals().items() if key != "name"}
    check_common(name, codebooks, lut_bits, aggregation, upcast, backend)
    whole(name, "candidates", candidates, 1)
    whole(name, "min_leaf", min_leaf, 1)
    whole(name, "seed", seed, 0)
    one_of(name, "tables", tables, ("prototype", "direct"))
    one_of(name, "thresholds", thresholds, ("float", "int8"))
    one_of(name, "compare", compare, (">=", ">"))
    one_of(name, "scale", scale, ("output", "shared", "power-of-two"))
    if nonzeros is not None:
        whole(name, "nonzeros", nonzeros, 1)
    positive(name, "ridge", ridge, "one-hot blocks are linearly dependent")
    if tables == "direct" and nonzeros is not None:
        raise UserError(f"{name}: nonzeros limits prototypes, which tables='direct' has none of; leave it None.")
    # Thresholds on a grid and few non-zeros have their own statistics, made on the CPU alone.
    plain = thresholds == "float" and nonzeros is None
    on_gpu = (lambda rows: _train_on_gpu(rows, hyper)) if plain else None
    return Estimator(name, hyper, lambda rows: _train(rows, hyper), upcast_of(codebooks, aggregation, upcast), on_gpu)


def _train(rows: F32, h: dict[str, Any]) -> Trained:
    trees, codes = learn_trees(rows, h["codebooks"], h["candidates"], h["min_leaf"], h["compare"], h["thresholds"])
    if h["tables"] == "direct":
        values = _direct(lut.contingency(codes), lambda b: lut.sums(rows, codes, b=b), h["ridge"])
    elif h["nonzeros"] == 1:
        values = lut.means(lut.own_statistics(rows, codes, trees.starts), trees.starts).__matmul__
    else:
        values = _prototypes(lut.statistics(rows, codes), trees, h["ridge"], h["nonzeros"])
    return _trained(trees, values, h)


def _train_on_gpu(rows: Tensor, h: dict[str, Any]) -> Trained:
    keys = ("candidates", "min_leaf", "compare")
    trees, codes = tree_device.learn(rows, h["codebooks"], **{key: h[key] for key in keys})
    if h["tables"] == "direct":
        counts = tree_device.contingency(codes)
        values = _direct(counts, lambda b: tree_device.sums(rows, codes, b), h["ridge"])
    else:
        values = _prototypes(tree_device.statistics(rows, codes), trees, h["ridge"], None)
    return _trained(trees, values, h)


def _trained(trees: tree.Trees, values: Callable[[F64], F64], h: dict[str, Any]) -> Trained:
    def build_tables(b: F64) -> lut.Tables:
        made = values(b)
        return lut.floating(made) if h["lut_bits"] is None else lut.quantise(made, h["lut_bits"], h["scale"])

    return Trained(encoder=TreeEncoder(trees=trees), build=build_tables)


def learn_trees(
    rows: F32, codebooks: int, candidates: int, min_leaf: int, compare: tree.Compare, thresholds: str
) -> tuple[tree.Trees, U8]:
    """Trees and the codes that the *encoder* gives the training rows (thresholds on a grid move some of them)."""
    trees, codes = tree.learn(rows, codebooks, candidates=candidates, min_leaf=min_leaf, compare=compare)
    if thresholds == "int8":
        trees, _ = tree.to_int8(trees, rows)
        codes = tree.encode(rows, trees)
    return trees, codes


def _direct(counts: F64, sums: Callable[[F64 | None], F64], ridge: float) -> Callable[[F64], F64]:
    """B to tables fitted to A B; ``sums`` gives G'A without B and G'(A B) with it."""

    def values(b: F64) -> F64:
        narrow = b.shape[1] < len(b)
        return lut.direct(counts, sums(b) if narrow else sums(None) @ b, ridge)

    return values


def _prototypes(stats: lut.Statistics, trees: tree.Trees, ridge: float, nonzeros: int | None) -> Callable[[F64], F64]:
    """B to tables of products with ridge prototypes."""
    start = lut.means(stats, trees.starts)
    if nonzeros is None:
        prototypes = lut.ridge(stats, start, ridge)
    else:
        prototypes = lut.sparse_ridge(stats, start, ridge, nonzeros, trees.starts)
    return lambda b: prototypes @ b
