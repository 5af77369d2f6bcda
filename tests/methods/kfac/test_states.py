"""What is stored: bitwise resumption, packed and half-width states, no storage larger than what is used."""

import copy
import io

import pytest
import torch

from harness.errors import UserError
from harness.measure.training import state as training_state
from methods.kfac import moments, packing
from methods.kfac.kfac import KFAC

pytestmark = pytest.mark.filterwarnings("ignore:.*leaves to")


def test_resume_is_bitwise(kind, nets, train, build):
    make, batches = nets["conv"]
    model = make()
    optimizer = build(kind, model)
    empty = training_state.digest(optimizer.state_dict())
    fresh = training_state.copied(optimizer.state_dict())
    train(model, optimizer, batches, 7)
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    train(model, optimizer, batches, 6, first=7)
    buffer.seek(0)
    stored = torch.load(buffer, weights_only=True)
    other = make(1)
    other.load_state_dict(stored["model"])
    resumed = build(kind, other)
    resumed.load_state_dict(stored["optimizer"])
    train(other, resumed, batches, 6, first=7)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert training_state.digest(resumed.state_dict()) == training_state.digest(optimizer.state_dict())
    optimizer.load_state_dict(fresh)
    assert training_state.digest(optimizer.state_dict()) == empty


def test_packed_factors_give_the_same_steps_in_less_memory(nets, train, distance, monkeypatch, build):
    monkeypatch.setattr(packing, "PACKED_FROM", 4)
    make, batches = nets["conv"]
    models, optimizers = [make(), make()], []
    for model, packed in zip(models, (False, True), strict=True):
        optimizers.append(build("cholesky", model, packed=packed))
        train(model, optimizers[-1], batches, 7)
    assert distance(models[1], models[0]) < 1e-12
    usage = [optimizer.memory_usage()["factors"] for optimizer in optimizers]
    assert usage[1] < 0.75 * usage[0]
    # A state saved packed is read by an optimizer that does not pack, and the other way round.
    for first, second in ((0, 1), (1, 0)):
        optimizers[first].load_state_dict(training_state.copied(optimizers[second].state_dict()))
    for k in range(7, 10):
        for model, optimizer in zip(models, optimizers, strict=True):
            train(model, optimizer, batches, 1, first=k)
    assert distance(models[1], models[0]) < 1e-12


@pytest.mark.parametrize("kind", ["cholesky", "eigh", "newton_schulz", "ekfac"])
def test_half_width_inverses(kind, nets, train, distance, build):
    """Half of the memory, nearly the same steps, bitwise resume."""
    make, data = nets["conv"]

    def batches(k):
        return data(k)[0].float(), data(k)[1]

    half = {"inverse_dtype": "bfloat16", "product_dtype": "bfloat16"}
    models = [make().float() for _ in range(3)]
    optimizers = [build(kind, model, **options) for model, options in zip(models, ({}, half, half), strict=True)]
    for model, optimizer in zip(models[:2], optimizers, strict=False):
        train(model, optimizer, batches, 6)
    moved = distance(models[0], make().float())
    assert 0 < distance(models[1], models[0]) < 0.1 * moved
    wide = {"eigh": "vectors", "ekfac": "vectors"}.get(kind, "inverse")
    states = [slot.state[wide] for pair in optimizers[1].slots.values() for slot in pair]
    assert {state.dtype for state in states} == {torch.bfloat16}
    usage = [optimizer.memory_usage()["inverses"] for optimizer in optimizers[:2]]
    assert usage[1] == usage[0] - 2 * sum(state.numel() for state in states)
    models[2].load_state_dict(models[1].state_dict())
    optimizers[2].load_state_dict(training_state.copied(optimizers[1].state_dict()))
    for model, optimizer in zip(models[1:], optimizers[1:], strict=True):
        train(model, optimizer, batches, 5, first=6)
    assert all(torch.equal(p, q) for p, q in zip(models[1].parameters(), models[2].parameters(), strict=True))


@pytest.mark.parametrize(("groups", "size"), [(1, 4), (2, 7), (3, 16), (1, 65)])
def test_packing(groups, size):
    torch.manual_seed(0)
    full = torch.randn(groups, size, size)
    full = full + full.mT
    flat = packing.pack(full)
    assert flat.numel() == packing.length(groups, size) < groups * size**2 or size < 8
    assert torch.equal(packing.unpack(flat, groups, size), full)
    torch.testing.assert_close(packing.trace(flat, groups, size), full.diagonal(dim1=1, dim2=2).sum())
    more = packing.unpack(packing.add_to_diagonal(flat, groups, size, 2.0), groups, size)
    assert torch.equal(more, full + 2 * torch.eye(size))


def test_a_checkpoint_of_another_model_is_refused(nets, build):
    stored = build("cholesky", nets["conv"][0]()).state_dict()
    with pytest.raises(UserError, match="same model"):
        build("cholesky", nets["mlp"][0]()).load_state_dict(stored)


def test_a_saved_state_brings_no_larger_storage_along(nets, train, monkeypatch):
    monkeypatch.setattr(moments, "ROOM_FROM", 4)
    make, batches = nets["conv"]
    model = make()
    optimizer = KFAC(model, update_period=1, refresh_period=2)
    train(model, optimizer, batches, 3)
    storages = {}

    def walk(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list | tuple):
            for one in value:
                walk(one)
        elif isinstance(value, torch.Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()

    saved = optimizer.state_dict()
    walk(saved["layers"])
    usage = optimizer.memory_usage()
    counts = 8 * len(optimizer.layers)
    assert sum(storages.values()) <= sum(usage[key] for key in ("factors", "inverses", "momentum")) + counts
    for layer in optimizer.layers:
        assert saved["layers"][layer.name]["factor_a"].shape == (layer.groups, layer.d_in, layer.d_in)


@pytest.mark.parametrize("initial", ["identity", "bias-corrected", "first-batch"])
def test_padded_running_means_give_the_same_steps(initial, nets, train, monkeypatch):
    make, batches = nets["conv"]
    found = []
    for first in (512, 4):
        monkeypatch.setattr(moments, "ROOM_FROM", first)
        model = make()
        optimizer = KFAC(model, update_period=1, refresh_period=2, factor_init=initial)
        train(model, optimizer, batches, 3)
        other = make()
        other.load_state_dict(model.state_dict())
        resumed = KFAC(other, update_period=1, refresh_period=2, factor_init=initial)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train(model, optimizer, batches, 3, first=3)
        train(other, resumed, batches, 3, first=3)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)
