"""The true answer of the task ``polar`` in float64, and the error metrics against it.

Notation: X = U diag(s) V^T; the polar factor is U V^T; "wide" means that a tall matrix is transposed first, so that
rows are the smaller side. All numbers are float64, on the device of the content.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from harness.errors import Unsupported
from suites import polar_cache
from suites.polar_iteration import dominant_projector, polar_by_iteration

#: Part of the key of every stored oracle; raise it when a number below changes.
VERSION = 1
#: Longest smaller side that is decomposed; beyond it the float64 iteration is the oracle. On one H100 the SVD takes
#: 0.4 s at 2048, the iteration with its projector 0.3 s at 4096 and 2.2 s at 8192.
SVD_LIMIT = 2048
#: Longest smaller side for which the floor of a diagonal preconditioner is computed: it needs a second decomposition.
FLOOR_LIMIT = 1024
#: Members of a batch that are judged. A batch is one kernel launch over equal members: four of them, drawn anew for
#: every content, catch a wrong index while the check stays far cheaper than the call.
MEMBERS = 4
#: Above this smaller side one member is judged, drawn anew for every content: its oracle costs as much as the call.
MANY_LIMIT = 1024
#: Singular directions that an iteration of five steps is expected to resolve: sigma >= 0.02 ||G||_F. Three rows of
#: the usual five-row quintic table (4.0848 ..., 3.9505 ..., 3.7418 ...) carry 0.02 to 1.02 in exact arithmetic.
RESOLVED = 0.02


@dataclass(frozen=True, kw_only=True)
class PolarPart:
    """The oracle of one matrix, wide [n, m].

    Attributes:
        index: place in the flattened batch.
        polar: U V^T; of a rank-deficient matrix the partial isometry over its ``rank`` leading directions, which is
            the one polar factor that is unique then (Higham 2008, "Functions of Matrices", theorem 8.1).
        basis: B with B B^T the projector onto the directions with sigma >= 0.02 ||G||_F: U_k [n, k] from the
            decomposition, or the projector itself [n, n] from the iteration.
        count: k, the number of those directions.
        rank: numerical rank, sigma > n eps sigma_max.
        nuclear: sum of the singular values.
        sigma: singular values in descending order; None when the iteration made the oracle.
        bias_floor: see :func:`bias_floor`; None above ``FLOOR_LIMIT``.
    """

    index: int
    polar: torch.Tensor
    basis: torch.Tensor
    count: int
    rank: int
    nuclear: float
    sigma: torch.Tensor | None
    bias_floor: float | None


@dataclass(frozen=True, kw_only=True)
class PolarOracle:
    """Oracles of the judged members of one content."""

    parts: tuple[PolarPart, ...]


def solve(content: torch.Tensor) -> PolarOracle:
    """Oracle of a content [..., m, n]; batches by at most ``MEMBERS`` sampled members.

    Raises:
        Unsupported: a content with NaN or infinity, a zero matrix, or one above ``SVD_LIMIT`` without full rank.
    """
    batch = content.reshape(-1, *content.shape[-2:])
    return PolarOracle(parts=tuple(_stored(batch[index], index) for index in sampled(content)))


def sampled(content: torch.Tensor) -> tuple[int, ...]:
    """Judged members: all up to ``MEMBERS`` (one, if large), else drawn by a hash of the content's first row."""
    count = math.prod(content.shape[:-2])
    wanted = MEMBERS if min(content.shape[-2:]) <= MANY_LIMIT else 1
    if count <= wanted:
        return tuple(range(count))
    first = content.reshape(-1, content.shape[-1])[0].double().cpu().numpy().tobytes()
    draw = np.random.default_rng(int.from_bytes(hashlib.sha256(first).digest()[:8], "big"))
    return tuple(sorted(int(index) for index in draw.choice(count, wanted, replace=False)))


def wide(matrix: torch.Tensor) -> torch.Tensor:
    """The float64 matrix with its smaller side first."""
    return (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT).double()


def solve_one(matrix: torch.Tensor, index: int = 0) -> PolarPart:
    """Oracle of one matrix [m, n], computed."""
    x = wide(matrix)
    peak = float(x.abs().max())
    if not math.isfinite(peak):
        raise Unsupported("the oracle of a matrix with NaN or infinity does not exist; pass finite inputs.")
    if peak == 0.0:
        raise Unsupported("the zero matrix has no direction to orthogonalize; pass another input.")
    scaled = x / peak  # squares of 1e-200 and 1e200 must not leave the range
    threshold = RESOLVED * float(torch.linalg.matrix_norm(scaled))
    if x.shape[0] > SVD_LIMIT:
        return _by_iteration(scaled, threshold, index, peak)
    polar, left, sigma, rank = svd_polar(scaled)
    count = max(1, int((sigma >= threshold).sum()))
    return PolarPart(
        index=index,
        polar=polar,
        basis=left[:, :count].clone(),
        count=count,
        rank=rank,
        nuclear=peak * float(sigma.sum()),
        sigma=peak * sigma,
        bias_floor=_floor(scaled, polar, rank) if x.shape[0] <= FLOOR_LIMIT else None,
    )


