"""Generators of the polar suite: deterministic, with the stated distributions, and real gradients from cards."""

from __future__ import annotations

import hashlib
import itertools
import shutil

import pytest
import torch

from harness.catalogue import dataset
from harness.catalogue.suite import Problem
from harness.errors import Unavailable, UnknownName, UserError
from suites import polar, polar_inputs
from suites.polar_inputs import generate, stream


def problem(kind: str, shape: tuple[int, ...], dtype: str = "float32", **params: str) -> Problem:
    return Problem(kind=kind, shape=shape, dtype=dtype, params=params)


@pytest.fixture(autouse=True)
def _fresh_gradients():
    polar_inputs.gradients.cache_clear()
    yield
    polar_inputs.gradients.cache_clear()


@pytest.mark.parametrize("kind", sorted(polar_inputs.KINDS))
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (3, 16, 20)])
def test_content_is_a_function_of_problem_and_seed(kind, shape):
    one = problem(kind, shape)
    first = generate(one, 5)
    torch.manual_seed(0)  # the global stream must play no part
    assert torch.equal(first, generate(one, 5))
    assert not torch.equal(first, generate(one, 6))
    assert first.shape == shape
    assert first.dtype is torch.float32
    assert first.is_contiguous()
    assert bool(torch.isfinite(first).all())


def test_members_of_a_batch_differ_and_dtypes_share_values():
    batch = generate(problem("gaussian", (3, 8, 8)), 0)
    assert not torch.equal(batch[0], batch[1])
    half = generate(problem("gaussian", (3, 8, 8), "bfloat16"), 0)
    assert torch.equal(batch.bfloat16(), half)


def test_stream_depends_on_kind_shape_and_both_seeds():
    base = problem("gaussian", (4, 4))
    others = [
        stream(problem("levy15", (4, 4)), 0),
        stream(problem("gaussian", (4, 5)), 0),
        stream(base, 1),
        stream(Problem(kind="gaussian", shape=(4, 4), dtype="float32", seed=1), 0),
    ]
    assert len({stream(base, 0), *others}) == 5
    assert stream(base, 0) == stream(problem("gaussian", (4, 4), "float64"), 0)


def test_gaussian_moments():
    x = generate(problem("gaussian", (256, 256)), 0)
    assert abs(float(x.mean())) < 0.02
    assert abs(float(x.std()) - 1) < 0.02


def test_levy_matches_the_stable_law():
    from scipy import stats

    x = generate(problem("levy15", (300, 300), "float64"), 0).flatten()
    # P(X < q) of the symmetric stable law with alpha 1.5, from its characteristic function exp(-|t|^1.5)
    for q in (0.5, 1.0, 3.0, 10.0):
        expected = float(stats.levy_stable.cdf(q, 1.5, 0.0))
        assert float((x < q).double().mean()) == pytest.approx(expected, abs=5e-3)
    assert float(x.median()) == pytest.approx(0, abs=0.02)
    assert float(x.abs().max()) > 100  # the heavy tail is there: a gaussian would stop near 4.5


@pytest.mark.parametrize(("kind", "decades"), [("logspec3", 3), ("logspec6", 6)])
@pytest.mark.parametrize("shape", [(32, 32), (24, 50), (50, 24)])
def test_prescribed_spectrum(kind, decades, shape):
    sigma = torch.linalg.svdvals(generate(problem(kind, shape, "float64"), 1))
    wanted = torch.logspace(0, -decades, min(shape), dtype=torch.float64)
    torch.testing.assert_close(sigma, wanted, rtol=1e-8, atol=1e-14)


def test_prescribed_spectrum_refuses_large_sides():
    with pytest.raises(UserError, match="up to 2048"):
        generate(problem("logspec3", (2, 4096)), 0)


def test_rows_are_scaled_over_two_decades():
    norms = torch.linalg.vector_norm(generate(problem("rowscaled", (64, 4096), "float64"), 0), dim=1) / 64
    torch.testing.assert_close(norms, torch.logspace(0, -2, 64, dtype=torch.float64), rtol=0.06, atol=0)


