"""Low-rank inverses without a decomposition: a subspace carried along, orthonormalised and inverted by Cholesky.

The leading subspace of a running mean drifts slowly, so one product M Q with the basis before follows it (orthogonal
iteration; Golub and Van Loan, 8.2). With Q orthonormal and T = Q^T M Q, Woodbury's identity gives

    (Q T Q^T + lam I)^-1 = Q [(T + lam I)^-1 - I / lam] Q^T + I / lam,

for which T needs no eigenvectors: only products and Cholesky factorisations of w x w matrices, w = r + oversampling,
all sizes in one batch, and no wait for the device. This inverse, and that all w modes are kept, is our departure from
arXiv 2206.15397, which cuts to r by a singular value decomposition.

Orthonormalisation: Cholesky QR twice (Yamamoto et al., ETNA 2015), stable for condition numbers up to about 1e3 in
float32. The iteration therefore multiplies by M + delta I, which has the same eigenvectors: with Q orthonormal and
delta = 1e-3 of the largest eigenvalue, the condition of (M + delta I) Q is at most 1001, however singular M is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from methods.kfac import damping as damping_
from methods.kfac import products
from methods.kfac.inverse.base import LinAlgError, State
from methods.kfac.inverse.cholesky import Cholesky
from methods.kfac.inverse.low_rank import Sketched
from methods.kfac.products import multiply

#: delta over the largest eigenvalue; see the module.
_SHIFT = 1e-3
#: Products of the first refresh of a factor, begun at random columns (the published code's count of power iterations).
_COLD = 4
#: Products with T that estimate its largest eigenvalue; its first basis vector is near the leading one.
_POWER_STEPS = 8
#: Smallest pivot of the second Cholesky factor for the basis to count as orthonormal; 1 for orthonormal columns.
_PIVOT = 0.1
_TINY = 1e-30

_Work = tuple[Tensor, Tensor, State | None]


class Subspace(Sketched):
    """See the module.

    Args:
        rank: r; w = r + oversampling modes are kept, at most d.
        oversampling: further modes.
        power: products that move the basis at each refresh, before the one that gives T.
        dense: factors with d <= 2 w (w of the first rank) are inverted by Cholesky: exact, and the apply costs no more.
        continuation: the modes that were not kept count as the smallest diagonal entry of T, not as 0.
        relative: the damping given is a share of the largest eigenvalue.
        seed: of the first refresh's random columns.
    """

    takes_all = True
    wide: Mapping[str, tuple[int, ...]] = {"inverse": (1, 2), "vectors": (1,)}

    def __init__(
        self,
        rank: int = 220,
        oversampling: int = 10,
        power: int = 1,
        dense: bool = True,
        continuation: bool = False,
        relative: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(rank, oversampling, power, continuation, relative, seed)
        self._dense_up_to = 2 * (rank + oversampling) if dense else 0
        self._cholesky = Cholesky()

    def allocate(self, matrices: Tensor) -> State:
        """The identity: an empty core, t = 1."""
        count, size = matrices.shape[:2]
        if size <= self._dense_up_to:
            return self._cholesky.allocate(matrices)
        width = min(self.rank + self.oversampling, size)
        return {
            "vectors": torch.eye(size, width, dtype=matrices.dtype, device=matrices.device).repeat(count, 1, 1),
            "values": matrices.new_zeros(count, width),
            "core": matrices.new_zeros(count, width, width),
            "rest": matrices.new_ones(count),
        }

    # -- the rank ------------------------------------------------------------------------------------------------------

    def kept(self, state: State) -> int:
        """Rank of a state; a dense one has all of them."""
        if "inverse" in state:
            return state["inverse"].shape[1]
        size, width = state["vectors"].shape[1:]
        return width if width == size else width - self.oversampling

    def size(self, state: State) -> int:
        """Width d of a state's matrices."""
        return state["inverse" if "inverse" in state else "vectors"].shape[1]

    def ratio(self, state: State) -> Tensor:
        """Smallest over largest diagonal entry of T among the first r: an estimate of that of the eigenvalues."""
        if "inverse" in state:
            return state["inverse"].new_zeros(())
        values = state["values"][:, : self.kept(state)]
        return (values.amin(1) / values.amax(1).clamp_min(_TINY)).amax()

    def resized(self, state: State, rank: int) -> State:
        """Cut, or filled up with orthonormal columns that the core leaves out."""
        if "inverse" in state:
            return state
        vectors, values, core = state["vectors"].to(state["core"].dtype), state["values"], state["core"]
        old, width = vectors.shape[2], min(rank + self.oversampling, vectors.shape[1])
        if width <= old:
            cut = {"vectors": vectors[:, :, :width], "values": values[:, :width], "core": core[:, :width, :width]}
            return state | {key: value.contiguous() for key, value in cut.items()}
        drawn = self.columns(vectors, width)[:, :, old:]
        for _ in range(2):
            drawn = torch.linalg.qr(drawn - vectors @ (vectors.mT @ drawn)).Q
        larger = core.new_zeros(len(core), width, width)
        larger[:, :old, :old] = core
        grown = torch.cat([values, values.new_zeros(len(values), width - old)], 1)
        return state | {"vectors": torch.cat([vectors, drawn], 2), "values": grown, "core": larger}

    # -- a refresh -----------------------------------------------------------------------------------------------------

    def refresh(self, matrices: Tensor, damping: Tensor, state: State | None) -> tuple[State, Tensor]:
        """One stack; see :meth:`refresh_all`."""
        return self.refresh_all([(matrices, damping, state)])[0]

    def refresh_all(self, jobs: Sequence[_Work]) -> list[tuple[State, Tensor]]:
        """Small factors by Cholesky, equal sizes stacked; the others' small matrices stacked by width."""
        found: dict[int, tuple[State, Tensor]] = {}
        groups: dict[tuple[object, ...], list[int]] = {}
        for index, (matrices, _, state) in enumerate(jobs):
            size = matrices.shape[1]
            if size <= self._dense_up_to:
                kind: tuple[object, ...] = ("dense", size)
            elif state is None:
                kind = ("cold", min(self.rank + self.oversampling, size))
            else:
                kind = ("warm", state["vectors"].shape[2])
            groups.setdefault((*kind, matrices.dtype, matrices.device), []).append(index)
        for (kind_, *_), members in groups.items():
            work = [jobs[index] for index in members]
            done = self._exact(work) if kind_ == "dense" else self._low(work, kind_ == "cold")
            found.update(zip(members, done, strict=True))
        return [found[index] for index in range(len(jobs))]

    def _exact(self, work: Sequence[_Work]) -> list[tuple[State, Tensor]]:
        matrices, damping = torch.cat([m for m, _, _ in work]), torch.cat([d for _, d, _ in work])
        if self.relative:
            damping = damping * damping_.largest(matrices)
        state, good = self._cholesky.refresh(matrices, damping, None)
        counts = [len(m) for m, _, _ in work]
        parts = zip(state["inverse"].split(counts), good.split(counts), strict=True)  # type: ignore[no-untyped-call]
        return [({"inverse": inverse}, one) for inverse, one in parts]

    def _low(self, work: Sequence[_Work], cold: bool) -> list[tuple[State, Tensor]]:
        matrices = [m for m, _, _ in work]
        try:
            bases, good = self._cold(matrices) if cold else self._warm(work)
        except LinAlgError:
            return [
                (self.allocate(m) if state is None else state, torch.zeros(len(m), dtype=torch.bool, device=m.device))
                for m, _, state in work
            ]
        return self._finish(work, bases, good)

    def _warm(self, work: Sequence[_Work]) -> tuple[list[Tensor], Tensor]:
        bases, shifts = [], []
        for matrices, _, state in work:
            assert state is not None
            bases.append(state["vectors"].to(matrices.dtype))
            top = torch.maximum(state["values"].amax(1), damping_.mean_diagonal(matrices))
            shifts.append((_SHIFT * top)[:, None, None])
        good = torch.ones(sum(len(m) for m, _, _ in work), dtype=torch.bool, device=bases[0].device)
        for _ in range(self.power):
            # ``@`` dispatches five operations where one product is one.
            moved = [torch.bmm(m, q).add_(s * q) for (m, _, _), q, s in zip(work, bases, shifts, strict=True)]
            bases, fine = orthonormal(moved)
            good = good & fine
        return bases, good

    def _cold(self, matrices: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Begun at random columns, with Householder's QR, and turned into the eigenbasis."""
        bases = []
        for m in matrices:
            basis = self.columns(m, min(self.rank + self.oversampling, m.shape[1]))
            for _ in range(_COLD + 1):
                basis = torch.linalg.qr(m @ basis).Q
            bases.append(basis @ torch.linalg.eigh(basis.mT @ m @ basis).eigenvectors.flip(2))
        flags = [basis[:, 0].isfinite().all(1) for basis in bases]
        return bases, torch.cat(flags)

    def _finish(self, work: Sequence[_Work], bases: Sequence[Tensor], good: Tensor) -> list[tuple[State, Tensor]]:
        """T, lam, t and the core of all, w x w matrices in one batch."""
        moved = [torch.bmm(m, q) for (m, _, _), q in zip(work, bases, strict=True)]
        with products.scope("float32"):  # A basis has to be orthonormal to more than 10 bits.
            small = torch.cat([torch.bmm(q.mT, y) for q, y in zip(bases, moved, strict=True)])
            small = (small + small.mT) / 2
            values = small.diagonal(dim1=1, dim2=2).clamp_min(0.0).contiguous()
            lam = torch.cat([d for _, d, _ in work])
            if self.relative:
                lam = (lam * damping_.largest(small, _POWER_STEPS)).clamp_min(_TINY)
            state, fine = self._cholesky.refresh(small, lam, None)
        rest = lam + values.amin(1) if self.continuation else lam
        core = state["inverse"]
        core.diagonal(dim1=1, dim2=2).sub_(1 / rest[:, None])
        good = good & fine
        counts = [len(m) for m, _, _ in work]
        pieces = [t.split(counts) for t in (values, core, rest, good)]  # type: ignore[no-untyped-call]
        return [
            ({"vectors": q, "values": v, "core": c, "rest": r}, g) for q, v, c, r, g in zip(bases, *pieces, strict=True)
        ]

    def apply(self, state: State, columns: Tensor) -> Tensor:
        """Two thin products and a small one, or one with a dense inverse."""
        if "inverse" in state:
            return multiply(state["inverse"], columns)
        vectors = state["vectors"]
        inner = torch.bmm(state["core"], multiply(vectors.mT, columns))
        found = multiply(vectors, inner)
        if found.is_cuda:
            return found.addcdiv_(columns, state["rest"][:, None, None])
        return found + columns / state["rest"][:, None, None]

    def apply_right(self, state: State, rows: Tensor) -> Tensor:
        """X (M + damping I)^-1; on a GPU from the right, where a sum over transposed memory would cost the most."""
        return self.from_the_right(state, rows) if rows.is_cuda else super().apply_right(state, rows)

    def from_the_right(self, state: State, rows: Tensor) -> Tensor:
        """As :meth:`apply` of the transposed, up to rounding: all matrices are symmetric."""
        if "inverse" in state:
            return multiply(rows, state["inverse"])
        vectors = state["vectors"]
        inner = torch.bmm(multiply(rows, vectors), state["core"])
        return multiply(inner, vectors.mT).addcdiv_(rows, state["rest"][:, None, None])


def orthonormal(stacks: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Orthonormal bases of stacks (k_i, d_i, w) by Cholesky QR twice, and whether each went well: (sum k_i,) bool.

    The Gram matrices of all sizes are factorised in one batch; columns are scaled to 1 inside the small factors.
    """
    counts = [len(stack) for stack in stacks]
    bases = list(stacks)
    good: Tensor | None = None
    with products.scope("float32"):  # A basis has to be orthonormal to more than 10 bits.
        for _ in range(2):
            gram = torch.cat([torch.bmm(basis.mT, basis) for basis in bases])
            scale = gram.diagonal(dim1=1, dim2=2).clamp_min(_TINY).rsqrt()
            factor, info = torch.linalg.cholesky_ex(gram * scale[:, :, None] * scale[:, None, :], check_errors=False)
            eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device).expand_as(gram)
            root = torch.linalg.solve_triangular(factor, eye, upper=False).mT * scale[:, :, None]
            pieces = root.split(counts)  # type: ignore[no-untyped-call]
            bases = [torch.bmm(b, r) for b, r in zip(bases, pieces, strict=True)]
            fine = info == 0
            good = fine if good is None else good & fine & (factor.diagonal(dim1=1, dim2=2).amin(1) > _PIVOT)
    assert good is not None
    return bases, good & root.diagonal(dim1=1, dim2=2).sum(1).isfinite()
