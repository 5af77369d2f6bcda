"""Time of a training step with FOP against K-FAC: ResNet-18 or VGG16 with batch norm, batch 2048, random images.

    python -m methods.fop._bench [--net resnet18|vgg16|small] [--batch N] [--quick] [--products as-set|tf32|bfloat16]
                                 [--device cpu] [--out FOLDER]

First each arm's weights after three steps of a small net are compared with its float64 run on the CPU. Then all arms
take turns, ten steps each, so that a slow spell of the device meets them alike; the table's ratio is the median over
rounds of arm ÷ K-FAC. The net computes in bfloat16 on a GPU. An arm that fails is printed and the rest goes on.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from methods.fop import factories
from methods.kfac.kfac import KFAC

#: Steps of one turn: one of them takes statistics, and inverses are refreshed in every third turn.
TURN, REFRESH = 10, 30
COMMON: dict[str, Any] = {"lr": 1e-4, "damping": 0.03, "update_period": TURN, "refresh_period": REFRESH}
ARMS: dict[str, Callable[..., Any]] = {
    "forward and backward": lambda model, **_: None,
    "kfac": lambda model, **options: KFAC(model, **options),
    "kfac-halves": factories.kfac_halves,
    "fop": factories.fop,
    "fop (one pass)": lambda model, **options: factories.fop(model, split="batch", **options),
    "fop-beta0": factories.beta_zero,
}
BASE = "kfac"


def net(name: str) -> nn.Module:
    """The net of that name, the same first weights each time."""
    torch.manual_seed(0)
    if name == "resnet18":
        return importlib.import_module("suites.training.nets.resnet").resnet18_cifar()  # type: ignore[no-any-return]
    if name == "vgg16":
        return importlib.import_module("suites.training.nets.vgg").VGG16()  # type: ignore[no-any-return]
    parts: list[nn.Module] = []
    for inputs, width in ((3, 8), (8, 8), (8, 8)):
        parts += [nn.Conv2d(inputs, width, 3, padding=1, stride=2), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(128, 10))


def data(batch: int, device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Random images and labels."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, 32, 32, generator=generator).to(device, dtype)
    y = torch.randint(0, 10, (batch,), generator=generator).to(device)
    return x.contiguous(memory_format=torch.channels_last), y


def made(name: str, model: nn.Module, options: dict[str, Any]) -> Any:
    """The arm's optimizer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ARMS[name](model, **options)


def step(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor, half: bool) -> None:
    """One step; the arm says whether it wants the halves of the batch apart."""

    def closure(part: int | None = None, targets: str = "data") -> Tensor:
        rows = slice(None) if part is None else slice(part * len(x) // 2, (part + 1) * len(x) // 2)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=half):
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    model.zero_grad()
    if optimizer is None:
        closure()
        return
    optimizer.zero_grad()
    if optimizer.step_needs:
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


def error(name: str, device: str, options: dict[str, Any]) -> float:
    """Relative error of the weights' movement after three steps against float64 on the CPU."""
    moved = []
    for place, dtype in ((device, torch.float32), ("cpu", torch.float64)):
        model = net("small").to(place, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        start = torch.cat([p.detach().flatten() for p in model.parameters()]).double().cpu()
        optimizer = made(name, model, options if place == device else COMMON)
        for _ in range(3):
            step(model, optimizer, *data(32, place, dtype), half=False)
        moved.append(torch.cat([p.detach().flatten() for p in model.parameters()]).double().cpu() - start)
    return float((moved[0] - moved[1]).norm() / moved[1].norm())


class Arm:
    """One optimizer on its own model, in turns."""

    def __init__(self, name: str, options: argparse.Namespace, hyper: dict[str, Any]) -> None:
        self.cuda = options.device != "cpu"
        model = net(options.net).to(options.device)
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = made(name, self.model, hyper)
        self.turns: list[float] = []

    def turn(self, x: Tensor, y: Tensor) -> float:
        """Milliseconds a step of one turn, the device waited for at both ends."""
        self._wait()
        begin = time.perf_counter()
        for _ in range(TURN):
            step(self.model, self.optimizer, x, y, half=self.cuda)
        self._wait()
        return (time.perf_counter() - begin) / TURN * 1e3

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All arms in turns."""
    hyper = {**COMMON, "product_dtype": options.products}
    if options.products == "bfloat16":
        hyper["inverse_dtype"] = "bfloat16"
    found: dict[str, dict[str, Any]] = {}
    arms: dict[str, Arm] = {}
    x, y = data(options.batch, options.device)
    for name in ARMS:
        entry = found[name] = {}
        try:
            if name != "forward and backward":
                entry["error"] = error(name, options.device, hyper)
            arms[name] = Arm(name, options, hyper)
            for _ in range(REFRESH // TURN):
                arms[name].turn(x, y)
            print(f"{name}: ready, error {entry.get('error', 0.0):.1e}", flush=True)
        except Exception as failure:
            arms.pop(name, None)
            entry["failed"] = repr(failure)
            print(f"{name}: FAILED {failure!r}\n{traceback.format_exc(limit=-3)}", flush=True)
    for index in range(options.rounds):
        order = list(arms) if index % 2 == 0 else list(reversed(arms))
        for name in order:
            arms[name].turns.append(arms[name].turn(x, y))
        print(f"round {index + 1} of {options.rounds}", flush=True)
    for name, arm in arms.items():
        found[name] |= {"ms": median(arm.turns), "turns": arm.turns}
        if BASE in arms:
            found[name]["ratio"] = median(a / b for a, b in zip(arm.turns, arms[BASE].turns, strict=True))
        if hasattr(arm.optimizer, "memory_usage"):
            found[name]["state"] = sum(arm.optimizer.memory_usage().values()) / 2**20
        if hasattr(arm.optimizer, "parts"):
            arm.optimizer.parts()
            arm.turn(x, y)
            found[name]["parts"] = {k: v / TURN * 1e3 for k, v in arm.optimizer.parts().items()}
        if hasattr(arm.optimizer, "coefficients"):
            found[name]["coefficients"] = arm.optimizer.coefficients()
    return {"device": torch.cuda.get_device_name() if options.device != "cpu" else "cpu", "torch": torch.__version__,
            "net": options.net, "batch": options.batch, "products": options.products, "arms": found}  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """Milliseconds a step, ratio to K-FAC, state in MiB, parts."""
    lines = [f"{'arm':22}{'error':>9}{'ms':>9}{'÷ kfac':>9}{'state':>9}  parts"]
    for name, entry in found["arms"].items():
        if "failed" in entry:
            lines.append(f"{name:22}{'failed':>9}")
            continue
        cells = [f"{entry[key]:9{form}}" if key in entry else f"{'':9}"
                 for key, form in (("error", ".1e"), ("ms", ".2f"), ("ratio", ".3f"), ("state", ".0f"))]  # fmt: skip
        parts = " ".join(f"{k} {v:.2f}" for k, v in entry.get("parts", {}).items())
        lines.append(f"{name:22}{''.join(cells)}  {parts}")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", choices=["resnet18", "vgg16", "small"], default="resnet18")
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--products", choices=["as-set", "tf32", "bfloat16"], default="tf32")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--out", help="folder for a JSON file")
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 12)
    found = run(options)
    print(f"\n{found['device']}, torch {found['torch']}, {options.net}, batch {options.batch}, {options.products}")
    print(table(found))
    if options.out:
        folder = Path(options.out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"fop-{options.net}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
