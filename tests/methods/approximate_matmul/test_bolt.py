"""k-means, Bolt, PQ and OPQ: exact cases, errors that must fall, twins, descriptors."""

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.catalogue import registry
from methods.approximate_matmul import bolt, kmeans, maddness, opq, pq, reference, save
from methods.approximate_matmul.native import binding as native
from methods.approximate_matmul.tables import grid, quantise
from methods.approximate_matmul.tree import subspaces

GEN = torch.Generator().manual_seed(0)
A = torch.randn(400, 5, generator=GEN) @ torch.randn(5, 13, generator=GEN) + 3
B = torch.randn(13, 6, generator=GEN)
TEST = A[:77]
MAKERS = {"bolt": (bolt.make, reference.bolt), "pq": (pq.make, reference.pq), "opq": (opq.make, reference.opq)}
FAST = {"bolt": {}, "pq": {"iterations": 3}, "opq": {"iterations": 2, "rotations": 2}}


def test_k_means_finds_separated_clusters_and_lowers_the_error_at_every_step() -> None:
    generator = np.random.default_rng(0)
    centres = 100 * generator.standard_normal((16, 3)).astype(np.float32)
    x = (centres.repeat(20, axis=0) + 0.01 * generator.standard_normal((320, 3))).astype(np.float32)
    found, codes = kmeans.codebooks(x, np.array([0, 3], dtype=np.int32), 16, seed=0)
    assert len(np.unique(codes)) == 16
    assert np.abs(found[0][codes[:, 0]] - x).max() < 0.1
    rough = generator.standard_normal((500, 4)).astype(np.float32)
    seeds = kmeans.draw(rough, 16, np.random.default_rng(1))
    errors = []
    for steps in range(6):
        centroids, codes = kmeans.lloyd(rough, seeds, steps)
        errors.append(float(((rough - centroids[codes]) ** 2).sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_fewer_rows_than_centroids_are_kept_exactly() -> None:
    op = pq.make(codebooks=3, backend="torch").fit(A[:40], B)
    torch.testing.assert_close(op(A[:40]), A[:40] @ B, rtol=1e-4, atol=1e-3)
    constant = torch.full((9, 13), 2.0)
    for name, (make, _) in MAKERS.items():
        op = make(codebooks=3, **FAST[name]).fit(constant, B)
        half_step = 0.5 * 3 * float(op.tables.scale.max()) if name == "bolt" else 0.0
        torch.testing.assert_close(op(constant), constant @ B, rtol=1e-4, atol=1e-3 + half_step)


@pytest.mark.parametrize("name", MAKERS)
def test_fitting_leaves_its_inputs_alone(name: str) -> None:
    rows, weights = A.clone(), B.clone()
    MAKERS[name][0](codebooks=1, **FAST[name]).fit(A, B)
    assert torch.equal(rows, A)
    assert torch.equal(weights, B)


#: Every method with torch, and by the native kernels where they know its codebooks.
RUNS = [*((name, "torch") for name in MAKERS), ("bolt", "native")]


@pytest.mark.parametrize(("name", "backend"), RUNS)
@pytest.mark.parametrize("codebooks", [1, 4, 13])
def test_every_back_end_equals_the_numpy_twin(name: str, backend: str, codebooks: int, tmp_path: Path) -> None:
    if backend == "native" and (reason := native.available()):
        pytest.skip(reason)
    make, twin = MAKERS[name]
    op = make(codebooks=codebooks, backend=backend, **FAST[name]).fit(A, B)
    plain = twin(codebooks=codebooks, **FAST[name]).fit(A, B)
    assert op.describe()["backend"] == backend
    assert (op.encode(TEST) == plain.encode(TEST)).float().mean() > 0.95  # near ties round differently
    error = (op(TEST) - plain(TEST)).square().mean() / plain(TEST).var()
    assert error < 1e-3
    op.save(tmp_path / "op.npz")
    assert torch.equal(save.load(tmp_path / "op.npz")(TEST), op(TEST))
    assert op(TEST[:0]).shape == (0, 6)


def test_codes_are_nearest_centroids() -> None:
    op = bolt.make(codebooks=4, backend="torch").fit(A, B)
    codes, starts = op.encode(TEST).numpy(), subspaces(13, 4)
    for c in range(4):
        own = TEST[:, starts[c] : starts[c + 1]].double().numpy()
        centroids = op.encoder.centroids[c, :, : starts[c + 1] - starts[c]].astype(np.float64)
        distance = ((own[:, None] - centroids) ** 2).sum(axis=2)
        chosen = distance[np.arange(len(own)), codes[:, c]]
        np.testing.assert_allclose(chosen, distance.min(axis=1), atol=1e-4)


def test_clipping_never_reproduces_tables_worse_than_none() -> None:
    values = np.random.default_rng(0).standard_normal((4, 16, 30)) ** 5

    def loss(fraction: float) -> float:
        low, step = grid(values, 8, "shared", fraction)
        return float(((quantise(values, 8, "shared", fraction).values * step + low - values) ** 2).sum())

    chosen = bolt.clipped(values, 8, "shared")
    losses = {fraction: loss(fraction) for fraction in bolt.FRACTIONS}
    best = min(losses, key=losses.__getitem__)
    assert np.array_equal(chosen.values, quantise(values, 8, "shared", best).values)


def test_the_rotation_of_opq_is_orthogonal_and_helps_correlated_subspaces() -> None:
    generator = torch.Generator().manual_seed(3)
    mixing = torch.linalg.qr(torch.randn(12, 12, generator=generator))[0] * torch.logspace(1, -2, 12)
    a = torch.randn(600, 12, generator=generator) @ mixing.T
    rows = a.numpy()

    def error(op: object) -> float:
        encoder = op.encoder  # type: ignore[attr-defined]
        rotated = rows if encoder.rotation is None else rows @ encoder.rotation
        codes = encoder.encode(rows)
        return float(((rotated - opq.reconstruct(encoder.centroids, codes, encoder.starts)) ** 2).sum())

    b = torch.eye(12)
    turned = opq.make(codebooks=3, rotations=5, iterations=3).fit(a, b)
    rotation = turned.encoder.rotation
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(12), atol=1e-5)
    assert error(turned) < error(pq.make(codebooks=3, iterations=8).fit(a, b))


def test_descriptors_match_the_factories() -> None:
    for name, (make, twin) in MAKERS.items():
        method = registry.method(f"approximate_matmul.{name}")
        assert registry.resolve(method.impl) is make
        assert registry.resolve(method.reference) is twin
        assert make().hyper == dict(method.hyper)
        assert registry.resolve(method.cost)((100, 64, 10), 4).flops > 0


PUBLISHED = {2: (0.876, 0.170), 4: (0.926, 0.117), 8: (0.946, 0.071), 16: (0.956, 0.028), 32: (0.982, 0.025)}


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, ...]:
    datasets, linear = pytest.importorskip("sklearn.datasets"), pytest.importorskip("sklearn.linear_model")
    x, y = datasets.load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(x))
    train, test = order[:1297], order[1297:]
    model = linear.LogisticRegression(C=0.01, max_iter=2000).fit(x[train], y[train])
    return tuple(torch.tensor(part).float() for part in (x[train], model.coef_.T, x[test], model.intercept_, y[test]))


