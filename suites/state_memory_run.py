"""The command of suite ``state_memory``: formulas on the meta device, two whole updates where a network fits."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.catalogue import registry
from harness.catalogue.method import Method
from harness.catalogue.suite import Problem
from harness.errors import Unsupported
from harness.measure.training.state import state_bytes
from harness.measure.training_device import TrainingCPU, open_training
from harness.record.run import Status
from suites import state_memory_formula as formula
from suites.recorded import Recorder, recording
from suites.state_memory import HALVES, NETWORKS, SMALL, SUITE, Network
from suites.training import nets

#: Keyword of SINGD and its relatives for the dtype of their factors.
HELD = "preconditioner_dtype"
STEPS = 2


def run(
    problems: Sequence[Problem],
    methods: Sequence[Method],
    hyper: Mapping[str, Mapping[str, Any]],
    out: Path,
    quick: bool,
) -> Path:
    """Count, and measure what is not meta; returns the record file."""
    device = problems[0].device if problems else "cpu"
    where = open_training(device, "torch-default")
    with recording(SUITE, problems, methods, out, "quick" if quick else "standard", device) as recorder:
        for problem in problems:
            for method in methods:
                if problem.dtype != "float32" and method.name not in HALVES:
                    continue
                _case(recorder, problem, method, hyper[method.name], where, quick)
    print(f"{recorder.count} cases: {recorder.path}", flush=True)
    return recorder.path


def _case(
    recorder: Recorder, problem: Problem, method: Method, hyper: Mapping[str, Any], where: TrainingCPU, quick: bool
) -> None:
    network = {**NETWORKS, **SMALL}[problem.kind]
    given = {**hyper, **({HELD: problem.dtype} if method.name in HALVES else {})}
    status: Status = "passed"
    reason: str | None = None
    measured: dict[str, tuple[float, str]] = {}
    detail: dict[str, Any] = {"hyper": given, "meta": bool(problem.params.get("meta"))}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            measured |= counted(network, method, given, problem.dtype)
            if not problem.params.get("meta"):
                batch = max(1, network.batch // (8 if quick else 1))
                measured |= trained(network, method, given, problem, batch, where)
                detail["batch"] = batch
    except Unsupported as error:
        status, reason = "unsupported", str(error)
    except Exception as error:
        gone = where.is_out_of_memory(error)
        status = "out_of_memory" if gone else "error"
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if {"optimizer_state_bytes", "formula_bytes"} <= measured.keys():
        ratio = measured["optimizer_state_bytes"][0] / measured["formula_bytes"][0]
        measured["formula_ratio"] = (ratio, "1")
    recorder.run("memory", method.name, problem, status, reason, measured, detail)
    if not detail["meta"] or status != "passed":
        state, peak, ratio = (
            measured.get(name, (0.0, ""))[0] for name in ("optimizer_state_bytes", "peak_device_bytes", "formula_ratio")
        )
        told = f"state {state / 2**20:.3f} MiB, peak {peak / 2**20:.0f} MiB, measured / formula {ratio:.4f}"
        print(f"{problem.id} {method.name}: {status} {told} {reason or ''}", flush=True)


def built(network: Network) -> nn.Module:
    """The network, or its trained part, in float32 on the default device."""
    whole = nets.build(network.net, **network.options)
    model: nn.Module = getattr(whole, network.part) if network.part else whole
    if isinstance(model, nn.ModuleList):
        model = nn.Sequential(*model)
    return model


def counted(
    network: Network, method: Method, hyper: Mapping[str, Any], dtype: str = "float32"
) -> dict[str, tuple[float, str]]:
    """Bytes of weights, and of the state by formula, with nothing allocated.

    Which parameters the fallback has is the optimizer's own ``coverage``, of one built on the meta device.
    """
    with torch.device("meta"):
        model = built(network)
    weights = float(sum(p.numel() * 4 for p in model.parameters()))
    measured = {"parameter_bytes": (weights, "bytes")}
    name = method.name.removeprefix("training.")
    # The fast orthogonalizers refuse the meta device; torch's own Muon takes the same weights.
    factory = registry.method("training.torch-muon") if name == "muon" else method
    made = registry.resolve(factory.impl)(model, **({} if name == "muon" else hyper))
    coverage: Mapping[str, int] = made.coverage
    fallback = _fallback_tensors(made, model, coverage)
    total = formula.first_order(coverage, fallback)
    sizes = formula.layers(model)
    itemsize = torch.empty((), dtype=getattr(torch, dtype), device="meta").element_size()
    if name.startswith("kfac"):
        total += formula.kfac(sizes)
    elif name in ("ikfac", "ingd") or name.startswith("singd-"):
        structure = "dense" if name in ("ikfac", "ingd") else name.removeprefix("singd-")
        rank = int(hyper.get("rank", method.hyper.get("rank", 1)))
        total += formula.singd(sizes, structure, itemsize, momentum=name != "ikfac", rank=rank)
    close = getattr(made, "close", None)
    if close is not None:
        close()
    return {**measured, "formula_bytes": (float(total), "bytes")}


def _fallback_tensors(optimizer: Any, model: nn.Module, coverage: Mapping[str, int]) -> int:
    """Parameters of the part ``adamw``: those whose scalars, counted from the end of the groups, make up its share."""
    if "adamw" not in coverage:
        return 0
    if len(coverage) == 1:
        return sum(1 for _ in model.parameters())
    fallback = getattr(optimizer, "fallback", None)
    groups = fallback.param_groups if fallback is not None else optimizer.param_groups[1:]
    return sum(len(group["params"]) for group in groups)


def trained(
    network: Network, method: Method, hyper: Mapping[str, Any], problem: Problem, batch: int, where: TrainingCPU
) -> dict[str, tuple[float, str]]:
    """State and peak after two whole updates, statistics and refresh in both."""
    if problem.device != "cpu" and problem.id not in _rehearsed:
        _rehearse(network, problem, batch)
        _rehearsed.add(problem.id)
    where.clear()
    gc.collect()
    where.peak_start()
    torch.manual_seed(0)
    device = problem.device
    model = built(network).to(device)
    optimizer = registry.resolve(method.impl)(model, **hyper)
    inputs = _inputs(network, batch, device)
    for _ in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        with _autocast(problem):
            loss = model(inputs).float().square().mean()
        loss.backward()
        optimizer.step()
    where.synchronize()
    found: dict[str, tuple[float, str]] = {}
    peak = where.device_peak()
    if peak > 0:
        found["peak_device_bytes"] = (peak, "bytes")
    state = float(state_bytes(optimizer, model))
    found |= {"optimizer_state_bytes": (state, "bytes"), "held_bytes": (_held(optimizer, state), "bytes")}
    close = getattr(optimizer, "close", None)
    if close is not None:
        close()
    del optimizer, model, inputs, loss
    return found


#: Problems whose passes have been made once in this process.
_rehearsed: set[str] = set()


def _rehearse(network: Network, problem: Problem, batch: int) -> None:
    """Forward and backward once without an optimizer.

    The first passes of a process search for algorithms, and the workspaces that they try were counted as the first
    method's: AdamW on VGG16_bn showed 2,943 MiB on an H100, and 936 in a process that had run the network before.
    """
    model = built(network).to(problem.device)
    with _autocast(problem):
        loss = model(_inputs(network, batch, problem.device)).float().square().mean()
    loss.backward()


def _held(optimizer: Any, state: float) -> float:
    """Bytes kept from step to step with caches that a checkpoint leaves out; ``state`` where nothing tells."""
    usage = getattr(optimizer, "memory_usage", None)
    return state if usage is None else float(sum(size for name, size in usage().items() if name != "pending"))


@contextlib.contextmanager
def _autocast(problem: Problem) -> Iterator[None]:
    """Autocast when the factors are kept in half precision, as such training goes."""
    if problem.dtype == "float32":
        yield
        return
    with torch.autocast(problem.device, dtype=getattr(torch, problem.dtype)):
        yield


def _inputs(network: Network, batch: int, device: str) -> Tensor:
    if network.tokens:
        return torch.randint(network.tokens, (batch, *network.inputs), device=device)
    return torch.randn(batch, *network.inputs, device=device)