def test_low_rank_plus_noise():
    sigma = torch.linalg.svdvals(generate(problem("lowrank", (64, 128), "float64"), 0))
    assert float(sigma[3]) > 10  # rank 64 / 16 = 4
    assert 1e-3 * (128**0.5 - 64**0.5) * 0.5 < float(sigma[-1]) <= float(sigma[4]) < 1e-3 * (128**0.5 + 64**0.5) * 1.1


def test_flip_keeps_the_spectrum_and_changes_the_content():
    x = generate(problem("gaussian", (2, 6, 9), "float64"), 0)
    y = polar_inputs.flip(x, 3)
    assert torch.equal(x.abs(), y.abs())
    assert not torch.equal(y, polar_inputs.flip(x, 4))
    torch.testing.assert_close(torch.linalg.svdvals(x), torch.linalg.svdvals(y), rtol=1e-12, atol=0)
    assert torch.equal(x, generate(problem("gaussian", (2, 6, 9), "float64"), 0))


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (problem("nonsense", (4, 4)), "unknown kind 'nonsense'"),
        (problem("gaussian", (4, 4), "int8"), "unknown dtype"),
        (problem("gaussian", (4,)), "at least two dimensions"),
        (problem("grad_x", (128, 512), file="gradients-text-transformer", key="nope"), "mlp_in, mlp_out, qkv"),
        (problem("grad_x", (4, 4), file="gradients-text-transformer", key="qkv"), r"\(384, 128\)"),
    ],
)
def test_mistakes_are_told(one, message):
    with pytest.raises(UserError, match=message):
        generate(one, 0)


def test_float16_overflow_is_refused(monkeypatch):
    monkeypatch.setitem(
        polar_inputs.KINDS, "gaussian", lambda rows, columns, generator: torch.full((rows, columns), 1e6)
    )
    with pytest.raises(UserError, match="65504"):
        generate(problem("gaussian", (4, 4), "float16"), 0)


@pytest.mark.parametrize("kind", sorted(polar.GRADIENTS))
def test_gradient_seeds_walk_through_the_captured_steps(kind):
    card, key, shape = polar.GRADIENTS[kind]
    one = problem(kind, shape, file=card, key=key)
    fields = dataset.card(card).fields
    steps = len(next(array for array in fields["arrays"] if array["name"] == key).get("steps", fields["steps"]))
    contents = [generate(one, seed) for seed in range(steps)]
    for earlier, later in itertools.pairwise(contents):
        assert not torch.equal(earlier.abs(), later.abs())
    again = generate(one, steps)  # the second round: the first step's magnitudes under other signs
    assert torch.equal(again.abs(), contents[0].abs())
    assert not torch.equal(again, contents[0])
    assert all(float(content.abs().max()) > 0 for content in contents)


@pytest.mark.parametrize("name", ["gradients-digits-cnn", "gradients-text-transformer"])
def test_cards_hold(name):
    card = dataset.card(name)
    raw = card.file(card.fields["file"]).read_bytes()
    assert hashlib.sha256(raw).hexdigest() == card.fields["sha256"]
    assert len(raw) <= 5 * 2**20
    for array in card.fields["arrays"]:
        stack = polar_inputs.gradients(name, array["name"])
        assert list(stack.shape) == [len(card.fields["steps"]), *array["shape"]]
    assert {"citation", "command", "recipe", "versions", "data_sha256"} <= set(card.fields)


def test_changed_bytes_are_refused(tmp_path, monkeypatch):
    name = "gradients-digits-cnn"
    for suffix in (".toml", ".npz"):
        shutil.copy(dataset.folder() / f"{name}{suffix}", tmp_path)
    monkeypatch.setenv(dataset.ROOT_VARIABLE, str(tmp_path))
    one = problem("grad_cnn_fc2", (10, 128), file=name, key="fc2")
    generate(one, 0)
    polar_inputs.gradients.cache_clear()
    raw = bytearray((tmp_path / f"{name}.npz").read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / f"{name}.npz").write_bytes(raw)
    with pytest.raises(UserError, match="sha256"):
        generate(one, 0)
    (tmp_path / f"{name}.npz").unlink()
    with pytest.raises(Unavailable, match="missing"):
        generate(one, 0)
    with pytest.raises(UnknownName):
        polar_inputs.gradients("gradients-digits-cn", "fc2")