@pytest.mark.parametrize("codebooks", PUBLISHED)
def test_digits_reach_the_published_programs_accuracy(codebooks: int, digits: tuple[torch.Tensor, ...]) -> None:
    """Figures of dblalock/bolt on a 1297 / 500 split of scikit-learn's digits, seed 0, as in test_maddness."""
    train, b, a, intercept, y = digits
    found, exact = bolt.make(codebooks=codebooks).fit(train, b)(a), a @ b
    accuracy, error = PUBLISHED[codebooks]
    assert float(((found + intercept).argmax(1) == y).float().mean()) >= accuracy - 0.02
    assert float(((found - exact) ** 2).mean() / exact.var(correction=0)) <= error + 0.02


@pytest.mark.skipif(native.available() is not None, reason=str(native.available()))
def test_what_runs_is_told_by_part() -> None:
    level = native.level()
    sums = level if level in ("scalar", "neon", "avx512vbmi", "avx512amx") else "avx2"
    averages = "avx2" if level.startswith("avx") else level
    trees = maddness.make(codebooks=4, aggregation="average", upcast=4).fit(A, B).describe()["levels"]
    assert trees == {"encoding": level, "look_ups": averages}
    assert maddness.make(codebooks=4).fit(A, B).describe()["levels"]["look_ups"] == sums
    centroids = bolt.make(codebooks=4).fit(A, B).describe()["levels"]
    assert centroids == {"encoding": "avx2" if level.startswith("avx") else "scalar", "look_ups": sums}
