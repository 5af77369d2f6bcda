import io

import pytest
import torch
from torch import nn

from harness import load
from harness.errors import Unsupported, UserError
from methods.first_order import muon, reference
from methods.first_order.muon import Muon
from methods.first_order.muon_rules import ADJUST

OPTIONS = [
    {},
    {"nesterov": False},
    {"momentum": 0.0, "weight_decay": 0.3, "adjust": "rms"},
    {"adjust": "none", "exclude": ["up*"], "fallback_weight_decay": 0.5, "fallback_lr": 0.1, "fallback_beta2": 0.5},
    {"orthogonalizer": "polar.ns-jordan", "weight_decay": 0.1},
    {"orthogonalizer": "polar.polar-express"},
    {"orthogonalizer": "polar.svd"},
    {"renormalize": True, "weight_decay": 0.1},
    {"fallback": "sgd", "fallback_lr": 0.05, "fallback_weight_decay": 0.3, "norm_bias_lr_factor": 4.0},
    {"norm_bias_lr_factor": 8.0, "bias_lr_factor": 0.5, "fallback_weight_decay": 0.2, "fallback_lr": 0.1},
]


@pytest.mark.parametrize("hyper", OPTIONS)
@pytest.mark.parametrize("count", [1, 4])
def test_steps_equal_the_plain_twin(hyper, count, net, run_steps, distance):
    model, twin = net(), net()
    run_steps(muon.make(model, **hyper), model, count)
    run_steps(reference.muon(twin, **hyper), twin, count)
    assert distance(model, net()) > 1e-3
    assert distance(model, twin) < 1e-9


def test_one_step_by_definition():
    """An orthogonal gradient stays what it is under the exact factor; the shape factor is sqrt(4 / 2)."""
    weight = nn.Parameter(torch.ones(4, 2, dtype=torch.float64))
    optimizer = Muon([weight], lr=0.5, weight_decay=0.2, orthogonalizer="polar.svd")
    weight.grad = 7.0 * torch.eye(4, 2, dtype=torch.float64)
    optimizer.step()
    wanted = 0.9 * torch.ones(4, 2, dtype=torch.float64) - 0.5 * 2**0.5 * torch.eye(4, 2, dtype=torch.float64)
    assert torch.allclose(weight.detach(), wanted, atol=1e-14)


def test_renormalized_weights_have_rows_of_unit_mean_square_before_the_step():
    for format_ in (torch.contiguous_format, torch.channels_last):
        weight = nn.Parameter(torch.randn(4, 3, 3, 3, dtype=torch.float64).to(memory_format=format_))
        start = weight.detach().clone()
        optimizer = Muon([weight], lr=0.0, renormalize=True)
        weight.grad = torch.randn_like(weight)
        optimizer.step()
        assert torch.allclose(weight.detach(), start * 2.0 / start.norm(), atol=1e-14)
    zero = nn.Parameter(torch.zeros(4, 2))
    zero.grad = torch.zeros(4, 2)
    Muon([zero], renormalize=True).step()
    assert not zero.isnan().any()


def test_the_fallback_is_named(net):
    assert set(muon.make(net(), fallback="sgd").coverage) == {"muon", "sgd"}
    with pytest.raises(UserError, match="adamw or sgd"):
        muon.make(net(), fallback="rmsprop")


def test_shape_factors():
    assert ADJUST["spectral"](8, 2) == 2.0
    assert ADJUST["spectral"](2, 8) == 1.0
    assert ADJUST["rms"](25, 4) == 1.0
    assert ADJUST["none"](9, 1) == 1.0


def test_batched_equals_one_at_a_time():
    torch.manual_seed(0)
    starts = [
        torch.randn(shape, dtype=torch.float64) for shape in [(5, 9)] * 3 + [(9, 5)] * 2 + [(1, 4), (4, 1), (1, 1)]
    ]
    together = [nn.Parameter(start.clone()) for start in starts]
    alone = [nn.Parameter(start.clone()) for start in starts]
    optimizers = [Muon(together), *(Muon([parameter]) for parameter in alone)]
    for step in range(3):
        for i, (one, other) in enumerate(zip(together, alone, strict=True)):
            one.grad = torch.randn(
                one.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(step * 97 + i)
            )
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for start, one, other in zip(starts, together, alone, strict=True):
        assert not torch.equal(start, one)
        assert torch.allclose(one, other, atol=1e-13)


