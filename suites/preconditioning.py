"""Suite ``preconditioning``: Kronecker factors of one layer updated, inverted and applied. Imports no torch.

Three operations, the first part of a problem's kind:

* ``refresh-NxD``: a new inverse of an input factor of width D, and its application to eight rows. Methods that keep
  the dense factor get it; methods that work on rows (Brand's update, SENG) get the newest N rows.
* ``apply-OxD``: the preconditioned gradient (O, D) of a layer whose factors were inverted before.
* ``update-NxD``: N rows folded into the running factor of width D.

Factors look like those of trained networks: a few eigenvalues stand out, the i-th falls like i^-1.5 down to a floor
(``_flat``: i^-0.5, the case against low rank). The damping is 1 % of the largest eigenvalue of the mean factor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from harness.catalogue.protocol import Protocol
from harness.catalogue.suite import Problem, Suite, Tier
from harness.catalogue.task import Task

ERRORS: Mapping[str, str] = {
    "solve_error": "accuracy: ||X - X*||_F / ||X*||_F against the float64 dense solve (G + lam I)^-1 V (A + lam I)^-1, "
    "or against the float64 running factor for an update; gated for exact back-ends",
    "fidelity_error": "||X - X_ref||_F / ||X_ref||_F against the plain float64 twin: the best low-rank operator of the "
    "same rank, Brand's recursion from exact decompositions, the dense empirical Fisher; gated where there is a twin",
    "fidelity_residual": "||S(X - X_ref)||_F / ||S(X_ref)||_F with S(X) = (G + lam I) X (A + lam I): the same, seen "
    "where the factors are large, so that V / lam fails at every width; gated with it",
    "residual": "||(G + lam I) X (A + lam I) - V||_F / ||V||_F: what the answer leaves of the system",
}

TASK = Task(
    name="preconditioning",
    summary="Running Kronecker factors of a layer: update, inversion and application to a gradient",
    contract=(
        "make(d_out, d_in, **hyper) -> p; p.update(a[n, d_in] | None, g[n, d_out] | None) takes the rows of one batch "
        "(a with its ones column, d_in counting it); p.refresh(); p.precondition(V[d_out, d_in]) -> a new tensor, V "
        "untouched; a side that was never given is the identity. Optional: p.place(side, factor) uses a factor by "
        "reference, p.factor(side) returns it; p.online = True says that refresh works on rows and not on a factor"
    ),
    runtime="suites.preconditioning_runtime:RUNTIME",
    oracle="float64 Cholesky solve of the damped system, of the factors as passed",
    needs=("torch",),
    errors=ERRORS,
    primary_error="solve_error",
)

Device = Literal["cpu", "cuda"]
QUICK: tuple[Tier, ...] = ("quick", "standard")
STANDARD: tuple[Tier, ...] = ("standard",)
FULL: tuple[Tier, ...] = ("full",)

#: Share of the largest eigenvalue of the mean factor; the published schedule goes from 0.1 to 0.01 (arXiv 2206.15397,
#: code), and the smaller value is the harder one.
DAMPING = 0.01
#: Factor decay of the randomized K-FAC experiments (their code).
DECAY = 0.95
#: Output side of the layers whose application is timed, and rows of a refresh: batch 256, layers of 512 as in VGG16.
OUTPUTS = 512
ROWS = 256

#: Sizes of VGG16_bn's factors in powers of two beside them; 16,385 is the head of the B-KFAC experiments.
WIDTHS = (64, 128, 256, 513, 577, 1153, 2305, 4609)
WIDEST = 16_385


def _problems(device: Device, tiers: tuple[Tier, ...], kind: str, shapes: Iterable[tuple[int, int]]) -> list[Problem]:
    params: dict[str, Any] = {"damping": DAMPING, "decay": DECAY}
    return [
        Problem(kind=kind, shape=shape, dtype="float32", device=device, tiers=tiers, params=params) for shape in shapes
    ]


#: In the order of importance: a time budget drops whole problems from the end.
CPU = [
    *_problems("cpu", QUICK, "refresh", [(ROWS, d) for d in (64, 128, 256)]),
    *_problems("cpu", QUICK, "apply", [(64, 256)]),
    *_problems("cpu", QUICK, "update", [(1024, 256)]),
    *_problems("cpu", STANDARD, "refresh", [(ROWS, d) for d in (577, 1153)]),
    *_problems("cpu", STANDARD, "apply", [(OUTPUTS, 1153)]),
    *_problems("cpu", STANDARD, "update", [(4096, 577)]),
    *_problems("cpu", STANDARD, "refresh_flat", [(ROWS, 577)]),
    *_problems("cpu", FULL, "refresh", [(ROWS, 2305)]),
    *_problems("cpu", FULL, "update", [(rows, 577) for rows in (256, 1024, 16_384)]),
    *_problems("cpu", FULL, "refresh", [(rows, 1153) for rows in (1024, 4096)]),
]
CUDA = [
    *_problems("cuda", QUICK, "refresh", [(ROWS, d) for d in (513, 1153, 2305)]),
    *_problems("cuda", STANDARD, "refresh", [(ROWS, d) for d in WIDTHS if d not in (513, 1153, 2305)]),
    *_problems("cuda", QUICK, "apply", [(OUTPUTS, 2305)]),
    *_problems("cuda", QUICK, "update", [(16_384, 577)]),
    *_problems("cuda", STANDARD, "apply", [(OUTPUTS, d) for d in (64, 256, 577, 1153, 4609)]),
    *_problems("cuda", STANDARD, "update", [(16_384, d) for d in (64, 1153, 2305, 4609)]),
    *_problems("cuda", STANDARD, "refresh_flat", [(ROWS, 1153)]),
    *_problems("cuda", STANDARD, "update", [(rows, 1153) for rows in (256, 1024)]),
    *_problems("cuda", FULL, "refresh", [(ROWS, 8193), (ROWS, WIDEST)]),
    *_problems("cuda", FULL, "apply", [(OUTPUTS, WIDEST)]),
    *_problems("cuda", FULL, "update", [(1024, WIDEST)]),
    *_problems("cuda", FULL, "refresh", [(rows, 2305) for rows in (64, 1024)]),
    *_problems("cuda", FULL, "refresh_flat", [(ROWS, 4609)]),
]

SUITE = Suite(
    name="preconditioning",
    task=TASK,
    problems=(*CPU, *CUDA),
    baseline="preconditioning.cholesky",
    # A refresh replaces tensors of its state, which a replayed graph would go on reading: no graphs.
    protocol=Protocol(max_inner=25, graph_below_s=0.0),
    weight=0.2,
)
