"""Suite of whole networks: contents, fitting and its cache, the gate, conformance, on the digits network."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from harness.catalogue import registry
from harness.catalogue.suite import Problem
from harness.errors import Unsupported, UserError
from methods.approximate_matmul import network
from suites.amm import network_runtime, network_sources
from suites.amm.network_runtime import RUNTIME
from suites.whole_network import PROBLEMS, SUITE

PROBLEM = Problem(
    kind="digits_cnn_p32",
    shape=(60, 1, 8, 8),
    dtype="float32",
    params={"net": "digits-cnn", "hyper": {"patch": 32, "calibration": 150, "updates": 2}},
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch):
    monkeypatch.setattr(network, "ROWS", 1000)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    place = network_runtime._place
    monkeypatch.setattr(network_runtime, "_place", lambda *facts: tmp_path / "fitted" / place(*facts).name)
    return tmp_path / "fitted"


def bound(name, problem=PROBLEM):
    method = registry.method(f"whole_network.{name}")
    return RUNTIME.bind(registry.resolve(method.impl), problem, method.hyper)


def judged(name, problem=PROBLEM):
    content = RUNTIME.content(problem, 3)
    operation = bound(name, problem)
    return RUNTIME.judge(operation(content), content, RUNTIME.oracle(content, problem), problem, None)


def test_the_catalogue_knows_suite_and_methods():
    assert registry.suite("whole_network") is SUITE
    names = {name for name in registry.methods() if name.startswith("whole_network.")}
    assert names == {f"whole_network.{name}" for name in ("dense", "bf16", "maddness", "maddness-tuned")}
    for name in names:
        method = registry.method(name)
        assert registry.resolve(method.impl)().hyper.keys() == dict(method.hyper).keys()
    assert len({problem.id for problem in PROBLEMS}) == len(PROBLEMS)
    assert SUITE.baseline == "whole_network.dense"


def test_contents_are_test_images_with_their_labels():
    found = network_sources.source("digits-cnn")
    one, again, other = (RUNTIME.content(PROBLEM, seed) for seed in (1, 1, 2))
    assert torch.equal(one.a, again.a)
    assert not torch.equal(one.a, other.a)
    assert len(set(one.index)) == len(one.index)
    assert torch.equal(one.a, found.pool[torch.from_numpy(one.index)])
    varied = RUNTIME.vary(one, 1)
    oracle = RUNTIME.oracle(varied, PROBLEM)
    assert torch.equal(oracle.labels, found.labels[torch.from_numpy(varied.numbers())])
    buffer = RUNTIME.buffer_like(one)
    RUNTIME.fill(buffer, varied)
    assert torch.equal(buffer.a, varied.whole())


@pytest.mark.parametrize("name", ["dense", "bf16", "maddness", "maddness-tuned"])
def test_every_method_passes_the_gate(name, cache):
    found = judged(name)
    assert found.status == "passed", found.reason
    assert found.errors["accuracy_exact"] > 0.95
    assert found.errors["accuracy_retained"] > 0.8


def test_exact_networks_are_held_to_rounding_and_look_ups_to_chance(monkeypatch, cache):
    content = RUNTIME.content(PROBLEM, 0)
    oracle = RUNTIME.oracle(content, PROBLEM)
    exact = bound("dense")
    assert RUNTIME.judge(exact(content) * 1.01, content, oracle, PROBLEM, None).status == "inaccurate"
    look_ups = bound("maddness")
    assert look_ups.approximate
    wrong = look_ups(content).roll(1, dims=1)
    assert RUNTIME.judge(wrong, content, oracle, PROBLEM, None).status == "inaccurate"
    assert RUNTIME.judge(look_ups(content) * 3, content, oracle, PROBLEM, None).status == "passed"


def test_what_was_learned_is_kept_and_read_again(cache):
    first = bound("maddness-tuned")
    assert not first.from_disk
    assert len(list(cache.glob("network-*.pt"))) == 1
    second = bound("maddness-tuned")
    assert second.from_disk
    rows = RUNTIME.content(PROBLEM, 5)
    assert torch.equal(first(rows), second(rows))
    numbers, detail = RUNTIME.facts(second, rows, PROBLEM)
    assert set(numbers) == {"train_s", "tune_s"}
    assert detail["layers"]["replaced"][0]["name"] == "conv2"
    assert "cache" in detail["fitted"]
    other = Problem(kind="x_p9", shape=PROBLEM.shape, dtype="float32", params={**PROBLEM.params, "hyper": {"patch": 9}})
    assert bound("maddness", other).from_disk is False


def test_a_damaged_file_is_fitted_again(cache):
    bound("maddness")
    [path] = cache.glob("network-*.pt")
    path.write_bytes(b"nothing")
    assert not bound("maddness").from_disk


def test_the_network_given_is_never_changed():
    found = network_sources.source("digits-cnn")
    before = {name: value.clone() for name, value in found.net.state_dict().items()}
    network.make_tuned(patch=32, calibration=100, updates=1).fit(found.net, found.train[:200], found.train_y[:200])
    network.make_bf16().fit(found.net, found.train[:10], found.train_y[:10])
    assert all(torch.equal(before[name], value) for name, value in found.net.state_dict().items())


def test_tuning_lowers_the_loss():
    found = network_sources.source("digits-cnn")
    images, labels = found.train[:256], found.train_y[:256]
    made = network.make_maddness(patch=64, calibration=100).fit(found.net, images, labels)

    def loss(model):
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model(images), labels))

    before = loss(made.trained)
    network.tune(made.trained, images, labels, 12, 1e-3)
    assert loss(made.trained) < before
    assert not made.trained.training


def test_bad_input_is_one_clear_error():
    with pytest.raises(UserError, match="patch"):
        network.make_maddness(patch=0)
    with pytest.raises(UserError, match="backend"):
        network.make_maddness(backend="fpga")
    with pytest.raises(UserError, match="lr"):
        network.make_tuned(lr=0.0)
    with pytest.raises(UserError, match="not fitted"):
        network.make_dense()(torch.zeros(1, 1, 8, 8))
    with pytest.raises(UserError, match="labels"):
        network.make_dense().fit(nn.Identity(), torch.zeros(2, 1, 8, 8), torch.zeros(3))
    with pytest.raises(UserError, match="unknown network"):
        network_sources.source("alexnet")
    with pytest.raises(Unsupported, match="nothing to replace"):
        RUNTIME.bind(lambda: network.make_maddness(), _no_layers(), {})


def _no_layers() -> Problem:
    """A network whose every layer is first or last."""
    network_sources.MAKERS["bare"] = (
        "digits",
        16.0,
        lambda train, labels: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
    )
    return Problem(kind="bare_p9", shape=(5, 1, 8, 8), dtype="float32", params={"net": "bare"})


def test_shapes_are_told_from_the_layers():
    flops = 2.0 * (64 * 9 * 32 + 64 * 288 * 32 + 512 * 10)
    assert RUNTIME.work_flops(PROBLEM) == pytest.approx(60 * flops)
    assert RUNTIME.work_bytes(PROBLEM) == 4 * math.prod(PROBLEM.shape)
    output = torch.zeros(60, 9)
    assert "expected shape (60, 10)" in RUNTIME.malformed(output, RUNTIME.content(PROBLEM, 0), PROBLEM)
    with pytest.raises(UserError, match="test images"):
        RUNTIME.content(Problem(kind="a", shape=(999, 1, 8, 8), dtype="float32", params={"net": "digits-cnn"}), 0)


def test_edge_cases_run(cache):
    for case in RUNTIME.edge_cases("cpu"):
        operation = bound("dense", case.problem)
        got = operation(case.content)
        assert got.shape == (case.problem.shape[0], 10)
        assert np.isfinite(got.numpy()).all()
