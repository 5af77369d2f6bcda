"""Factors and rows of the suite ``preconditioning``: known spectra in dense, fast orthogonal bases."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.catalogue.suite import Problem

#: Exponent of the eigenvalues' fall by kind of problem. Input factors of trained networks keep of the order of ten
#: modes within 1/33 of the largest, which i^-1.5 does.
EXPONENT = {"": 1.5, "flat": 0.5}
#: Rows of the batch that prior states of methods on rows are made with.
ROWS_OF_STATE = 256
#: Smallest eigenvalue: the floor that the running mean's rounding and constant pixels leave.
FLOOR = 1e-6
#: Signs and draws of prior factors come from here, contents from seeds above.
_PRIOR = 31


def operation(problem: Problem) -> str:
    """``refresh``, ``apply`` or ``update``."""
    return problem.kind.partition("_")[0]


def spectrum(problem: Problem, width: int) -> Tensor:
    """Eigenvalues, largest first and 1, in float64 on the problem's device."""
    index = torch.arange(1, width + 1, dtype=torch.float64, device=problem.device)
    return (index ** -EXPONENT[problem.kind.partition("_")[2]]).clamp_min(FLOOR)


def mixed(rows: Tensor, seed: int) -> Tensor:
    """Rows times a dense orthogonal matrix: random signs and two Hartley transforms, O(d log d) a row.

    The Hartley transform cas(2 pi j k / d) / sqrt(d) is orthogonal for every d and is Re - Im of Fourier's.
    """
    width = rows.shape[-1]
    generator = torch.Generator().manual_seed(_PRIOR * width + seed)
    for _ in range(2):
        signs = torch.randint(0, 2, (width,), generator=generator).to(rows.device, rows.dtype) * 2 - 1
        spectral = torch.fft.fft(rows * signs, norm="ortho")
        rows = spectral.real - spectral.imag
    return rows


def prior(problem: Problem, width: int) -> Tensor:
    """The running factor before the newest batch, (width, width), symmetric: Q diag(spectrum) Q^T."""
    root = mixed(spectrum(problem, width).sqrt().diag().to(_dtype(problem)), problem.seed)
    whole = root.mT @ root
    return (whole + whole.mT) / 2


def rows(problem: Problem, width: int, count: int, seed: int) -> Tensor:
    """Gaussian rows (count, width) whose second moment is that of ``prior`` in the mean."""
    generator = torch.Generator(problem.device).manual_seed(7_919 * (problem.seed + 1) + seed)
    drawn = torch.randn(count, width, generator=generator, device=problem.device, dtype=_dtype(problem))
    return mixed(drawn * spectrum(problem, width).sqrt().to(drawn.dtype), problem.seed)


def gaussian(problem: Problem, shape: tuple[int, int], seed: int) -> Tensor:
    """Independent normal entries."""
    generator = torch.Generator(problem.device).manual_seed(104_729 * (problem.seed + 1) + seed)
    return torch.randn(*shape, generator=generator, device=problem.device, dtype=_dtype(problem))


def _dtype(problem: Problem) -> torch.dtype:
    found: torch.dtype = getattr(torch, problem.dtype)
    return found
