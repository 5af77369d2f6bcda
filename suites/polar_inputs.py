"""Inputs of the task ``polar``: generators by kind, a function of (problem, seed) alone.

Values depend on kind, shape and seeds, not on dtype or device (up to ``CPU_LIMIT`` elements), so that the same
matrix is met in every precision: it is generated in float32 or float64 and then cast. Members of a batch are
independent draws of one stream.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from harness.catalogue import dataset
from harness.catalogue.suite import Problem
from harness.errors import UserError

#: Inputs with more elements are generated on the device itself: 2^24 normal numbers take a core about 0.2 s.
CPU_LIMIT = 2**24
#: Random orthogonal factors come from a QR factorisation, 2 n^3 operations: about 2 s on a core at 2048.
SPECTRUM_LIMIT = 2048

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

Draw = Callable[[int, int, torch.Generator], torch.Tensor]


def generate(problem: Problem, seed: int) -> torch.Tensor:
    """The input of one problem and seed, contiguous, on the problem's device and in its dtype.

    Raises:
        UserError: unknown kind or dtype, a shape that the kind does not have, or values beyond float16's range.
    """
    if problem.dtype not in DTYPES:
        raise UserError(f"{problem.id}: unknown dtype {problem.dtype!r}; known: {', '.join(DTYPES)}.")
    if len(problem.shape) < 2:
        raise UserError(f"{problem.id}: a polar input has at least two dimensions, got shape {problem.shape}.")
    dtype = DTYPES[problem.dtype]
    if problem.kind.startswith("grad_"):
        matrix = _gradient(problem, seed).to(device=problem.device, dtype=dtype)
    else:
        matrix = _drawn(problem, seed, dtype)
    if dtype is torch.float16 and not bool(torch.isfinite(matrix).all()):
        raise UserError(f"{problem.id}: values exceed float16's 65504; use another dtype for kind {problem.kind!r}.")
    return matrix


def _drawn(problem: Problem, seed: int, dtype: torch.dtype) -> torch.Tensor:
    if problem.kind not in KINDS:
        raise UserError(f"{problem.id}: unknown kind {problem.kind!r}; known: {', '.join(KINDS)}, grad_*.")
    draw = KINDS[problem.kind]
    rows, columns = problem.shape[-2:]
    count = math.prod(problem.shape[:-2])
    on_device = count * rows * columns > CPU_LIMIT
    device = torch.device(problem.device if on_device else "cpu")
    generator = torch.Generator(device=device)
    generator.manual_seed(stream(problem, seed))
    batch = torch.empty(count, rows, columns, dtype=dtype, device=device)
    for member in batch:  # one at a time: a float32 copy of the largest batch would not fit beside it
        member.copy_(draw(rows, columns, generator))
    return batch.reshape(problem.shape).to(problem.device)


def stream(problem: Problem, seed: int) -> int:
    """Seed of the random stream: a hash of kind, shape, the problem's base seed and ``seed``, below 2^63."""
    label = f"{problem.kind}/{problem.shape}/{problem.seed}/{seed}"
    return int.from_bytes(hashlib.sha256(label.encode()).digest()[:8], "big") >> 1


