"""Time of a training step with FOP against K-FAC: ResNet-18 or VGG16 with batch norm, batch 2048, random images.

    python -m methods.fop._bench [--net resnet18|vgg16|small] [--batch N] [--quick] [--products as-set|tf32|bfloat16]
                                 [--device cpu] [--seconds S] [--arms kfac,fop] [--out FOLDER]

Arm by arm, the cheapest first (forward and backward alone, K-FAC, FOP, then the others): its weights after three steps
of a small net are compared with its float64 run on the CPU, it is warmed up, and one period of 30 steps, three with
statistics and one with a refresh, is timed and printed. Then the arms take turns of a period, so that a slow spell of
the device meets them alike; the table's ratio is the median over rounds of arm / K-FAC. Every number is printed, and
with --out written, as soon as it is known; nothing begins that would not end within --seconds. The net computes in
bfloat16 on a GPU. An arm that fails is printed and the rest goes on.
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

#: Steps from one batch whose statistics are taken to the next, and from one refresh to the next: a timed period.
UPDATE, PERIOD = 10, 30
COMMON: dict[str, Any] = {"lr": 1e-4, "damping": 0.03, "update_period": UPDATE, "refresh_period": PERIOD}
ARMS: dict[str, Callable[..., Any]] = {
    "forward and backward": lambda model, **_: None,
    "kfac": lambda model, **options: KFAC(model, **options),
    "fop": factories.fop,
    "fop (one pass)": lambda model, **options: factories.fop(model, split="batch", **options),
    "kfac-halves": factories.kfac_halves,
    "fop-beta0": factories.beta_zero,
}
BASE = "kfac"
#: Seconds of --quick.
QUICK_S = 60.0


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
    """One optimizer on its own model, in turns of a period."""

    def __init__(self, name: str, options: argparse.Namespace, hyper: dict[str, Any]) -> None:
        self.cuda = options.device != "cpu"
        model = net(options.net).to(options.device)
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = made(name, self.model, hyper)
        self.turns: list[float] = []
        self.seconds = 0.0

    def warm_up(self, x: Tensor, y: Tensor) -> None:
        """To the end of a period: every kind of step has been seen, and turns begin where a period does."""
        for _ in range(PERIOD):
            step(self.model, self.optimizer, x, y, half=self.cuda)
        self._wait()

    def turn(self, x: Tensor, y: Tensor) -> float:
        """Milliseconds a step of one period, the device waited for at both ends."""
        self._wait()
        begin = time.perf_counter()
        for _ in range(PERIOD):
            step(self.model, self.optimizer, x, y, half=self.cuda)
        self._wait()
        self.seconds = time.perf_counter() - begin
        return self.seconds / PERIOD * 1e3

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


class Bench:
    """All arms in turns, within a number of seconds."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.begin = options, time.perf_counter()
        self.hyper = {**COMMON, "product_dtype": options.products}
        if options.products == "bfloat16":
            self.hyper["inverse_dtype"] = "bfloat16"
        self.arms: dict[str, Arm] = {}
        device = torch.cuda.get_device_name() if options.device != "cpu" else "cpu"
        self.found: dict[str, Any] = {
            "device": device, "torch": torch.__version__, "net": options.net, "batch": options.batch,
            "products": options.products, "period": PERIOD, "arms": {},
        }  # fmt: skip

    def left(self) -> float:
        """Seconds left."""
        return float(self.options.seconds) - (time.perf_counter() - self.begin)

    def say(self, text: str) -> None:
        """A line with the time."""
        print(f"[{time.perf_counter() - self.begin:5.1f} s] {text}", flush=True)

    def write(self) -> None:
        """What is known so far."""
        if self.options.out:
            folder = Path(self.options.out)
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"fop-{self.options.net}.json"
            path.write_text(json.dumps(self.found, indent=1), encoding="utf-8")

    def run(self) -> dict[str, Any]:
        """Arm by arm, then round by round."""
        self.say(f"{self.options.net}, batch {self.options.batch} on {self.found['device']}")
        x, y = data(self.options.batch, self.options.device)
        longest = 0.0
        for name in self.options.arms or ARMS:
            if self.left() < longest:
                self.say(f"{name}: left out, {self.left():.0f} s are left and an arm took up to {longest:.0f} s")
                self.found["arms"][name] = {"left_out": "time"}
                continue
            begin = time.perf_counter()
            self._first(name, x, y)
            longest = max(longest, time.perf_counter() - begin)
        rounds = 1
        while rounds < self.options.rounds and self.arms and self.left() > 1.1 * self._round_s():
            order = list(self.arms) if rounds % 2 == 0 else list(reversed(self.arms))
            for name in order:
                self.arms[name].turns.append(self.arms[name].turn(x, y))
            rounds += 1
            for name in self.arms:
                self._sum_up(name)
            self.say(f"round {rounds} of {self.options.rounds}: {self._ratios()}")
            self.write()
        for name, arm in self.arms.items():
            if self.left() > 1.1 * arm.seconds and hasattr(arm.optimizer, "parts"):
                arm.optimizer.parts()
                arm.turn(x, y)
                self.found["arms"][name]["parts"] = {k: v / PERIOD * 1e3 for k, v in arm.optimizer.parts().items()}
        self.write()
        return self.found

    def _first(self, name: str, x: Tensor, y: Tensor) -> None:
        """An arm's check, warm-up and first period."""
        entry: dict[str, Any] = {}
        self.found["arms"][name] = entry
        try:
            if name != "forward and backward":
                entry["error"] = error(name, self.options.device, self.hyper)
            arm = Arm(name, self.options, self.hyper)
            arm.warm_up(x, y)
            arm.turns.append(arm.turn(x, y))
            self.arms[name] = arm
            self._sum_up(name)
            self.say(f"{name}: {entry['ms']:.2f} ms a step, error {entry.get('error', 0.0):.1e}; {self._ratios()}")
        except Exception as failure:
            entry["failed"] = repr(failure)
            self.say(f"{name}: FAILED {failure!r}\n{traceback.format_exc(limit=-3)}")
        self.write()

    def _round_s(self) -> float:
        return sum(arm.seconds for arm in self.arms.values())

    def _sum_up(self, name: str) -> None:
        arm, entry = self.arms[name], self.found["arms"][name]
        entry |= {"ms": median(arm.turns), "turns": list(arm.turns)}
        if BASE in self.arms:
            pairs = zip(arm.turns, self.arms[BASE].turns, strict=False)
            entry["ratio"] = median(mine / base for mine, base in pairs)
        if hasattr(arm.optimizer, "memory_usage"):
            entry["state"] = sum(arm.optimizer.memory_usage().values()) / 2**20
        if hasattr(arm.optimizer, "coefficients"):
            entry["coefficients"] = arm.optimizer.coefficients()

    def _ratios(self) -> str:
        shown = {n: e["ratio"] for n, e in self.found["arms"].items() if "ratio" in e and n != BASE}
        return ", ".join(f"{name} {ratio:.3f} of {BASE}" for name, ratio in shown.items()) or "no ratio yet"


