"""On a GPU: every back-end against float64 on the CPU, no wait of the host in a plain step, moments on odd shapes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from methods.kfac import factories, moments, shifts
from methods.kfac.inverse import blocked
from methods.kfac.kfac import KFAC

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.filterwarnings("ignore:.*leaves to"),
]
COMMON = {"lr": 0.05, "update_period": 2, "refresh_period": 4, "damping": 0.03, "clip_value": 0.3}


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(12, 12, 3, stride=2, padding=1, groups=2),
        nn.Tanh(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.Flatten(),
        nn.Linear(12 * 16, 40),
        nn.Tanh(),
        nn.Linear(40, 5),
    )


def batch(k):
    generator = torch.Generator().manual_seed(k)
    return torch.randn(16, 3, 8, 8, generator=generator), torch.randint(0, 5, (16,), generator=generator)


def trained(make, device, dtype, steps=6, last=True, **options):
    model = net().to(device, dtype)
    if last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = make(model, **{**COMMON, **options})
    for k in range(steps):
        x, y = batch(k)
        optimizer.zero_grad()
        functional.cross_entropy(model(x.to(device, dtype)), y.to(device)).backward()
        optimizer.step()
    return torch.cat([p.detach().double().cpu().flatten() for p in model.parameters()]), optimizer


@pytest.fixture(autouse=True)
def ieee():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("cholesky", {}, 1e-3),
        ("cholesky", {"stagger": True, "product_dtype": "float32"}, 1e-3),
        ("cholesky", {"refresh_lag": 2, "stagger": True, "packed": True}, 1e-3),
        ("cholesky", {"product_dtype": "tf32"}, 2e-2),
        ("cholesky", {"product_dtype": "bfloat16", "inverse_dtype": "bfloat16"}, 1e-1),
        ("newton_schulz", {"iterations": 12}, 1e-3),
        ("eigh", {}, 1e-3),
        ("eigh", {"damping_mode": "pi"}, 1e-3),
        ("ekfac", {"scaling": "running"}, 1e-2),
        ("rs", {"rank": 200, "damping_mode": "pi"}, 1e-3),
        ("sre", {"rank": 200, "power": 1, "damping_mode": "pi"}, 1e-3),
    ],
)
def test_steps_equal_those_in_float64(kind, options, tolerance, last):
    make = getattr(factories, kind)
    plain = {k: v for k, v in options.items() if k not in ("product_dtype", "inverse_dtype")}
    found, optimizer = trained(make, "cuda", torch.float32, last=last, **options)
    wanted, _ = trained(make, "cpu", torch.float64, last=last, **plain)
    start = torch.cat([p.detach().double().flatten() for p in net().parameters()])
    assert (found - wanted).norm() < tolerance * (wanted - start).norm()
    assert optimizer.counters["skipped_batches"] == 0


@pytest.mark.parametrize("image", [(4, 4), (8, 6), (3, 3)])
@pytest.mark.parametrize("half", [None, torch.bfloat16])
def test_moments_from_shifts(image, half):
    torch.manual_seed(0)
    x = torch.randn(33, 40, *image, device="cuda").to(memory_format=torch.channels_last)
    exact = (x if half is None else x.to(half)).double()
    wanted = shifts.moment(exact.cpu(), True, torch.float64, None, True)
    found = shifts.moment(x, True, torch.float32, half, True).double().cpu()
    assert (found - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize(
    "options", [{}, {"refresh_lag": 2}, {"stagger": True, "inverse_dtype": "bfloat16", "product_dtype": "bfloat16"}]
)
@pytest.mark.parametrize("kind", ["cholesky", "newton_schulz"])
def test_a_plain_step_does_not_wait_for_the_device(kind, options):
    model = net().cuda().to(memory_format=torch.channels_last)
    optimizer = getattr(factories, kind)(model, **{**COMMON, **options}, weight_decay=0.01)
    batches = [tuple(t.cuda() for t in batch(k)) for k in range(14)]
    try:
        for k, (x, y) in enumerate(batches):
            torch.cuda.set_sync_debug_mode("error" if k > 4 else "default")
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("half", [None, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 513, 65), (2, 4096, 33), (1, 2048, 2305), (1, 8192, 3)])
def test_gram_on_odd_shapes(shape, half):
    torch.manual_seed(0)
    rows = torch.randn(shape, device="cuda")
    exact = (rows if half is None else rows.to(half)).double()
    wanted = exact.mT @ exact
    assert (moments.gram(rows, half).double() - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("image", [(1, 1), (2, 3), (7, 5)])
@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}])
def test_moments_of_patches(options, image, monkeypatch):
    monkeypatch.setattr(moments, "PIECE", 4000)
    torch.manual_seed(0)
    module = nn.Conv2d(5, 4, 3, **options).cuda()
    x = torch.randn(17, 5, *image, device="cuda").to(memory_format=torch.channels_last)
    rows = functional.unfold(x, 3, module.dilation, module.padding, module.stride).mT.reshape(-1, 45)
    rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1).double()
    found = moments.input_moment(module, x, True, torch.float32, None)
    assert (found[0].double() - rows.mT @ rows).norm() < 1e-5 * (rows.mT @ rows).norm()


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("size", [1024, 1153, 2305])
def test_inverses_by_blocks(size, library):
    torch.manual_seed(0)
    rows = torch.randn(2, 2 * size, size, device="cuda")
    matrices = rows.mT @ rows / (2 * size)
    damping = torch.tensor([1e-2, 1e-1], device="cuda")
    found, good = blocked.inverse(matrices, damping, 512, library)
    eye = torch.eye(size, device="cuda", dtype=torch.float64)
    wanted = torch.linalg.inv(matrices.double() + damping[:, None, None] * eye)
    assert good.all()
    assert (found[:, :size, :size].double() - wanted).norm() < 1e-4 * wanted.norm()


def test_resume_and_a_batch_with_nan(monkeypatch):
    # Some of cuDNN's backward kernels add up in any order; a resumed run can only equal one that equals itself.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    model = net().cuda()
    x, y = (t.cuda() for t in batch(0))
    weights = list(model.parameters())
    twice = [torch.autograd.grad(functional.cross_entropy(model(x), y), weights) for _ in range(2)]
    if not all(torch.equal(p, q) for p, q in zip(*twice, strict=True)):
        pytest.skip("the net's own backward is not deterministic on this device")
    optimizer = KFAC(model, **COMMON, momentum=0.9)

    def steps(net_, opt, first, count, spoil=-1):
        for k in range(first, first + count):
            x, y = (t.cuda() for t in batch(k))
            opt.zero_grad()
            functional.cross_entropy(net_(x * float("nan") if k == spoil else x), y).backward()
            opt.step()

    steps(model, optimizer, 0, 5, spoil=2)
    assert optimizer.counters["skipped_batches"] == 1
    other = copy.deepcopy(model)
    resumed = KFAC(other, **COMMON, momentum=0.9)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(model, optimizer, 5, 5)
    steps(other, resumed, 5, 5)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
