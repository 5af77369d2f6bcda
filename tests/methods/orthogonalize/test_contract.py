"""Every torch method of the family keeps the task's contract; the compiled ones have a file of their own."""

from __future__ import annotations

import math

import pytest
import torch

from harness.catalogue.registry import resolve
from harness.errors import Unsupported
from methods.orthogonalize import catalogue

NAMES = ["SVD", "NS_TORCH", "NS_JORDAN", "TAIL4_TORCH", "AOL_TORCH", "TURBO_TORCH", "SCHATTEN4_TORCH", "POLAR_EXPRESS"]
NAMES += ["CANS", "GRAM", "GRAM_AOL", "FROBENIUS_ONLY", "AOL_ONLY"]
OURS = {name: getattr(catalogue, name) for name in NAMES}
ALL = OURS | {"TORCH_MUON": catalogue.TORCH_MUON}
TWINNED = {name: method for name, method in OURS.items() if method.reference}
AOL = {"AOL_TORCH", "TURBO_TORCH", "GRAM_AOL", "AOL_ONLY"}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
FIDELITY = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.06}
SHAPES = [(6, 10), (10, 6), (1, 7), (7, 1), (1, 1), (3, 9, 13), (3, 13, 9), (2, 2, 9, 5), (100, 257), (0, 4), (2, 3, 0)]


@pytest.fixture(params=ALL, ids=lambda name: name.lower())
def f(request):
    return resolve(ALL[request.param].impl)


@pytest.fixture(params=OURS, ids=lambda name: name.lower())
def ours(request):
    return resolve(OURS[request.param].impl)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shape_dtype_and_input(make, f, shape, dtype):
    G = make["gaussian"](*shape).to(dtype)
    before = G.clone()
    X = f(G)
    assert (X.shape, X.dtype, X.device) == (G.shape, G.dtype, G.device)
    assert X.is_contiguous()
    assert X.isfinite().all()
    assert torch.equal(G, before)
    if G.numel():
        assert X.data_ptr() != G.data_ptr()
        assert float((X.double() * G.double()).sum()) > 0


def test_deterministic_and_without_graph(make, f):
    G = make["gaussian"](20, 33).float().requires_grad_()
    first, second = f(G), f(G)
    assert torch.equal(first, second)
    assert not first.requires_grad


@pytest.mark.parametrize("view", ["step", "transposed", "permuted batch", "expanded", "flipped strides of 4-D"])
def test_noncontiguous_input(make, f, view):
    base = make["gaussian"](4, 14, 22).float()
    G = {
        "step": base[0, ::2, 1::3],
        "transposed": base[0].T,
        "permuted batch": base.permute(1, 0, 2),
        "expanded": base[:1].expand(3, -1, -1),
        "flipped strides of 4-D": base.reshape(2, 2, 14, 22).permute(1, 3, 0, 2),
    }[view]
    X = f(G)
    assert X.is_contiguous()
    assert torch.allclose(X, f(G.contiguous()), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_batch_equals_loop(make, f, shape):
    G = make["gaussian"](4, *shape).float()
    assert torch.allclose(f(G), torch.stack([f(matrix) for matrix in G]), rtol=1e-4, atol=1e-4)


def test_transposition(make, f):
    G = make["gaussian"](12, 20)
    tolerance = 2e-2 if f.__name__ == "torch_muon" else 1e-10
    assert torch.allclose(f(G.T), f(G).T, rtol=tolerance, atol=tolerance)


def test_aol_depends_on_the_orientation_of_a_square_matrix(make):
    """Rows or columns: AOL's diagonal acts on one side, so for a square matrix the two answers differ."""
    G = make["rows"](16, 16)
    for name, method in TWINNED.items():
        impl = resolve(method.impl)
        gap = float((impl(G.T) - impl(G).T).norm() / 4)
        assert (gap > 1e-2) if name in AOL else (gap < 1e-10), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("exponent", [-40, 40])  # 2^40 is 1.1e12
def test_powers_of_two_change_nothing(make, ours, dtype, exponent):
    G = make["gaussian"](9, 15).to(dtype)
    assert torch.equal(ours(G * 2.0**exponent), ours(G))


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
@pytest.mark.parametrize("shape", [(9, 15), (16, 16)])
def test_scale_sweep(make, ours, scale, shape):
    G = make["gaussian"](2, *shape)
    for dtype, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 0.06), (torch.float64, 1e-9)):
        gap = (ours((G * scale).to(dtype)).double() - ours(G.to(dtype)).double()).norm() / math.sqrt(2 * min(shape))
        assert float(gap) < tolerance, dtype


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e4])
def test_scale_sweep_of_float16(make, ours, scale):
    G = make["gaussian"](24, 40)
    truth = ours(G)
    tolerance = 0.06 if scale == 1e-6 else 0.02  # 1e-6 itself has four bits left in float16
    assert float((ours((G * scale).half()).double() - truth).norm() / truth.norm()) < tolerance


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (8, 8), (1, 5)])
def test_zero_and_rank_one_stay_finite(make, f, dtype, shape):
    zero = torch.zeros(shape, dtype=dtype)
    assert f(zero).isfinite().all()
    for scale in (1.0, 1e-3):
        left, right = make["gaussian"](shape[0], 1), make["gaussian"](1, shape[1], seed=1)
        X = f((scale * left @ right).to(dtype))
        assert X.isfinite().all()
        assert float(X.double().abs().max()) < 1.3


@pytest.mark.parametrize("name", [name for name in OURS if name != "SVD"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_in_zero_out(name, dtype):
    assert not resolve(OURS[name].impl)(torch.zeros(2, 4, 6, dtype=dtype)).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (8, 8)])
def test_nan_in_nan_out(make, f, dtype, bad, shape):
    G = make["gaussian"](2, *shape).to(dtype)
    clean = f(G)
    G[1, 3, 4] = bad
    X = f(G)
    assert torch.allclose(X[0], clean[0], rtol=1e-2, atol=1e-2)
    if math.isnan(bad):
        assert X[1].isnan().all()
    elif f.__name__ != "torch_muon":  # upstream divides by an infinite norm: zeros, and NaN where the infinity was
        assert X[1].isnan().any()


@pytest.mark.parametrize("bad", [torch.ones(3), torch.ones(3, 3, dtype=torch.int32), torch.ones(2, 2).cfloat()])
def test_refusals(f, bad):
    with pytest.raises(Unsupported):
        f(bad)


@pytest.mark.parametrize("name", TWINNED)
@pytest.mark.parametrize("kind", ["gaussian", "levy", "rows"])
@pytest.mark.parametrize("shape", [(48, 80), (64, 64), (80, 48)])
def test_fidelity_to_the_plain_reference(make, name, kind, shape):
    """The gate's measure: the difference on the subspace of singular values above 2 % of the Frobenius norm."""
    method = TWINNED[name]
    impl, reference = resolve(method.impl), resolve(method.reference)
    for dtype, tolerance in (
        (torch.float64, 1e-9),
        (torch.float32, 1e-3),
        (torch.float16, 0.02),
        (torch.bfloat16, 0.06),
    ):
        G = make[kind](*shape).to(dtype)
        expected = reference(G)
        assert expected.dtype == torch.float64
        U, S, Vh = torch.linalg.svd(G.double(), full_matrices=False)
        keep = G.double().norm() * 0.02 <= S
        gap = U[:, keep].T @ (impl(G).double() - expected) @ Vh[keep].T
        assert float(gap.norm()) / math.sqrt(int(keep.sum())) <= tolerance, dtype
