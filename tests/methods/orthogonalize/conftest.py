from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

Make = Callable[..., torch.Tensor]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _levy(*shape: int, alpha: float = 1.5, seed: int = 0) -> torch.Tensor:
    """Symmetric alpha-stable entries by Chambers, Mallows and Stuck (1976)."""
    generator = torch.Generator().manual_seed(seed)
    angle = (torch.rand(*shape, generator=generator, dtype=torch.float64) - 0.5) * math.pi
    wait = -torch.log(torch.rand(*shape, generator=generator, dtype=torch.float64))
    heavy = (torch.cos((1 - alpha) * angle) / wait) ** ((1 - alpha) / alpha)
    return torch.sin(alpha * angle) / torch.cos(angle) ** (1 / alpha) * heavy


def _rows_scaled(n: int, m: int, decades: float = 2.0, seed: int = 0) -> torch.Tensor:
    return _gaussian(n, m, seed=seed) * torch.logspace(0, -decades, n, dtype=torch.float64)[:, None]


def _spectrum(n: int, m: int, decades: float = 3.0, seed: int = 0) -> torch.Tensor:
    left = torch.linalg.qr(_gaussian(n, n, seed=seed))[0]
    right = torch.linalg.qr(_gaussian(m, n, seed=seed + 1))[0]
    return left * torch.logspace(0, -decades, n, dtype=torch.float64) @ right.T


@pytest.fixture
def make() -> dict[str, Make]:
    return {"gaussian": _gaussian, "levy": _levy, "rows": _rows_scaled, "spectrum": _spectrum}


def _polar(G: torch.Tensor) -> torch.Tensor:
    U, _, Vh = torch.linalg.svd(G.double(), full_matrices=False)
    return U @ Vh


@pytest.fixture
def polar() -> Make:
    """The oracle: the polar factor by a float64 SVD."""
    return _polar


@pytest.fixture
def polar_error() -> Callable[[torch.Tensor, torch.Tensor], float]:
    def error(X: torch.Tensor, oracle: torch.Tensor) -> float:
        return float((X.double() - oracle).norm() / oracle.norm())

    return error


@pytest.fixture
def orthogonality_error() -> Callable[[torch.Tensor], float]:
    def error(X: torch.Tensor) -> float:
        X = X.double() if X.shape[0] <= X.shape[1] else X.double().T
        return float((X @ X.T - torch.eye(len(X), dtype=torch.float64)).norm() / math.sqrt(len(X)))

    return error
