from __future__ import annotations

import importlib
import sys
import types

import pytest
import torch

from harness.errors import Unsupported
from methods.orthogonalize import newton_schulz, peers


@pytest.fixture(autouse=True)
def _fresh():
    yield
    peers._torch_muon_routine.cache_clear()
    peers._gram_newton_schulz.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (3, 24, 40), (2, 2, 9, 5)])
def test_torch_muon_agrees_with_our_jordan(make, dtype, shape):
    G = make["gaussian"](*shape).to(dtype)
    before = G.clone()
    X = peers.torch_muon(G)
    assert torch.equal(G, before)  # upstream divides a bfloat16 input in place
    assert torch.allclose(X.float(), newton_schulz.ns_jordan(G.bfloat16()).float(), atol=0.08)


def test_torch_muon_missing_routine_is_unsupported(monkeypatch):
    peers._torch_muon_routine.cache_clear()
    monkeypatch.delattr(importlib.import_module("torch.optim._muon"), "_zeropower_via_newtonschulz")
    with pytest.raises(Unsupported, match=r"torch\.optim\._muon"):
        peers.torch_muon(torch.ones(2, 3))


def test_gns_wrapper_protects_input_and_restores_dtype(monkeypatch, make):
    """A stand-in with the package's interface and its known habit of dividing float32 inputs in place."""

    class GramNewtonSchulz:
        def __init__(self, ns_use_kernels: bool) -> None:
            assert ns_use_kernels is False

        def __call__(self, X: torch.Tensor) -> torch.Tensor:
            assert X.ndim in (2, 3)
            dtype, X = X.dtype, X.to(torch.float32)
            X /= X.norm(dim=(-2, -1), keepdim=True)
            return newton_schulz.polar_express(X.half()).to(dtype)

    package = types.ModuleType("gram_newton_schulz")
    package.GramNewtonSchulz = GramNewtonSchulz
    monkeypatch.setitem(sys.modules, "gram_newton_schulz", package)
    peers._gram_newton_schulz.cache_clear()
    for dtype in (torch.float32, torch.float16, torch.float64):
        for G in (make["gaussian"](2, 2, 6, 9).to(dtype), make["gaussian"](9, 6).to(dtype).T):
            before = G.clone()
            X = peers.gns(G)
            assert torch.equal(G, before)
            assert (X.shape, X.dtype, X.is_contiguous()) == (G.shape, dtype, True)
            assert torch.allclose(X.double(), newton_schulz.polar_express(G.double()), atol=0.02)


def test_gns_missing_is_unsupported(monkeypatch):
    monkeypatch.setitem(sys.modules, "gram_newton_schulz", None)
    peers._gram_newton_schulz.cache_clear()
    with pytest.raises(Unsupported, match="gram-newton-schulz"):
        peers.gns(torch.ones(2, 3))


@pytest.mark.peer
def test_gns_installed(make):
    pytest.importorskip("gram_newton_schulz")
    G = make["gaussian"](24, 40).float()
    assert torch.allclose(peers.gns(G), newton_schulz.polar_express(G), atol=0.2)