def table(found: dict[str, Any]) -> str:
    """Milliseconds a step, ratio to K-FAC, state in MiB, parts."""
    lines = [f"{'arm':22}{'error':>9}{'ms':>9}{'÷ kfac':>9}{'state':>9}  parts"]
    for name, entry in found["arms"].items():
        if "ms" not in entry:
            lines.append(f"{name:22}{'failed' if 'failed' in entry else 'left out':>9}")
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
    parser.add_argument("--rounds", type=int, help="periods of every arm; default 12, quick 5")
    parser.add_argument("--seconds", type=float, help="nothing begins that would not end by then; quick: 60")
    parser.add_argument("--arms", help="comma-separated, in this order; default: all, the cheapest first")
    parser.add_argument("--quick", action="store_true", help="60 seconds at most")
    parser.add_argument("--out", help="folder for a JSON file, written as numbers come")
    options = parser.parse_args()
    options.rounds = options.rounds or (5 if options.quick else 12)
    options.seconds = options.seconds or (QUICK_S if options.quick else float("inf"))
    options.arms = options.arms.split(",") if options.arms else None
    for name in [one for one in options.arms or [] if one not in ARMS]:
        parser.error(f"--arms: no arm {name!r}; there are {', '.join(ARMS)}")
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; try it with --device cpu --net small --batch 64")
    found = Bench(options).run()
    print(f"\n{found['device']}, torch {found['torch']}, {options.net}, batch {options.batch}, {options.products}")
    print(table(found))


if __name__ == "__main__":
    main()