def test_convolutions_are_flattened_in_either_memory_format(set_gradients, run_steps):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.Conv2d(5, 4, 1, bias=False), nn.Linear(4, 2)).double()
    last = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.Conv2d(5, 4, 1, bias=False), nn.Linear(4, 2)).double()
    last.load_state_dict(plain.state_dict())
    last[:2].to(memory_format=torch.channels_last)
    assert not last[0].weight.is_contiguous()
    matrix = nn.Parameter(plain[0].weight.detach().reshape(5, 27).clone())
    alone = Muon([matrix])
    run_steps(muon.make(plain), plain, 2)
    run_steps(muon.make(last), last, 2)
    twin = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.Conv2d(5, 4, 1, bias=False), nn.Linear(4, 2)).double()
    for step in range(2):
        set_gradients(twin, step)
        matrix.grad = twin[0].weight.grad.reshape(5, 27)
        alone.step()
    for one, other in zip(plain.parameters(), last.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-12)
    assert torch.allclose(plain[0].weight.detach().reshape(5, 27), matrix.detach(), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adjust", [("spectral", "original"), ("rms", "match_rms_adamw")])
def test_equals_torchs_muon(dtype, adjust):
    """Same coefficients, steps and dtype of the iteration; torch normalises in bfloat16, ours in float32."""
    torch.manual_seed(1)
    starts = [(0.02 * torch.randn(shape)).to(dtype) for shape in [(16, 48), (16, 48), (48, 16), (16, 16)]]
    ours, theirs = ([nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    mine = Muon(
        ours, 0.02, weight_decay=0.1, orthogonalizer="polar.ns-jordan", adjust=adjust[0], iteration_dtype="bfloat16"
    )
    other = torch.optim.Muon(theirs, 0.02, weight_decay=0.1, adjust_lr_fn=adjust[1])
    for _ in range(3):
        for one, two in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape).to(dtype)
            two.grad = one.grad.clone()
        mine.step()
        other.step()
    for start, one, two in zip(starts, ours, theirs, strict=True):
        moved, grain = (two - start).float().norm(), torch.finfo(dtype).eps * start.float().norm()
        assert (one.float() - two.float()).norm() < 0.03 * moved + grain
        state = (mine.state[one]["momentum_buffer"] - other.state[two]["momentum_buffer"]).float().norm()
        assert state <= 1e-6 * other.state[two]["momentum_buffer"].float().norm()


def test_the_momentum_survives_where_torchs_is_overwritten():
    """bfloat16 parameters without Nesterov: torch divides the momentum itself by its norm (up to 2.14 at least)."""
    gradient = torch.full((4, 4), 8.0, dtype=torch.bfloat16) + torch.eye(4, dtype=torch.bfloat16)
    ours, theirs = (nn.Parameter(torch.zeros(4, 4, dtype=torch.bfloat16)) for _ in range(2))
    mine = Muon([ours], nesterov=False, orthogonalizer="polar.ns-jordan", iteration_dtype="bfloat16")
    other = torch.optim.Muon([theirs], nesterov=False)
    ours.grad, theirs.grad = gradient.clone(), gradient.clone()
    mine.step()
    other.step()
    wanted = torch.zeros(4, 4, dtype=torch.bfloat16).lerp(gradient, 1 - 0.95)
    assert torch.equal(mine.state[ours]["momentum_buffer"], wanted)
    if torch.equal(other.state[theirs]["momentum_buffer"], wanted):
        pytest.skip("this torch no longer overwrites it")
    assert abs(float(other.state[theirs]["momentum_buffer"].float().norm()) - 1.0) < 0.02


def test_a_function_of_ones_own_cannot_touch_the_momentum():
    def careless(stack):
        return stack.mul_(0.0)

    weight = nn.Parameter(torch.ones(3, 3))
    optimizer = Muon([weight], nesterov=False, orthogonalizer=careless)
    weight.grad = torch.ones(3, 3)
    optimizer.step()
    assert torch.allclose(optimizer.state[weight]["momentum_buffer"], torch.full((3, 3), 0.05))
    assert "careless" in str(optimizer.describe())


def test_unused_gradients_leave_weight_and_momentum_alone():
    weights = [nn.Parameter(torch.randn(4, 6, dtype=torch.float64)) for _ in range(3)]
    twins = [nn.Parameter(weight.detach().clone()) for weight in weights]
    optimizer, twin = Muon(weights), [Muon([weight]) for weight in twins]
    for step in range(4):
        for i, (one, two) in enumerate(zip(weights, twins, strict=True)):
            used = (step + i) % 2 == 0
            one.grad = torch.randn(4, 6, dtype=torch.float64) if used else None
            two.grad = one.grad.clone() if used else None
        optimizer.step()
        for alone in twin:
            alone.step()
    for one, two in zip(weights, twins, strict=True):
        assert torch.allclose(one, two, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_cut_in_two_ends_with_the_same_bits(dtype, net, run_steps, distance):
    model = net(dtype)
    optimizer = muon.make(model)
    run_steps(optimizer, model, 2)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = net(dtype, seed=1)
    other.load_state_dict(saved["model"])
    resumed = muon.make(other, lr=0.5, fallback_lr=0.5)
    run_steps(resumed, other, 1)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    run_steps(resumed, other, 2, first=2)
    run_steps(optimizer, model, 2, first=2)
    assert distance(model, other) == 0.0
    assert distance(model, net(dtype)) > 0.0


def test_loading_the_state_from_before_the_first_step_starts_anew(net, run_steps, distance, clone):
    model = net()
    optimizer = muon.make(model)
    fresh, start = clone(optimizer.state_dict()), clone(model.state_dict())
    run_steps(optimizer, model, 2)
    first = clone(model)
    model.load_state_dict(start)
    optimizer.load_state_dict(fresh)
    run_steps(optimizer, model, 2)
    assert distance(first, model) == 0.0


def test_a_schedule_acts_through_the_groups(net, run_steps, distance):
    model, twin = net(), net()
    optimizer, plain = muon.make(model), reference.muon(twin)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
    for step in range(3):
        plain.param_groups[0]["lr"] = 0.02 / (1 + step)
        run_steps(optimizer, model, 1, first=step)
        run_steps(plain, twin, 1, first=step)
        scheduler.step()
    assert distance(model, twin) < 1e-9
    assert len(optimizer.param_groups) == 2


def test_a_cast_before_the_first_step_works_and_after_it_is_told(net, run_steps):
    model = net(torch.float32)
    optimizer = muon.make(model)
    run_steps(optimizer, model.double(), 1)
    with pytest.raises(UserError, match="cast, moved"):
        run_steps(optimizer, model.float(), 1)


def test_parameters_may_be_added_later():
    weights = [nn.Parameter(torch.randn(4, 6)) for _ in range(2)]
    optimizer = Muon(weights[:1])
    weights[0].grad = torch.randn(4, 6)
    optimizer.step()
    kept = optimizer.state[weights[0]]["momentum_buffer"].clone()
    optimizer.add_param_group({"params": weights[1:], "lr": 0.5})
    assert torch.equal(optimizer.state[weights[0]]["momentum_buffer"], kept)
    before = weights[1].detach().clone()
    weights[1].grad = torch.randn(4, 6)
    optimizer.step()
    assert not torch.equal(before, weights[1])


def test_its_parts_are_measured_once_asked_for(net, run_steps):
    model = net()
    optimizer = muon.make(model)
    run_steps(optimizer, model, 1)
    assert optimizer.parts() == {"orthogonalize": 0.0}
    run_steps(optimizer, model, 1)
    assert optimizer.parts()["orthogonalize"] > 0.0
    assert optimizer.parts()["orthogonalize"] == 0.0


def test_mistakes_are_told():
    weight = nn.Parameter(torch.ones(3, 3))
    for match, hyper in [
        ("adjust is one of", {"adjust": "other"}),
        ("momentum in", {"momentum": 1.0}),
        ("iteration_dtype is", {"iteration_dtype": "int8"}),
        ("orthogonalizer is auto", {"orthogonalizer": "svd"}),
        ("unknown method", {"orthogonalizer": "polar.nothing"}),
    ]:
        with pytest.raises(UserError, match=match):
            Muon([weight], **hyper)
    with pytest.raises(Unsupported, match="takes matrices"):
        Muon([nn.Parameter(torch.ones(3))])
    if not torch.cuda.is_available():
        with pytest.raises(Unsupported, match="cannot run"):
            Muon([weight], orthogonalizer="polar.turbo-fast-triton")


def test_the_record_can_say_what_auto_stands_for(net):
    found = muon.make(net(torch.float32)).describe()
    assert found["muon"]["cpu, float32"] == {"orthogonalizer": "polar.turbo-torch", "iteration_dtype": "float32"}
    assert callable(load("training.muon"))
