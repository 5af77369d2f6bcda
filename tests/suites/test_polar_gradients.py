"""Capturing gradients anew gives the committed ones: by cosine and spectrum, not by bytes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from harness.catalogue import dataset
from suites import polar_inputs

pytest.importorskip("sklearn", reason="capturing gradients needs scikit-learn")

from suites import capture_gradients

FUNCTIONS = {
    "gradients-digits-cnn": capture_gradients.capture_digits_cnn,
    "gradients-text-transformer": capture_gradients.capture_text_transformer,
}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_first_captured_step_comes_again(name):
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    state = torch.random.get_rng_state()
    first = capture_gradients.STEPS[0]
    captured = FUNCTIONS[name]([first])
    card = dataset.card(name)
    if captured.data_sha256 != card.fields["data_sha256"]:
        pytest.skip(f"this scikit-learn ships other data than {card.fields['versions']}")
    assert card.fields["steps"][0] == first
    assert captured.losses[0] == pytest.approx(card.fields["losses"][0], rel=1e-3)
    for key, stack in captured.matrices.items():
        found = torch.from_numpy(stack[0]).double()
        kept = polar_inputs.gradients(name, key)[0].double()
        cosine = float((found * kept).sum() / (found.norm() * kept.norm()))
        assert cosine >= 0.99
        spectra = torch.linalg.svdvals(found), torch.linalg.svdvals(kept)
        torch.testing.assert_close(spectra[0], spectra[1], rtol=0.02, atol=0.005 * float(spectra[1][0]))
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (threads, strict)
    assert torch.equal(state, torch.random.get_rng_state())


def test_packing_survives_tiny_gradients():
    stack = np.array([[[1e-12, -3e-12]], [[2e5, 1e5]]], dtype=np.float32)
    packed = capture_gradients.pack({"w": stack})
    assert packed["w"].dtype == np.float16
    assert np.abs(packed["w"]).max() == 1
    np.testing.assert_allclose(packed["w"].astype(np.float32) * packed["w.scale"][:, None, None], stack, rtol=1e-3)


def test_command_writes_archive_and_card(tmp_path, monkeypatch, capsys):
    def tiny() -> capture_gradients.Capture:
        return capture_gradients.Capture({"w": np.ones((1, 2, 3), dtype=np.float32)}, [0.5], "0" * 64, 7)

    recipe = capture_gradients.Recipe(tiny, "A title", "MIT", "Nobody", "words")
    monkeypatch.setattr(capture_gradients, "RECIPES", {"tiny": recipe})
    capture_gradients.main(["tiny", "--out", str(tmp_path)])
    assert capsys.readouterr().out.strip() == str(tmp_path / "tiny.toml")
    monkeypatch.setenv(dataset.ROOT_VARIABLE, str(tmp_path))
    card = dataset.card("tiny")
    assert card.title == "A title"
    assert card.fields["sha256"] == hashlib.sha256((tmp_path / "tiny.npz").read_bytes()).hexdigest()
    polar_inputs.gradients.cache_clear()
    assert polar_inputs.gradients("tiny", "w").tolist() == [[[1.0] * 3] * 2]
    polar_inputs.gradients.cache_clear()
    with pytest.raises(SystemExit) as stopped:
        capture_gradients.main(["tinny", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "unknown capture 'tinny'; known: tiny" in capsys.readouterr().err
