"""What the benchmark of SINGD runs: arms, nets, batches, one step."""

from __future__ import annotations

import contextlib
import gc
import importlib
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from methods.singd import factories

PERIOD, MIB = 10, 2**20
#: Steps before the first that counts: updates are captured at the third, the step behind an update at the fourth.
WARM = 3 * PERIOD + 5
#: lr is small, so that random labels move no net anywhere.
COMMON: dict[str, Any] = {"lr": 1e-4, "damping": 1e-3, "update_period": PERIOD, "lr_cov": 1e-2}
#: arm -> (factory, options).
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {}),
    "dense-tf32": ("dense", {"products": "tf32"}),
    "dense-bf16": ("dense", {"products": "bf16"}),
    "dense-reduce": ("dense", {"sharing": "reduce"}),
    "ikfac-tf32": ("ikfac", {"products": "tf32"}),
    "diagonal": ("diagonal", {}),
    "diagonal-eager": ("diagonal", {"graphs": "off"}),
    "block30": ("block30", {}),
    "hierarchical15": ("hierarchical15", {}),
    "tril-toeplitz": ("tril_toeplitz", {}),
    "triu-toeplitz": ("triu_toeplitz", {}),
    "tril-tf32": ("tril", {"products": "tf32"}),
    "triu-tf32": ("triu", {"products": "tf32"}),
    "rank1-arrow": ("rank1_arrow", {}),
    "rankk-arrow": ("rankk_arrow", {}),
}
#: The package's names of its structures.
UPSTREAM = {
    "dense": "dense",
    "diagonal": "diagonal",
    "block30": "block30diagonal",
    "hierarchical15": "hierarchical15_15",
    "tril-toeplitz": "triltoeplitz",
}


def net(width: str) -> nn.Module:
    """``full`` (VGG16_bn) or ``small``."""
    torch.manual_seed(0)
    if width == "full":
        return importlib.import_module("suites.training.nets.vgg").VGG16()  # type: ignore[no-any-return]
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
    head = (nn.Linear(16 * 16, 50), nn.ReLU(), nn.Linear(50, 10))
    pools = (nn.MaxPool2d(2), nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), second, nn.ReLU(), *pools, *head)


def batches(count: int, batch: int, device: str, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    """Random images and labels."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        x = torch.randn(batch, 3, 32, 32, generator=generator)
        y = torch.randint(0, 10, (batch,), generator=generator)
        found.append((x.to(device, dtype), y.to(device)))
    return found


def made(arm: str, model: nn.Module, **options: Any) -> Any:
    """The optimizer of an arm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if arm == "sgd":
            return torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, fused=True)
        if arm == "adamw":
            return torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        if arm.startswith("upstream-"):
            return upstream(arm.removeprefix("upstream-"), model)
        factory, own = ARMS[arm]
        return getattr(factories, factory)(model, **{**COMMON, **own, **options})


class Both:
    """The package's optimizer beside AdamW for what it leaves."""

    def __init__(self, first: Any, second: Any) -> None:
        self.parts_ = (first, second)

    def zero_grad(self) -> None:
        """Of both."""
        for one in self.parts_:
            one.zero_grad()

    def step(self) -> None:
        """Of both."""
        for one in self.parts_:
            one.step()


def upstream(arm: str, model: nn.Module) -> Both:
    """The package singd with the same hyper-parameters."""
    package: Any = importlib.import_module("singd.optim.optimizer")
    kind = UPSTREAM[arm.removesuffix("-reduce")]
    sharing = "reduce" if arm.endswith("-reduce") else "expand"
    options = {"lr": 1e-4, "damping": 1e-3, "T": PERIOD, "lr_cov": 1e-2, "structures": (kind, kind)}
    chosen = package.SINGD(model, kfac_approx=sharing, **options)
    mine = {p for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d) for p in m.parameters()}
    rest = [p for p in model.parameters() if p not in mine]
    return Both(chosen, torch.optim.AdamW(rest, lr=1e-3, fused=True))


def step(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor, half: bool) -> None:
    """One training step."""
    (model if optimizer is None else optimizer).zero_grad()
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=half):
        loss = functional.cross_entropy(model(x), y)
    loss.backward()  # type: ignore[no-untyped-call]
    if optimizer is not None:
        optimizer.step()


@contextlib.contextmanager
def fenced(name: str, problems: list[str]) -> Iterator[None]:
    """Print a failure and go on."""
    try:
        yield
    except Exception:
        problems.append(name)
        print(f"{name}: FAILED\n{traceback.format_exc(limit=-6)}", flush=True)
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
