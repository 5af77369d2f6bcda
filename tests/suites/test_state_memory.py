"""Formulas against counted entries, and measured state against formulas, on small networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.catalogue import registry
from harness.errors import UserError
from harness.record.store import read_headers, read_runs
from suites import state_memory, state_memory_formula, state_memory_run
from suites.state_memory import NETWORKS, SMALL
from suites.state_memory_formula import Sizes, entries

SIZES = (1, 2, 3, 20, 30, 31, 47, 95)


@pytest.mark.parametrize("d", SIZES)
def test_entries_are_those_of_the_pattern(d: int) -> None:
    """The same numbers counted off a matrix of places."""
    row, column = torch.meshgrid(torch.arange(d), torch.arange(d), indexing="ij")
    top, low = row < 15, (row >= max(15, d - 15)) & (column >= 15)
    masks = {
        "dense": torch.ones(d, d, dtype=torch.bool),
        "diagonal": row == column,
        "block30": row // 30 == column // 30,
        "hierarchical15": top | low | (row == column),
        "tril": row >= column,
        "triu": row <= column,
        "rank1-arrow": (column < 1) | (row == column),
    }
    for structure, mask in masks.items():
        assert entries(structure, d) == int(mask.sum()), structure
    assert entries("rankk-arrow", d, 8) == int(((column < 8) | (row == column)).sum())
    assert entries("tril-toeplitz", d) == entries("triu-toeplitz", d) == d


def test_layers_and_totals_by_hand() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.LayerNorm(2))
    sizes = state_memory_formula.layers(model)
    assert sizes == [Sizes(1, 4, 2), Sizes(2, 18, 3)]
    assert state_memory_formula.kfac(sizes) == 8 * (16 + 4) + 4 + 2 * 8 * (324 + 9) + 4
    assert state_memory_formula.singd(sizes, "diagonal", 2) == 2 * 2 * (6 + 2 * 21)
    assert state_memory_formula.singd(sizes, "dense", 4, momentum=False) == 4 * (20 + 2 * 333)
    assert state_memory_formula.first_order({"kfac": 10, "adamw": 3}, 2) == 2 * 4 + 40 + 24


def method(name: str) -> Any:
    return registry.method(f"training.{name}")


@pytest.mark.parametrize("network", sorted(SMALL))
@pytest.mark.parametrize("name", ["adamw", "sgd", "muon", "kfac-cholesky", "singd-dense", "singd-block30", "ikfac"])
def test_the_state_of_small_networks_is_the_formulas(network: str, name: str) -> None:
    problem = next(p for p in state_memory.SUITE.problems if p.kind == network and p.dtype == "float32")
    hyper = state_memory.METHODS[f"training.{name}"]
    counted = state_memory_run.counted(SMALL[network], method(name), hyper)
    where = state_memory_run.open_training("cpu", "torch-default")
    found = state_memory_run.trained(SMALL[network], method(name), hyper, problem, 2, where)
    ratio = found["optimizer_state_bytes"][0] / counted["formula_bytes"][0]
    # K-FAC may keep its factors and inverses packed, and work space beside them.
    assert 0.4 < ratio < 1.1 if name == "kfac-cholesky" else ratio == 1.0
    assert found["held_bytes"][0] >= found["optimizer_state_bytes"][0] * 0.99
    assert "peak_device_bytes" not in found


def test_true_networks_are_counted_without_memory() -> None:
    """VGG16: 14,990,922 weights; dense SINGD keeps 17.1 times their bytes and a momentum, AdamW twice."""
    vgg = NETWORKS["vgg16_bn"]
    weights = 4 * 14_990_922
    adamw = state_memory_run.counted(vgg, method("adamw"), {})
    assert adamw["parameter_bytes"][0] == weights
    assert adamw["formula_bytes"][0] == pytest.approx(2 * weights, rel=1e-4)
    dense = state_memory_run.counted(vgg, method("singd-dense"), {})["formula_bytes"][0] / weights
    assert dense == pytest.approx(2 * 8.55 + 1.0, abs=0.02)
    blocks = state_memory_run.counted(vgg, method("singd-block30"), {})["formula_bytes"][0] / weights
    assert blocks == pytest.approx(2 * 0.078 + 1.0, abs=0.01)
    for name in ("vit_b16_blocks", "gpt2_blocks"):
        size = state_memory_run.counted(NETWORKS[name], method("sgd"), {})["parameter_bytes"][0]
        assert size == pytest.approx(4 * 12 * (12 * 768**2 + 13 * 768))


def test_the_command_writes_an_ordinary_record(tmp_path: Path) -> None:
    given = ["--network", "vit_small", "--network", "resnet50", "--method", "training.adamw"]
    state_memory.main([*given, "--method", "training.singd-diagonal", "--out", str(tmp_path)])
    runs, (header,) = read_runs(tmp_path), read_headers(tmp_path)
    assert header["complete"]
    assert set(runs["status"]) == {"passed"}
    assert set(runs["phase"]) == {"memory"}
    assert {"formula_bytes", "parameter_bytes"} <= set(runs[runs["problem"].str.startswith("resnet50")]["metric"])
    small = runs[runs["problem"].str.startswith("vit_small") & (runs["metric"] == "formula_ratio")]
    assert sorted(small["method"]) == ["training.adamw", "training.singd-diagonal", "training.singd-diagonal"]
    assert small["value"].tolist() == [1.0, 1.0, 1.0]
    assert set(runs[runs["unit"] == "bytes"]["metric"]) == {
        *("formula_bytes", "parameter_bytes", "optimizer_state_bytes", "held_bytes")
    }


def test_a_failing_case_is_a_row_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = state_memory_run.trained

    def broken(network: Any, one: Any, *rest: Any) -> Any:
        if one.name == "training.sgd":
            raise RuntimeError("broken on purpose")
        return real(network, one, *rest)

    monkeypatch.setattr(state_memory_run, "trained", broken)
    given = ["--network", "cnn_small", "--method", "training.adamw", "--method", "training.sgd"]
    state_memory.main([*given, "--out", str(tmp_path)])
    runs = read_runs(tmp_path).drop_duplicates("run").set_index("method")
    assert runs.loc["training.sgd", "status"] == "error"
    assert "broken on purpose" in runs.loc["training.sgd", "reason"]
    assert runs.loc["training.adamw", "status"] == "passed"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_record_holds_the_bytes_of_the_dtype_that_was_asked_for(dtype: str, tmp_path: Path) -> None:
    """Factors and momenta of two or four bytes a number; the momentum of the weights stays in float32."""
    names = ("training.singd-dense", "training.ikfac")
    given = [part for name in names for part in ("--method", name)]
    state_memory.main([*given, "--network", "cnn_small", "--dtype", dtype, "--out", str(tmp_path)])
    runs = read_runs(tmp_path)
    assert set(runs["problem"]) == {f"cnn_small-1-{dtype}-cpu"}
    assert [detail["hyper"]["preconditioner_dtype"] for detail in runs["detail"]] == [dtype] * len(runs)
    measured = runs.set_index(["method", "metric"])["value"]
    sizes = state_memory_formula.layers(state_memory_run.built(SMALL["cnn_small"]))
    numbers = sum(s.groups * (s.d_in**2 + s.d_out**2) for s in sizes)
    itemsize = 4 if dtype == "float32" else 2
    for name, kept in zip(names, (2, 1), strict=True):
        state = measured[name, "optimizer_state_bytes"]
        assert state == measured[name, "formula_bytes"]
        rest = measured[name, "parameter_bytes"]
        assert 0 <= state - kept * itemsize * numbers - rest < 0.1 * rest, "AdamW's second buffers of the norms"


def test_without_a_dtype_float32_and_bfloat16_are_measured(tmp_path: Path) -> None:
    given = ["--network", "cnn_small", "--method", "training.singd-diagonal", "--out", str(tmp_path)]
    state_memory.main(given)
    assert set(read_runs(tmp_path)["problem"]) == {"cnn_small-1-float32-cpu", "cnn_small-1-bfloat16-cpu"}


def test_a_dtype_that_cannot_be_had_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"unknown dtype 'float8'.*Known: bfloat16, float16, float32"):
        state_memory.main(["--dtype", "float8", "--out", str(tmp_path)])
    with pytest.raises(UserError, match=r"nothing to measure.*singd-dense.*--dtype bfloat16"):
        state_memory.main(["--method", "training.adamw", "--dtype", "bfloat16", "--out", str(tmp_path)])
    assert "training.adamw: its state is float32, left out of bfloat16" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_has_a_peak_over_weights_gradients_and_state(dtype: str) -> None:
    wanted = ("convmixer", dtype, "cuda")
    problem = next(p for p in state_memory.SUITE.problems if (p.kind, p.dtype, p.device) == wanted)
    hyper = {**state_memory.METHODS["training.singd-diagonal"], state_memory_run.HELD: dtype}
    network, one = NETWORKS["convmixer"], method("singd-diagonal")
    counted = state_memory_run.counted(network, one, hyper, dtype)
    where = state_memory_run.open_training("cuda", "torch-default")
    found = state_memory_run.trained(network, one, hyper, problem, 8, where)
    assert found["optimizer_state_bytes"] == counted["formula_bytes"]
    least = 2 * counted["parameter_bytes"][0] + found["optimizer_state_bytes"][0]
    assert found["peak_device_bytes"][0] > least
