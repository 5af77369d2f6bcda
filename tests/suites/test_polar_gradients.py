"""The committed gradients are what their cards say, and capturing anew gives them by cosine and spectrum."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from harness.catalogue import data, dataset, registry
from suites import capture_bundled, capture_gradients, capture_workloads, gradient_capture, polar, polar_inputs

BUNDLED = {
    "gradients-digits-cnn": capture_bundled.capture_digits_cnn,
    "gradients-text-transformer": capture_bundled.capture_text_transformer,
}
PLANS = {
    "gradients-cifar10-airbench": capture_workloads.AIRBENCH,
    "gradients-sotu-gpt-cpu": capture_workloads.SOTU_CPU,
    "gradients-sotu-gpt": capture_workloads.SOTU,
}
#: The most that one archive may add to the repository.
LARGEST = 5_000_000


def same_as_committed(name: str, captured: gradient_capture.Capture) -> None:
    card = dataset.card(name)
    assert captured.losses[0] == pytest.approx(card.fields["losses"][0], rel=1e-3)
    for key, stack in captured.matrices.items():
        assert captured.steps[key][0] == card.fields["steps"][0]
        found = torch.from_numpy(stack[0]).double()
        kept = polar_inputs.gradients(name, key)[0].double()
        cosine = float((found * kept).sum() / (found.norm() * kept.norm()))
        assert cosine >= 0.99
        spectra = torch.linalg.svdvals(found), torch.linalg.svdvals(kept)
        torch.testing.assert_close(spectra[0], spectra[1], rtol=0.02, atol=0.005 * float(spectra[1][0]))


@pytest.mark.parametrize("name", sorted(BUNDLED))
def test_first_captured_step_comes_again(name):
    pytest.importorskip("sklearn", reason="the text and the digits ship inside scikit-learn")
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    state = torch.random.get_rng_state()
    captured = BUNDLED[name]([capture_bundled.STEPS[0]])
    card = dataset.card(name)
    if captured.data_sha256 != card.fields["data_sha256"]:
        pytest.skip(f"this scikit-learn ships other data than {card.fields['versions']}")
    same_as_committed(name, captured)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (threads, strict)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("name", sorted(PLANS))
def test_first_captured_step_of_a_workload_comes_again(name):
    plan = PLANS[name]
    missing = data.status(registry.workload(plan.workload).data)
    if missing is not None:
        pytest.skip(missing)
    captured = capture_workloads.capture(plan, until=plan.first)
    card = dataset.card(name)
    assert captured.data_sha256 == card.fields["data_sha256"]
    assert captured.samples == card.fields["samples"]
    same_as_committed(name, captured)


@pytest.mark.parametrize("name", sorted(capture_gradients.RECIPES))
def test_card_describes_its_archive(name):
    card = dataset.card(name)
    raw = card.file(card.fields["file"]).read_bytes()
    assert hashlib.sha256(raw).hexdigest() == card.fields["sha256"]
    assert len(raw) <= LARGEST
    assert card.fields["command"] == f"python -m suites.capture_gradients {name}"
    assert card.licence.startswith("gradients: MIT")
    assert len(card.fields["losses"]) == len(card.fields["steps"])
    assert card.fields["losses"][-1] < card.fields["losses"][0]
    used = {key: shape for file, key, shape in polar.GRADIENTS.values() if file == name}
    assert used == {array["name"]: tuple(array["shape"]) for array in card.fields["arrays"]}
    for array in card.fields["arrays"]:
        stack = polar_inputs.gradients(name, array["name"])
        steps = array.get("steps", card.fields["steps"])
        assert tuple(stack.shape) == (len(steps), *array["shape"])
        assert set(steps) <= set(card.fields["steps"])
        assert torch.isfinite(stack).all()
        # no step repeats another or a multiple of it
        flat = torch.nn.functional.normalize(stack.flatten(1), dim=1)
        assert float((flat @ flat.mT).fill_diagonal_(0).max()) < 0.999


@pytest.mark.parametrize("name", sorted(PLANS))
def test_card_states_the_plan_and_the_workloads_data(name):
    plan, card = PLANS[name], dataset.card(name)
    workload = registry.workload(plan.workload)
    arrays = {array["name"]: array.get("steps", card.fields["steps"]) for array in card.fields["arrays"]}
    assert arrays == {key: list(steps) for key, (_, steps) in plan.layers.items()}
    assert card.fields["data_sha256"] == dataset.card(workload.data).fields["arrays"][plan.array]["sha256"]
    assert f"workload {plan.workload} " in card.fields["recipe"]
    assert plan.batch <= workload.batch


def test_cifar_is_not_redistributed():
    card = dataset.card("gradients-cifar10-airbench")
    fewest = capture_workloads.AIRBENCH.first * capture_workloads.AIRBENCH.batch
    assert f"none of its images is redistributed: every matrix is an aggregate over at least {fewest}" in card.licence


def test_momentum_average_is_nesterovs():
    net = torch.nn.Linear(3, 2, bias=False)
    slopes = torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]])
    layer = gradient_capture.Layer(net.weight, (1, 3))
    kept, losses = gradient_capture.train(net, lambda step: step * (net.weight * slopes).sum(), {"w": layer})
    b, average = 0.95, 0.0
    for step in (1, 2, 3):  # the gradient of update k is k times the slopes
        average = b * average + (1 - b) * step
        if step in layer.steps:
            wanted = ((1 - b) * step + b * average) * slopes
            np.testing.assert_allclose(kept["w"][layer.steps.index(step)], wanted.numpy(), rtol=1e-5)
    assert len(losses) == 2


def test_layers_are_kept_at_their_own_steps():
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    x = torch.ones(4, 3)
    layers = {
        "often": gradient_capture.Layer(net[0].weight, (1, 2, 4)),
        "once": gradient_capture.Layer(net[1].weight, (2,)),
    }
    kept, losses = gradient_capture.train(net, lambda _: net(x).square().mean(), layers)
    assert {key: stack.shape for key, stack in kept.items()} == {"often": (3, 2, 3), "once": (1, 1, 2)}
    assert len(losses) == 3


def test_packing_survives_tiny_gradients():
    stack = np.array([[[1e-12, -3e-12]], [[2e5, 1e5]]], dtype=np.float32)
    packed = capture_gradients.pack({"w": stack})
    assert packed["w"].dtype == np.float16
    assert np.abs(packed["w"]).max() == 1
    np.testing.assert_allclose(packed["w"].astype(np.float32) * packed["w.scale"][:, None, None], stack, rtol=1e-3)


def test_command_writes_archive_and_card(tmp_path, monkeypatch, capsys):
    def tiny() -> gradient_capture.Capture:
        matrices = {"w": np.ones((2, 2, 3), dtype=np.float32), "v": np.ones((1, 1, 2), dtype=np.float32)}
        return gradient_capture.Capture(matrices, [0.5, 0.25], "0" * 64, 7, {"w": (1, 3), "v": [3]})

    recipe = capture_gradients.Recipe(tiny, "A title", "MIT", "Nobody", "words")
    monkeypatch.setattr(capture_gradients, "RECIPES", {"tiny": recipe})
    capture_gradients.main(["tiny", "--out", str(tmp_path)])
    assert capsys.readouterr().out.strip() == str(tmp_path / "tiny.toml")
    monkeypatch.setenv(dataset.ROOT_VARIABLE, str(tmp_path))
    card = dataset.card("tiny")
    assert card.title == "A title"
    assert card.fields["sha256"] == hashlib.sha256((tmp_path / "tiny.npz").read_bytes()).hexdigest()
    assert card.fields["steps"] == [1, 3]
    assert card.fields["arrays"] == [{"name": "w", "shape": [2, 3]}, {"name": "v", "shape": [1, 2], "steps": [3]}]
    assert set(card.fields["versions"]) == {"python", "torch", "numpy"}
    polar_inputs.gradients.cache_clear()
    assert polar_inputs.gradients("tiny", "w").tolist() == [[[1.0] * 3] * 2] * 2
    polar_inputs.gradients.cache_clear()
    with pytest.raises(SystemExit) as stopped:
        capture_gradients.main(["tinny", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "unknown capture 'tinny'; known: tiny" in capsys.readouterr().err
