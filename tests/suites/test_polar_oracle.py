"""The float64 oracle against exact cases and SVD, the iteration for large matrices, the bias floor, the disk cache."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch

from harness.catalogue.suite import Problem
from harness.errors import Unsupported
from suites import polar_cache, polar_oracle
from suites.polar_inputs import generate
from suites.polar_iteration import dominant_projector, polar_by_iteration
from suites.polar_oracle import bias_floor, errors_of, sampled, solve, solve_one


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(polar_cache.VARIABLE, str(tmp_path / "cache"))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthogonal(n: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(normal(n, n, seed=seed))[0]


def test_diagonal_matrix():
    part = solve_one(torch.diag(torch.tensor([3.0, -2.0, 0.5])))
    torch.testing.assert_close(part.polar, torch.diag(torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)))
    assert part.nuclear == pytest.approx(5.5)
    assert part.sigma is not None
    assert part.sigma.tolist() == pytest.approx([3.0, 2.0, 0.5])
    assert (part.rank, part.count) == (3, 3)


@pytest.mark.parametrize("shape", [(6, 6), (5, 9), (9, 5), (4, 30)])
def test_orthonormal_rows_times_a_positive_factor(shape):
    """G = H Q with H positive definite and Q Q^T = I has the polar factor Q (on the smaller side)."""
    small, large = sorted(shape)
    q = orthogonal(large, 1)[:small]
    root = normal(small, small, seed=2)
    g = (root @ root.mT + torch.eye(small, dtype=torch.float64)) @ q
    part = solve_one(g if shape[0] <= shape[1] else g.mT)
    torch.testing.assert_close(part.polar, q, rtol=0, atol=1e-12)


def test_oracle_sees_the_rounded_input():
    g = normal(20, 30).bfloat16()
    part = solve_one(g)
    u, _, vh = torch.linalg.svd(g.double(), full_matrices=False)
    torch.testing.assert_close(part.polar, u @ vh, rtol=0, atol=1e-11)


def test_rank_deficient_input_gives_the_partial_isometry():
    u, v = orthogonal(8, 1)[:, :3], orthogonal(12, 2)[:, :3]
    g = (u * torch.tensor([5.0, 1.0, 0.3], dtype=torch.float64)) @ v.mT
    part = solve_one(g)
    assert part.rank == 3
    torch.testing.assert_close(part.polar, u @ v.mT, rtol=0, atol=1e-12)
    completed = part.polar + orthogonal(8, 1)[:, 3:] @ orthogonal(12, 2)[:, 3:8].mT
    turned = part.polar + 0.3 * orthogonal(8, 1)[:, 3:4] @ v[:, :1].mT  # leaks into a determined direction
    assert errors_of(part.polar, g, part, None)["polar_error"] < 1e-12
    assert errors_of(completed, g, part, None)["polar_error"] < 1e-12
    assert errors_of(turned, g, part, None)["polar_error"] == pytest.approx(0.3 / math.sqrt(3))


def test_resolved_directions_are_those_above_two_per_cent_of_the_frobenius_norm():
    sigma = torch.tensor([1.0, 0.5, 0.03, 0.01, 0.001], dtype=torch.float64)
    part = solve_one(torch.diag(sigma))
    assert part.count == 3
    projector = part.basis @ part.basis.mT
    torch.testing.assert_close(projector, torch.diag(torch.tensor([1.0, 1, 1, 0, 0], dtype=torch.float64)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nonfinite_input_has_no_oracle(bad):
    with pytest.raises(Unsupported, match="finite"):
        solve_one(torch.tensor([[1.0, bad], [0.0, 1.0]]))


def test_zero_matrix_has_no_oracle():
    with pytest.raises(Unsupported, match="zero matrix"):
        solve_one(torch.zeros(3, 4))


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_scale_plays_no_part(scale):
    g = normal(12, 16)
    torch.testing.assert_close(solve_one(scale * g).polar, solve_one(g).polar, rtol=0, atol=1e-12)
    assert bias_floor(scale * g) == pytest.approx(bias_floor(g), rel=1e-6)


@pytest.mark.parametrize("shape", [(150, 150), (64, 200), (40, 40)])
def test_iteration_agrees_with_svd(shape):
    g = normal(*shape, seed=4)
    exact, left, sigma, _ = polar_oracle.svd_polar(g)
    found = polar_by_iteration(g)
    assert float(torch.linalg.matrix_norm(found - exact)) / math.sqrt(shape[0]) < 1e-10
    psd = found @ g.mT
    threshold = 0.02 * float(torch.linalg.matrix_norm(g))
    count = int((sigma >= threshold).sum())
    projector = dominant_projector(0.5 * (psd + psd.mT), threshold)
    wanted = left[:, :count] @ left[:, :count].mT
    assert float(torch.linalg.matrix_norm(projector - wanted)) < 1e-8


@pytest.mark.parametrize(("decades", "bound"), [(3, 1e-11), (5, 1e-10), (6, 1e-9), (9, 1e-6)])
def test_iteration_on_ill_conditioned_matrices(decades, bound):
    u, v = orthogonal(80, 1), orthogonal(80, 2)
    g = (u * torch.logspace(0, -decades, 80, dtype=torch.float64)) @ v
    assert float(torch.linalg.matrix_norm(polar_by_iteration(g) - u @ v)) / math.sqrt(80) < bound


def test_iteration_keeps_an_orthogonal_matrix():
    """An orthogonal start: the optimal scaling would squeeze it to 1e-8 and back and lose half of the digits."""
    q = orthogonal(30, 3)
    assert float(torch.linalg.matrix_norm(polar_by_iteration(q) - q)) < 1e-11


def test_iteration_refuses_a_singular_matrix():
    rank_one = torch.outer(normal(10), normal(12, seed=1))
    zero_row = normal(10, 12)
    zero_row[3] = 0.0
    for g in (rank_one, zero_row):
        with pytest.raises(Unsupported, match="full rank"):
            polar_by_iteration(g)
    with pytest.raises(ValueError, match="wide float64"):
        polar_by_iteration(normal(12, 10))


def test_large_path_gives_the_same_metrics(monkeypatch):
    g = normal(96, 130, seed=5)
    output = solve_one(g).polar + 0.01 * normal(96, 130, seed=6)
    reference = output + 0.001 * normal(96, 130, seed=7)
    wanted = errors_of(output, g, solve_one(g), reference)
    monkeypatch.setattr(polar_oracle, "SVD_LIMIT", 64)
    part = solve_one(g)
    assert part.sigma is None
    found = errors_of(output, g, part, reference)
    assert "bias_floor" not in found
    assert found == pytest.approx({k: v for k, v in wanted.items() if k != "bias_floor"}, rel=1e-7, abs=1e-9)


def test_bias_floor_of_an_exact_case():
    """Orthogonal rows are rescaled without a turn, so the floor is zero; a constructed mixture has a known one."""
    rows = orthogonal(6, 1) * torch.logspace(0, -2, 6, dtype=torch.float64)[:, None]
    assert bias_floor(rows) < 1e-12
    g = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    gram = torch.tensor([[1.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    scaled = torch.diag(gram.abs().sum(1).rsqrt()) @ g

    def angle(x: torch.Tensor) -> float:  # polar factor of a 2 x 2 matrix with positive determinant is a rotation
        return math.atan2(float(x[1, 0] - x[0, 1]), float(x[0, 0] + x[1, 1]))

    wanted = 2 * math.sin(abs(angle(scaled) - angle(g)) / 2)  # ||R(a) - R(b)||_F / sqrt(2)
    assert bias_floor(g) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "expected"), [("gaussian", 0.011), ("logspec3", 0.039), ("logspec6", 0.071), ("rowscaled", 0.176)]
)
def test_bias_floor_of_the_suites_inputs(kind, expected):
    """Figures found independently, on other draws, for 512 x 512 inputs of these kinds."""
    content = generate(Problem(kind=kind, shape=(512, 512), dtype="float32"), 0)
    assert bias_floor(content) == pytest.approx(expected, rel=0.1)


def test_sampling_of_batches():
    assert sampled(normal(7, 5)) == (0,)
    assert sampled(normal(4, 7, 5)) == (0, 1, 2, 3)
    assert sampled(normal(2, 2, 7, 5)) == (0, 1, 2, 3)
    picks = [sampled(normal(40, 3, 5, seed=seed)) for seed in range(6)]
    assert all(len(set(pick)) == polar_oracle.MEMBERS and max(pick) < 40 for pick in picks)
    assert len(set(picks)) > 3  # drawn anew for every content
    assert picks[0] == sampled(normal(40, 3, 5, seed=0))


def test_batched_oracle_is_that_of_its_members():
    batch = normal(9, 6, 4)
    for part in solve(batch).parts:
        torch.testing.assert_close(part.polar, solve_one(batch[part.index]).polar)


def cached_files() -> list:
    return sorted(polar_cache.folder().glob("*.npz"))


def test_disk_cache_returns_the_same_oracle_without_solving(monkeypatch):
    g = normal(12, 20).float()
    first = solve(g).parts[0]
    assert len(cached_files()) == 1

    def refuse(*_: object) -> None:
        raise AssertionError("decomposed again")

    monkeypatch.setattr(polar_oracle, "solve_one", refuse)
    second = solve(g.clone()).parts[0]
    for name in ("polar", "basis", "sigma"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    for name in ("index", "count", "rank", "nuclear", "bias_floor"):
        assert getattr(first, name) == getattr(second, name)
    with pytest.raises(AssertionError, match="again"):
        solve(g + 1)
    with pytest.raises(AssertionError, match="again"):
        solve(g.mT.contiguous())


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "garbage", "missing", "wrong shape"])
def test_damaged_cache_entries_are_computed_anew(damage):
    g = normal(12, 20).float()
    wanted = solve(g).parts[0].polar
    (path,) = cached_files()
    raw = bytearray(path.read_bytes())
    if damage == "flip":
        raw[len(raw) // 2] ^= 0xFF
        path.write_bytes(raw)
    elif damage == "wrong shape":
        np.savez(path, polar=np.zeros((2, 2)), basis=np.zeros((2, 2)), sigma=np.zeros(2), numbers=np.zeros(3))
    elif damage == "missing":
        np.savez(path, polar=np.zeros((12, 20)))
    else:
        path.write_bytes({"cut": bytes(raw[: len(raw) // 3]), "empty": b"", "garbage": b"no archive"}[damage])
    torch.testing.assert_close(solve(g).parts[0].polar, wanted, rtol=0, atol=1e-13)
    assert polar_cache.load(path.stem) is not None  # mended


def test_cache_leaves_large_entries_out_and_drops_the_oldest(monkeypatch):
    entry = {"x": np.zeros(100)}
    monkeypatch.setattr(polar_cache, "ENTRY_BYTES", 799)
    assert not polar_cache.save("large", entry)
    monkeypatch.setattr(polar_cache, "ENTRY_BYTES", 800)
    monkeypatch.setattr(polar_cache, "FOLDER_BYTES", 2600)
    for age, key in enumerate("abcd"):
        assert polar_cache.save(key, entry)
        os.utime(polar_cache.folder() / f"{key}.npz", (1000 + age, 1000 + age))
    assert polar_cache.save("e", entry)
    assert [path.stem for path in cached_files()] == ["d", "e"]
    assert not list(polar_cache.folder().glob("*.part"))


def test_unwritable_cache_changes_nothing(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv(polar_cache.VARIABLE, str(blocked))
    g = normal(5, 6)
    assert not polar_cache.save("key", {"x": np.zeros(1)})
    torch.testing.assert_close(solve(g).parts[0].polar, solve_one(g).polar)
