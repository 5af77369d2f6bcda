"""Run-time side of the task ``whole_network``: images as contents, the float64 network as oracle."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import pickle
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.catalogue.data import cache
from harness.catalogue.suite import Problem
from harness.catalogue.task import Fact, Judgement
from harness.conformance import EdgeCase
from harness.errors import Unsupported, UserError
from suites.amm import fitted, network_sources
from suites.amm.contents import Rows
from suites.amm.oracle import Answer
from suites.amm.runtime import ProductRuntime

#: Gates on nmse_norm. float32: relative errors of 1e-3, far above rounding through a dozen layers and far below a
#: wrong answer. bfloat16 rounds every activation by 2^-9, some ten times over, and argues with itself no further.
LIMITS: Mapping[str, float] = {"float32": 1e-6, "bfloat16": 1e-2, "float16": 1e-3}
#: A network with look-ups must agree with the exact one this many times as often as by chance.
CHANCE = 2.0
#: Images of one piece of the float64 oracle.
PIECE = 250
CLASSES = 10


class NetOperation:
    """``op(rows)`` of one method on one network, fitted outside every clock or read from the cache.

    Attributes:
        hyper: the options it is made with.
        from_disk: whether what was learned was read instead of fitted.
    """

    def __init__(self, impl: Callable[..., Any], problem: Problem, hyper: Mapping[str, Any]) -> None:
        self.hyper = fitted.options(impl, problem, hyper)
        found = network_sources.source(str(problem.params["net"]))
        net = copy.deepcopy(found.net).to(problem.device)
        self.from_disk = False
        try:
            estimator = impl(**self.hyper)
            path = _place(impl, problem, self.hyper, found.digest)
            stored = _read(path)
            if stored is not None and hasattr(estimator, "restore"):
                self.op, self.from_disk = estimator.restore(net, stored), True
                return
            train, labels = (t.to(problem.device) for t in (found.train, found.train_y))
            self.op = estimator.fit(net, train, labels)
        except UserError as error:
            # The suite chose the options: a refusal is the method's limit, not the user's mistake.
            raise Unsupported(str(error)) from error
        state = self.op.state() if hasattr(self.op, "state") else None
        if state is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".part")
            torch.save(state, partial)
            partial.replace(path)

    @property
    def approximate(self) -> bool:
        """Whether its answers are meant to differ."""
        return bool(getattr(self.op, "approximate", False))

    def __call__(self, rows: Rows) -> Any:
        """Logits of the buffer's images."""
        return self.op(rows.a)


def _place(impl: Callable[..., Any], problem: Problem, hyper: Mapping[str, Any], digest: str) -> Path:
    """The cache's file of everything that a fitted network depends on."""
    target = f"{impl.__module__}:{getattr(impl, '__qualname__', repr(impl))}"
    facts = [target, dict(hyper), digest, problem.device, fitted.code(impl.__module__), torch.__version__]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]
    return cache.cache_folder() / "fitted" / f"network-{key}.pt"


def _read(path: Path) -> dict[str, Any] | None:
    """What was kept; None when there is nothing that can be read: then it is fitted again."""
    try:
        stored: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError):
        return None
    return stored


