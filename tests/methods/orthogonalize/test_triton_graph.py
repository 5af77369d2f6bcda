from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
if not torch.cuda.is_available():
    pytest.skip("needs CUDA: no NVIDIA device", allow_module_level=True)

from harness.errors import Unsupported
from methods.orthogonalize import reference, triton_graph
from methods.orthogonalize.triton_fast import turbo_fast

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _empty():
    triton_graph.clear()
    yield
    triton_graph.clear()


def random(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).cuda()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(256, 512), (100, 257), (512, 256), (3, 64, 128)], ids=str)
def test_equals_the_engine_and_its_plain_twin(shape, dtype):
    G = random(*shape, dtype=dtype)
    before = G.clone()
    got = triton_graph.turbo_graph(G)
    assert torch.equal(got, turbo_fast(G))
    assert torch.equal(G, before)
    want = reference.turbo(G)
    assert float((got.double() - want).norm() / want.norm()) < 0.03


def test_every_call_returns_memory_of_its_own():
    inputs = [random(256, 512, seed=seed) for seed in range(4)]
    outputs = [triton_graph.turbo_graph(G) for G in inputs]
    assert len(triton_graph.cached()) == 1
    assert len({out.data_ptr() for out in outputs}) == 4
    for G, out in zip(inputs, outputs, strict=True):
        assert torch.equal(out, turbo_fast(G))
    outputs[0].zero_()
    assert torch.equal(triton_graph.turbo_graph(inputs[0]), turbo_fast(inputs[0]))


def test_the_least_recently_used_graph_goes_first(monkeypatch):
    monkeypatch.setattr(triton_graph, "MAX_GRAPHS", 2)
    first, second, third = (random(32, 32 * k) for k in (1, 2, 3))
    for G in (first, second, first, third):
        assert torch.equal(triton_graph.turbo_graph(G), turbo_fast(G))
    assert [key[0] for key in triton_graph.cached()] == [(32, 32), (32, 96)]
    assert torch.equal(triton_graph.turbo_graph(second), turbo_fast(second))
    assert [key[0] for key in triton_graph.cached()] == [(32, 96), (32, 64)]


def test_strided_inputs_share_the_graph_of_their_shape():
    G = random(256, 512)
    want = triton_graph.turbo_graph(G)
    wide = torch.full((512, 1024), torch.nan, dtype=G.dtype, device=G.device)
    wide[::2, 1::2] = G
    assert torch.equal(triton_graph.turbo_graph(wide[::2, 1::2]), want)
    assert torch.equal(triton_graph.turbo_graph(G.mT.contiguous().mT), want)
    assert len(triton_graph.cached()) == 1


def test_streams_wait_for_one_another():
    inputs = [random(512, 1024, seed=seed) for seed in range(6)]
    wants = [turbo_fast(G) for G in inputs]
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    outputs = []
    for k, G in enumerate(inputs):
        with torch.cuda.stream(streams[k % 2]):
            outputs.append(triton_graph.turbo_graph(G))
    torch.cuda.synchronize()
    for got, want in zip(outputs, wants, strict=True):
        assert torch.equal(got, want)


def test_inference_mode_and_gradients_do_not_spoil_the_buffers():
    G = random(64, 128)
    with torch.inference_mode():
        first = triton_graph.turbo_graph(G.clone())
    second = triton_graph.turbo_graph(G.clone().requires_grad_())
    assert not second.requires_grad
    assert torch.equal(first, second)


def test_refused_inside_a_capture_and_above_the_limit(monkeypatch):
    G = random(64, 128)
    triton_graph.turbo_graph(G)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        G + 1
        with pytest.raises(Unsupported, match="capture"):
            triton_graph.turbo_graph(G)
    monkeypatch.setattr(triton_graph, "MAX_ELEMENTS", 64 * 128 - 1)
    with pytest.raises(Unsupported, match="elements"):
        triton_graph.turbo_graph(G)


def test_nan_and_empty_inputs():
    G = random(64, 128)
    poisoned = G.clone()
    poisoned[1, 2] = torch.nan
    assert bool(triton_graph.turbo_graph(poisoned).isnan().any())
    assert bool(triton_graph.turbo_graph(G).isfinite().all())
    assert triton_graph.turbo_graph(G[:0]).shape == (0, 128)
