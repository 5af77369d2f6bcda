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


def test_seven_methods_are_registered():
    assert len(METHODS) == 7


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
    assert set(chosen) == {"gram", "square", "apply"}
    assert all(isinstance(value, int) for value in chosen["gram"].values())
    assert configuration((64, 64), torch.bfloat16) != chosen
    single = configuration((4096, 4096), torch.float32, "published")
    assert not any(config["tma"] for config in single.values())


def test_configurations_fit_in_shared_memory():
    """Operand tiles in flight must fit a block: 227 KiB from compute capability 9.0 on."""
    pytest.importorskip("torch")
    from methods.orthogonalize._triton_configs import HALF

    for config in HALF.values():
        assert (config.bm + config.bn) * config.bk * 2 * config.stages < 227 * 1024


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
