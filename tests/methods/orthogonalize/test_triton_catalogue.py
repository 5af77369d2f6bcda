from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.catalogue import registry
from harness.errors import Unsupported, UserError

ROOT = Path(__file__).resolve().parents[3]
METHODS = sorted(name for name in registry.list_methods("polar") if name.endswith("-triton"))


def test_listing_imports_neither_torch_nor_triton():
    code = (
        "import sys, methods.orthogonalize.catalogue_triton\n"
        "assert not {'torch', 'triton'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", METHODS)
def test_descriptor_is_complete(name):
    method = registry.method(name)
    assert method.needs == ("torch", "triton", "cuda")
    assert method.devices == ("cuda",)
    assert "float64" not in method.dtypes
    assert method.source
    assert method.formula
    pytest.importorskip("torch")
    assert callable(registry.resolve(method.reference))
    cost = registry.resolve(method.cost)((64, 128), 2)
    assert cost.flops > 0
    assert cost.bytes > 0


def test_eight_methods_are_registered():
    assert len(METHODS) == 8
    assert "polar.turbo-graph-triton" in METHODS


@pytest.mark.parametrize("name", METHODS)
def test_cpu_tensors_are_refused(name):
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    with pytest.raises(Unsupported, match="needs CUDA"):
        registry.load(name)(torch.ones(4, 6))


def test_configuration_can_be_recorded():
    torch = pytest.importorskip("torch")
    from methods.orthogonalize._triton_configs import configuration

    chosen = configuration((4096, 11008), torch.bfloat16)
    assert set(chosen) == {"gram", "square", "apply", "launch"}
    assert set(chosen["launch"]) == {"direct", "reason"}
    assert all(isinstance(value, int) for value in chosen["gram"].values())
    assert configuration((64, 64), torch.bfloat16) != chosen
    single = configuration((4096, 4096), torch.float32, "published")
    assert not any(single[line]["tma"] for line in ("gram", "square", "apply"))


def test_configurations_fit_in_shared_memory():
    """Operand tiles in flight must fit a block: 227 KiB from compute capability 9.0 on."""
    pytest.importorskip("torch")
    from methods.orthogonalize._triton_configs import HALF

    for config in HALF.values():
        assert (config.bm + config.bn) * config.bk * 2 * config.stages < 227 * 1024


def test_every_size_class_has_a_configuration():
    pytest.importorskip("torch")
    from methods.orthogonalize._triton_configs import HALF, LINES, size_class

    sizes = {
        (line, size_class(line, n, n, batch, depth))
        for line in LINES
        for n, batch, depth in [(1024, 1, 1024), (1025, 1, 9000), (2049, 1, 8191), (4096, 1, 8192), (1024, 32, 1024)]
    }
    assert {size for _, size in sizes} == {"small", "medium", "large", "deep"}
    assert set(HALF) == {(design, line, size) for design in ("published", "fast") for line, size in sizes}


def test_a_deep_gram_product_has_its_own_configuration():
    torch = pytest.importorskip("torch")
    from methods.orthogonalize._triton_configs import configuration

    square = configuration((4096, 4096), torch.bfloat16, "published")
    deep = configuration((11008, 4096), torch.bfloat16, "published")
    assert square["gram"]["stages"] < deep["gram"]["stages"]
    assert square["square"] == deep["square"]


def test_bad_inputs_are_named(monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    from methods.orthogonalize import _triton_launch as launch

    monkeypatch.setattr(launch, "INTERPRETED", True)
    with pytest.raises(UserError, match="expected a matrix"):
        launch.check(torch.ones(4))
    with pytest.raises(Unsupported, match="float64"):
        launch.check(torch.ones(4, 4, dtype=torch.float64))


def test_descriptors_only_where_the_layout_allows_them(monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    from methods.orthogonalize._triton_launch import takes_descriptor

    half = torch.zeros(2, 16, 32, dtype=torch.float16)
    assert takes_descriptor(half)
    assert takes_descriptor(half.mT)
    assert not takes_descriptor(half.float())
    assert not takes_descriptor(half[..., 1:])  # base not on 16 bytes
    assert not takes_descriptor(half[..., ::2])  # no unit stride
    assert not takes_descriptor(torch.zeros(2, 16, 33, dtype=torch.float16))  # rows not on 16 bytes
    assert not takes_descriptor(torch.zeros(1, 16, 32, dtype=torch.float16).expand(2, -1, -1))  # stride 0