def gaussian(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """Independent standard normal entries, float32."""
    return torch.randn(rows, columns, generator=generator, device=generator.device)


def levy(rows: int, columns: int, generator: torch.Generator, *, alpha: float) -> torch.Tensor:
    """Independent symmetric alpha-stable entries (beta 0, scale 1), float64.

    x = sin(a u) / cos(u)^(1/a) * (cos((1 - a) u) / w)^((1 - a) / a), u uniform on (-pi/2, pi/2), w exponential.
    Source: Chambers, Mallows, Stuck, "A method for simulating stable random variables", JASA 71 (1976), eq. 2.3.
    """
    u = torch.empty(rows, columns, dtype=torch.float64, device=generator.device)
    u.uniform_(-0.5 * math.pi, 0.5 * math.pi, generator=generator)
    w = torch.empty_like(u).exponential_(generator=generator)
    heavy = torch.sin(alpha * u) / torch.cos(u) ** (1 / alpha)
    return heavy * (torch.cos((1 - alpha) * u) / w) ** ((1 - alpha) / alpha)


def logspectrum(rows: int, columns: int, generator: torch.Generator, *, decades: float) -> torch.Tensor:
    """U diag(s) V^T with s spaced evenly on a log scale from 1 down to 10^-decades, float64.

    U and V are Haar distributed: the Q of a gaussian's QR with the signs of R's diagonal removed (Mezzadri 2007,
    "How to generate random matrices from the classical compact groups", Notices AMS 54).

    Raises:
        UserError: a side longer than ``SPECTRUM_LIMIT``.
    """
    if max(rows, columns) > SPECTRUM_LIMIT:
        raise UserError(f"prescribed spectra are made up to {SPECTRUM_LIMIT} a side; got {rows} x {columns}.")
    small = min(rows, columns)
    left, right = _orthonormal(rows, small, generator), _orthonormal(columns, small, generator)
    sigma = torch.logspace(0, -decades, small, dtype=torch.float64, device=generator.device)
    return (left * sigma) @ right.mT


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    normal = torch.randn(rows, columns, generator=generator, dtype=torch.float64, device=generator.device)
    q, r = torch.linalg.qr(normal)
    signed: torch.Tensor = q * torch.sign(torch.diagonal(r))
    return signed


def rowscaled(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """Gaussian with row i times 10^(-2 i / (rows - 1)): row scales over two decades, float32."""
    scale = torch.logspace(0, -2, rows, device=generator.device)
    return scale[:, None] * gaussian(rows, columns, generator)


def lowrank(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """A B / sqrt(r) + 1e-3 N with gaussian A [rows, r], B [r, columns], N and r = min(rows, columns) / 16, float32."""
    rank = max(1, min(rows, columns) // 16)
    left, right = gaussian(rows, rank, generator), gaussian(rank, columns, generator)
    return left @ right / math.sqrt(rank) + 1e-3 * gaussian(rows, columns, generator)


KINDS: Mapping[str, Draw] = {
    "gaussian": gaussian,
    "levy15": functools.partial(levy, alpha=1.5),
    "logspec3": functools.partial(logspectrum, decades=3.0),
    "logspec6": functools.partial(logspectrum, decades=6.0),
    "rowscaled": rowscaled,
    "lowrank": lowrank,
}


def _gradient(problem: Problem, seed: int) -> torch.Tensor:
    """A captured gradient: seed s is captured step s mod count, so that neighbouring seeds differ in content.

    A later round through the steps flips signs (:func:`flip`), an exact symmetry of the task, so that content does
    not come twice.
    """
    stack = gradients(str(problem.params.get("file")), str(problem.params.get("key")))
    if tuple(stack.shape[1:]) != problem.shape:
        raise UserError(f"{problem.id}: the captured matrix is {tuple(stack.shape[1:])}; declare that shape.")
    turn, step = divmod(problem.seed + seed, len(stack))
    return flip(stack[step], stream(problem, seed)) if turn else stack[step].clone()


def flip(batch: torch.Tensor, seed: int) -> torch.Tensor:
    """D1 G D2 with diagonal signs drawn from ``seed``: new content, equal singular values, no rounding.

    Shapes: [..., m, n] -> [..., m, n]. The polar factor turns into D1 (U V^T) D2, and so does every method of the
    registry: the magnitudes of the Gram matrix, which AOL sums, stay.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (
        (torch.randint(2, (side,), generator=generator) * 2 - 1).to(device=batch.device, dtype=batch.dtype)
        for side in batch.shape[-2:]
    )
    return (batch * rows[:, None]).mul_(columns)


@functools.cache
def gradients(name: str, key: str) -> torch.Tensor:
    """One layer's captured gradients [steps, rows, columns] in float32, from the card ``name``.

    Raises:
        UserError: unknown card or key, or bytes whose sha256 is not the card's.
    """
    arrays = _archive(name)
    if key not in arrays:
        known = ", ".join(sorted(k for k in arrays if not k.endswith(".scale")))
        raise UserError(f"data set {name!r} has no matrix {key!r}; it has {known}.")
    scale = arrays[f"{key}.scale"]
    return torch.from_numpy(arrays[key].astype(np.float32) * scale[:, None, None])


def _archive(name: str) -> dict[str, Any]:
    card = dataset.card(name)
    raw = card.file(str(card.fields["file"])).read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != card.fields["sha256"]:
        raise UserError(
            f"data set {name!r}: {card.fields['file']} has sha256 {found}, the card says {card.fields['sha256']}; "
            f"restore the file with git, or capture anew with {card.fields['command']!r}."
        )
    with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
        return dict(archive)