class NetworkRuntime(ProductRuntime):
    """Contents are :class:`suites.amm.contents.Rows` of images; outputs are logits."""

    def __init__(self) -> None:
        super().__init__()
        self._bound: list[weakref.ref[NetOperation]] = []

    def content(self, problem: Problem, seed: int) -> Rows:
        """Different test images in a random order."""
        found = network_sources.source(str(problem.params["net"]))
        n = problem.shape[0]
        if found.pool.shape[1:] != problem.shape[1:] or n > len(found.pool):
            raise UserError(f"{problem.id}: there are {tuple(found.pool.shape)} test images.")
        index = np.random.default_rng([problem.seed, seed, 78]).permutation(len(found.pool))[:n]
        return Rows(a=found.pool[torch.from_numpy(index)].to(problem.device), index=index)

    def bind(self, impl: Any, problem: Problem, hyper: Mapping[str, Any]) -> Any:
        """The method fitted to the network.

        Raises:
            UserError: ``impl`` cannot be called.
            Unsupported: the method refuses the network.
        """
        if not callable(impl):
            raise UserError(f"a network method is a factory make(**hyper) with fit(net, …); got {type(impl).__name__}.")
        operation = NetOperation(impl, problem, hyper)
        self._bound = [*self._bound[-1:], weakref.ref(operation)]
        return operation

    def malformed(self, output: Any, buffer: Rows, problem: Problem) -> str | None:
        """Why ``output`` is not a new dense float32 tensor [N, classes] on the images' device."""
        flat = Problem(kind="logits", shape=(problem.shape[0], 1, CLASSES), dtype=problem.dtype, device=problem.device)
        return super().malformed(output, buffer, flat)

    def oracle(self, content: Rows, problem: Problem) -> Answer:
        """The network in float64 on the images actually passed."""
        found = network_sources.source(str(problem.params["net"]))
        net, images = copy.deepcopy(found.net).double().to(content.a.device), content.whole()
        with torch.no_grad():
            y = torch.cat([net(piece.double()) for piece in torch.split(images, PIECE)])
        norm = float(y.norm())
        return Answer(
            y=y,
            scale=norm,
            trivial=norm,
            labels=found.labels[torch.from_numpy(content.numbers())].to(y.device),
            bias=torch.zeros(y.shape[1], dtype=y.dtype, device=y.device),
        )

    def judge(
        self,
        output: Tensor,
        content: Rows,
        oracle: Answer,
        problem: Problem,
        reference: Callable[[Any], Any] | None,
    ) -> Judgement:
        """Accuracy by the class of the method: rounding for exact networks, better than chance for look-ups."""
        operation = next((op for found in reversed(self._bound) if (op := found()) is not None), None)
        errors = dict(self.glance(output, content, oracle, problem))
        if operation is not None and operation.approximate:
            least = CHANCE / CLASSES
            if not (errors["cosine"] > 0.0 and errors["argmax_agreement"] > least):
                reason = (
                    f"agrees with the exact network on {errors['argmax_agreement']:.3g} of the images (must be above "
                    f"{least:g}), cosine {errors['cosine']:.3g} (must be positive)"
                )
                return Judgement(status="inaccurate", reason=reason, errors=errors)
            return Judgement(status="passed", reason=None, errors=errors)
        told = operation.op.describe() if operation is not None and hasattr(operation.op, "describe") else {}
        limit = LIMITS.get(str(told.get("dtype")), LIMITS["float32"])
        if not errors["nmse_norm"] <= limit:
            reason = f"nmse_norm is {errors['nmse_norm']:.4g}, its limit {limit:.3g}"
            return Judgement(status="inaccurate", reason=reason, errors=errors)
        return Judgement(status="passed", reason=None, errors=errors)

    def parts(self, op: Any) -> Mapping[str, Callable[[Rows], Any]]:
        """None."""
        return {}

    def facts(self, op: Any, content: Rows, problem: Problem) -> tuple[Mapping[str, Fact], dict[str, Any]]:
        """Seconds of replacing and tuning, what runs, and every layer that was replaced."""
        inner = op.op
        numbers: dict[str, Fact] = {
            name: ([float(value)], "s") for name, value in getattr(inner, "times", {}).items() if value > 0
        }
        found = network_sources.source(str(problem.params["net"]))
        detail: dict[str, Any] = {"hyper": op.hyper, "data": found.digest, "train_images": len(found.train)}
        if hasattr(inner, "describe"):
            detail["runs"] = inner.describe()
        if getattr(inner, "report", None):
            detail["layers"] = inner.report
        if op.from_disk:
            detail["fitted"] = "read from the cache; the times are those of its fit"
        return numbers, detail

    def edge_cases(self, device: str) -> Iterator[EdgeCase]:
        """One image, images whose channels lie together, and black ones; digits, whose data need no download."""
        for name, n, layout in (("one image", 1, "plain"), ("channels last", 33, "last"), ("all zero", 5, "zero")):
            problem = Problem(
                kind="digits_cnn_edge",
                shape=(n, 1, 8, 8),
                dtype="float32",
                device="cuda" if device == "cuda" else "cpu",
                params={"net": "digits-cnn", "hyper": {"patch": 9, "updates": 2, "calibration": 200}},
            )
            rows = self.content(problem, 0)
            a = rows.a.to(memory_format=torch.channels_last) if layout == "last" else rows.a
            a = a * 0.0 if layout == "zero" else a
            expect = "finite" if layout == "zero" or n == 1 else "judged"
            yield EdgeCase(name=name, problem=problem, content=Rows(a=a, index=rows.index), expect=expect)  # type: ignore[arg-type]

    def work_bytes(self, problem: Problem) -> int:
        """Bytes of one batch."""
        return 4 * math.prod(problem.shape)

    def work_flops(self, problem: Problem) -> float:
        """Of the exact network, from its layers' shapes on one image."""
        found = network_sources.source(str(problem.params["net"]))
        total: list[float] = []

        def count(layer: Any, inputs: Any, output: Tensor) -> None:
            total.append(2.0 * layer.weight[0].numel() * output.numel())

        kinds = (torch.nn.Conv2d, torch.nn.Linear)
        hooks = [m.register_forward_hook(count) for m in found.net.modules() if isinstance(m, kinds)]
        try:
            with torch.no_grad():
                found.net(found.pool[:1])
        finally:
            for hook in hooks:
                hook.remove()
        return problem.shape[0] * sum(total)


RUNTIME = NetworkRuntime()
