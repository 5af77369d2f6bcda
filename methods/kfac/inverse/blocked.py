"""Inverse of symmetric positive definite matrices by blocks: small factorisations, everything else large products.

A library's factorisation of one wide matrix is bound by its panels' latency and its triangular solve against the
identity does three times the work that the inverse of a triangle needs. Here the diagonal blocks are factored (or taken
out of the library's factor) and inverted together; then, for a split at the middle,

    [L11  0 ]^-1   [ W11             0  ]
    [L21 L22]    = [-W22 L21 W11    W22 ],       M^-1 = W^T W.

Factor and W are computed in IEEE float32 (TF32 would lose definiteness); the last product in the precision around it.
Golub and Van Loan, Matrix Computations, 4.2.9 and 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from methods.kfac.inverse.base import eye_like, shared_eye
from methods.kfac.products import scope

#: Panels of the last product; each leaves out the zeros of W below it.
PANELS = 4


def widths(size: int, leaf: int) -> tuple[int, int]:
    """Number and width of equal blocks, a multiple of 8, at most about ``leaf`` wide, that cover ``size``."""
    count = max(1, -(-size // leaf))
    return count, -(-size // (8 * count)) * 8


def inverse(matrices: Tensor, damping: Tensor, leaf: int, library: bool) -> tuple[Tensor, Tensor]:
    """(M + damping I)^-1 of (k, d, d), padded with zeros to (k, w, w), and whether each is good: (k,) bool.

    Args:
        matrices: M, not changed.
        damping: (k,).
        leaf: width of the diagonal blocks.
        library: factor the whole matrix by the library instead of by blocks.
    """
    k, size = matrices.shape[:2]
    count, block = widths(size, leaf)
    wide = count * block
    work = matrices.new_zeros(k, wide, wide)
    work[:, :size, :size] = matrices
    diagonal = work.diagonal(dim1=1, dim2=2)
    diagonal[:, :size] += damping[:, None]
    diagonal[:, size:] = 1.0
    with scope("float32"):
        if library:
            work, info = torch.linalg.cholesky_ex(work, check_errors=False)
            root = _leaves(work, count, block)
        else:
            root, info = _factor(work, count, block)
        _join(work, root, 0, count, block)
    found = _square(root)
    found[:, size:] = 0.0
    found[:, :, size:] = 0.0
    return found, (info == 0) & found.diagonal(dim1=1, dim2=2).sum(1).isfinite()


def _leaves(factor: Tensor, count: int, block: int) -> Tensor:
    """Zeros with the inverses of the factor's diagonal blocks in their places."""
    root = torch.zeros_like(factor)
    cut = torch.cat([factor[:, i * block : (i + 1) * block, i * block : (i + 1) * block] for i in range(count)])
    solved = torch.linalg.solve_triangular(cut, eye_like(cut), upper=False)
    for i, one in enumerate(solved.split(len(factor))):  # type: ignore[no-untyped-call]
        root[:, i * block : (i + 1) * block, i * block : (i + 1) * block] = one
    return root


def _factor(work: Tensor, count: int, block: int) -> tuple[Tensor, Tensor]:
    """Right-looking factorisation in place (strictly lower blocks); returns the inverted diagonal blocks and info."""
    root = torch.zeros_like(work)
    infos = []
    wide = count * block
    eye = shared_eye(work[:, :block, :block])
    for start in range(0, wide, block):
        end = start + block
        factor, info = torch.linalg.cholesky_ex(_part(work, start, end, start, end), check_errors=False)
        infos.append(info)
        own = torch.linalg.solve_triangular(factor, eye, upper=False)
        _part(root, start, end, start, end).copy_(own)
        if end < wide:
            below = _part(work, end, wide, start, end)
            panel = torch.bmm(below, own.mT)
            below.copy_(panel)
            _part(work, end, wide, end, wide).baddbmm_(panel, panel.mT, alpha=-1)
    return root, torch.stack(infos).sum(0)


def _join(factor: Tensor, root: Tensor, low: int, high: int, block: int) -> None:
    """Fill in the blocks of W below the diagonal, halves first."""
    if high - low == 1:
        return
    middle = (low + high) // 2
    _join(factor, root, low, middle, block)
    _join(factor, root, middle, high, block)
    first, second, end = low * block, middle * block, high * block
    below = torch.bmm(_part(factor, second, end, first, second), _part(root, first, second, first, second))
    target = _part(root, second, end, first, second)
    target.baddbmm_(_part(root, second, end, second, end), below, beta=0, alpha=-1)


def _part(matrices: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    """Rows and columns of a stack in one view."""
    _, down, across = matrices.stride()
    place = matrices.storage_offset() + top * down + left * across
    return matrices.as_strided((len(matrices), bottom - top, right - left), matrices.stride(), place)


def _square(root: Tensor) -> Tensor:
    """W^T W for lower triangular W."""
    wide = root.shape[1]
    height = -(-wide // (8 * PANELS)) * 8
    if wide < 1024:
        return torch.bmm(root.mT, root)
    found = torch.empty_like(root)
    for start in range(0, wide, height):
        end = min(start + height, wide)
        left, right = _part(root, start, wide, start, end), _part(root, start, wide, 0, end)
        _part(found, start, end, 0, end).copy_(torch.bmm(left.mT, right))
        if start:
            _part(found, 0, start, start, end).copy_(_part(found, start, end, 0, start).mT)
    return found
