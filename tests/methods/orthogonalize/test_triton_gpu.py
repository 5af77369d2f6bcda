from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
if not torch.cuda.is_available():
    pytest.skip("needs CUDA: no NVIDIA device", allow_module_level=True)

from methods.orthogonalize import _tune_checks as checks

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("job", checks.jobs(dry=False), ids=lambda job: job.label)
def test_on_the_device(job):
    """bfloat16, float16 and float32 on odd and normal shapes; CUDA-graph capture; more than 2^31 elements."""
    passed, text = checks.perform(job)
    assert passed, text


def test_new_coefficients_do_not_recompile():
    from methods.orthogonalize import _kernels_published as kernels
    from methods.orthogonalize import _triton_launch as launch

    A = torch.eye(256, device="cuda", dtype=torch.bfloat16).unsqueeze(0)
    C = torch.empty_like(A)
    compiled = []
    for alpha in (1.0, 2.0, -0.25):
        launch.line_2(A, C, alpha, 0.5)
        assert torch.equal(C, (A * (alpha + 0.5)))
        compiled.append(sum(len(cache[0]) for cache in kernels.symmetric_product_kernel.device_caches.values()))
    assert compiled[0] == compiled[-1]


@pytest.mark.parametrize("name", [name for name in checks.TWINS if name not in checks.GRAPHS])
@pytest.mark.parametrize("shape", [(512, 1024), (257, 100), (2, 2304, 2304)], ids=str)
def test_direct_launches_are_the_same_bits(name, shape):
    """The ordinary launch, then the compiled kernel itself; the largest shape goes through descriptors."""
    from methods.orthogonalize import _triton_direct as direct

    engine = dict(checks.engines())[name]
    G = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16().cuda()
    direct.forget()
    direct.disable("this test")
    try:
        want = engine(G)
    finally:
        direct.enable()
    direct.forget()
    for _ in range(3):
        assert torch.equal(engine(G), want)
    assert direct.state() == {"direct": True, "reason": ""}


def test_direct_launches_use_the_current_stream():
    from methods.orthogonalize.triton_fast import turbo_fast

    G = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0)).bfloat16().cuda()
    want = turbo_fast(G)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        late = turbo_fast(G * 1)
        assert not side.query()
    side.synchronize()
    assert torch.equal(late, want)