def svd_polar(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Canonical polar factor, U, singular values and numerical rank of a wide matrix by SVD.

    A matrix wider than 3 : 2 is reduced by QR first, which costs less than half and is as stable.
    """
    frame: torch.Tensor | None = None
    core = x
    if 2 * x.shape[1] > 3 * x.shape[0]:
        frame, triangle = torch.linalg.qr(x.mT)
        core = triangle.mT
    left, sigma, right = torch.linalg.svd(core, full_matrices=False)
    rank = int((sigma > x.shape[0] * torch.finfo(torch.float64).eps * sigma[0]).sum())
    polar = left[:, :rank] @ right[:rank]
    return (polar if frame is None else polar @ frame.mT), left, sigma, rank


def _by_iteration(x: torch.Tensor, threshold: float, index: int, peak: float) -> PolarPart:
    polar = polar_by_iteration(x)
    psd = x @ polar.mT
    projector = dominant_projector(0.5 * (psd + psd.mT), threshold)
    count = round(float(torch.trace(projector)))
    if count == 0:
        raise Unsupported(
            f"no singular value of this {x.shape[0]} x {x.shape[1]} matrix reaches {RESOLVED} of its Frobenius norm, "
            f"so the gate has nothing to look at; use a smaller matrix."
        )
    nuclear = peak * float(torch.trace(psd))
    return PolarPart(
        index=index,
        polar=polar,
        basis=projector,
        count=count,
        rank=x.shape[0],
        nuclear=nuclear,
        sigma=None,
        bias_floor=None,
    )


def bias_floor(content: torch.Tensor) -> float:
    """Polar error that the AOL rescaling leaves, however well its result is orthogonalized.

    ||polar(D X) - polar(X)||_F / sqrt(r), D = diag((sum_j |X X^T|_ij)^(-1/2)) on the smaller side, r the rank.
    It is a property of the input: polar(D X) differs from polar(X) unless D is a multiple of the identity.
    Shapes: [m, n] -> a number. Source of D: Prach, Lampert 2022, arXiv 2208.03160.
    """
    x = wide(content)
    x = x / x.abs().max()
    polar, _, _, rank = svd_polar(x)
    return _floor(x, polar, rank)


def _floor(x: torch.Tensor, polar: torch.Tensor, rank: int) -> float:
    rows = (x @ x.mT).abs().sum(1)
    scale = torch.where(rows > 0, rows, torch.ones_like(rows)).rsqrt()
    rescaled = svd_polar(scale[:, None] * x)[0]
    return float(torch.linalg.matrix_norm(rescaled - polar)) / math.sqrt(rank)


def errors_of(
    output: torch.Tensor, content: torch.Tensor, part: PolarPart, reference_output: torch.Tensor | None
) -> dict[str, float]:
    """Every metric of one output matrix, all of them float64 and dimensionless.

    polar_error = ||X - UV^T||_F / sqrt(r), r the rank (the smaller side of a full-rank input). Of a rank-deficient
    input every completion of U V^T is a polar factor, so what X does from the kernel to the cokernel is left out.
    orthogonality_error = ||X X^T - I||_F / sqrt(n).
    sigma_* = quantiles of X's singular values, from the eigenvalues of X X^T: values below about 1e-7 of the
    largest are not resolved.
    cosine = <X, UV^T> / (||X||_F ||UV^T||_F); dual_gap = 1 - <G, X> / ||G||_*.
    projected_error = ||U_k^T X V_k - I||_F / sqrt(k), computed as ||B^T (X polar^T) B - B^T B||_F / sqrt(k), which
    is the same because V_k = polar^T U_k; fidelity_error is the same projection of X - X_ref.
    """
    x, g, polar, basis = wide(output), wide(content), part.polar, part.basis
    gram = x @ x.mT
    squares = torch.linalg.eigvalsh(gram).clamp(min=0.0)
    sigma = squares.sqrt()
    low, middle, high = torch.quantile(sigma, torch.tensor([0.02, 0.5, 0.98], dtype=x.dtype, device=x.device)).tolist()
    gram.diagonal().sub_(1.0)
    norm = float(torch.linalg.matrix_norm(x))
    core = basis.mT @ _against(x, polar, basis)
    errors = {
        "polar_error": float(torch.linalg.matrix_norm(_determined(x, part) - polar)) / math.sqrt(part.rank),
        "orthogonality_error": float(torch.linalg.matrix_norm(gram)) / math.sqrt(x.shape[0]),
        "sigma_min": float(sigma[0]),
        "sigma_p02": low,
        "sigma_p50": middle,
        "sigma_p98": high,
        "sigma_max": float(sigma[-1]),
        "cosine": float((x * polar).sum()) / (norm * math.sqrt(part.rank)) if norm > 0.0 else 0.0,
        "dual_gap": 1.0 - float((g * x).sum()) / part.nuclear,
        "projected_error": float(torch.linalg.matrix_norm(core - basis.mT @ basis)) / math.sqrt(part.count),
        "rescaling_error": rescaling_error(g, part),
    }
    if part.bias_floor is not None:
        errors["bias_floor"] = part.bias_floor
    if reference_output is not None:
        difference = x - wide(reference_output)
        projected = basis.mT @ _against(difference, polar, basis)
        errors["fidelity_error"] = float(torch.linalg.matrix_norm(projected)) / math.sqrt(part.count)
        errors["fidelity_full"] = float(torch.linalg.matrix_norm(difference)) / math.sqrt(x.shape[0])
    return errors


def rescaling_error(g: torch.Tensor, part: PolarPart) -> float:
    """Polar error of the best scalar multiple of the input, sqrt(1 - cos^2(G, U V^T)): what doing nothing achieves."""
    norm = float(torch.linalg.matrix_norm(g))
    cosine = part.nuclear / (norm * math.sqrt(part.rank)) if norm > 0.0 else 0.0
    return math.sqrt(max(0.0, 1.0 - min(1.0, cosine) ** 2))


def glance_at(output: torch.Tensor, part: PolarPart) -> dict[str, float]:
    """The cheap errors of one output matrix: ``polar_error``, ``orthogonality_error`` and ``cosine`` as above."""
    x = wide(output)
    gram = x @ x.mT
    gram.diagonal().sub_(1.0)
    norm = float(torch.linalg.matrix_norm(x))
    return {
        "polar_error": float(torch.linalg.matrix_norm(_determined(x, part) - part.polar)) / math.sqrt(part.rank),
        "orthogonality_error": float(torch.linalg.matrix_norm(gram)) / math.sqrt(x.shape[0]),
        "cosine": float((x * part.polar).sum()) / (norm * math.sqrt(part.rank)) if norm > 0.0 else 0.0,
    }


def _determined(x: torch.Tensor, part: PolarPart) -> torch.Tensor:
    """X without (I - U U^T) X (I - V V^T), which a rank-deficient input leaves open; X itself at full rank."""
    if part.rank == x.shape[0]:
        return x
    polar = part.polar
    rest = x - polar @ (polar.mT @ x)
    return x - (rest - (rest @ polar.mT) @ polar)


def _against(x: torch.Tensor, polar: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """X polar^T B, in the cheaper order."""
    return x @ (polar.mT @ basis) if basis.shape[1] < x.shape[0] else (x @ polar.mT) @ basis


def _stored(matrix: torch.Tensor, index: int) -> PolarPart:
    """The oracle of one matrix from the disk cache, or computed and put there (decompositions only)."""
    small = min(matrix.shape)
    too_large = 8 * (matrix.numel() + small * small) > polar_cache.ENTRY_BYTES
    if too_large or small > SVD_LIMIT:
        return solve_one(matrix, index)
    key = _key(matrix)
    kept = polar_cache.load(key)
    part = _unpack(kept, matrix, index) if kept is not None else None
    if part is None:
        part = solve_one(matrix, index)
        polar_cache.save(key, _pack(part))
    return part


def _key(matrix: torch.Tensor) -> str:
    raw = matrix.contiguous().flatten().view(torch.uint8).cpu().numpy()
    label = f"polar/{VERSION}/{tuple(matrix.shape)}/{matrix.dtype}/"
    return hashlib.sha256(label.encode() + raw.tobytes()).hexdigest()


def _pack(part: PolarPart) -> Mapping[str, np.ndarray]:
    assert part.sigma is not None
    floor = math.nan if part.bias_floor is None else part.bias_floor
    return {
        "polar": part.polar.cpu().numpy(),
        "basis": part.basis.cpu().numpy(),
        "sigma": part.sigma.cpu().numpy(),
        "numbers": np.array([part.rank, part.nuclear, floor]),
    }


def _unpack(kept: Mapping[str, np.ndarray], matrix: torch.Tensor, index: int) -> PolarPart | None:
    small, large = sorted(matrix.shape)
    try:
        polar, basis, sigma, numbers = (kept[name] for name in ("polar", "basis", "sigma", "numbers"))
    except KeyError:
        return None
    if polar.shape != (small, large) or sigma.shape != (small,) or basis.shape[:1] != (small,) or numbers.shape != (3,):
        return None
    return PolarPart(
        index=index,
        polar=torch.from_numpy(polar).to(matrix.device),
        basis=torch.from_numpy(basis).to(matrix.device),
        count=basis.shape[1],
        rank=int(numbers[0]),
        nuclear=float(numbers[1]),
        sigma=torch.from_numpy(sigma).to(matrix.device),
        bias_floor=None if math.isnan(numbers[2]) else float(numbers[2]),
    )
