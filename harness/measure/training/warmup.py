"""Warm-up outside the training clock: compile and tune, measure the stall, put everything back, prove it by a hash."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from harness.catalogue.workload import Batch
from harness.measure.training import state
from harness.measure.training.step import Fetch, Stepper

#: Updates of the warm-up: past lazy state, autotuning and the second compilation that gradients of None cause.
UPDATES = 3
#: Pairs of timed groups for the stall: at least and at most, within about as many seconds.
STALL_PAIRS, STALL_MOST, STALL_S = 4, 30, 2.0
#: Under this share in the worst of at least that many pairs nothing more is asked: far below what refuses a time.
STALL_NONE = 0.01
#: Bytes of batches that are kept for it.
STALL_BYTES = 2**30
#: Updates of one group: on a GPU one synchronisation must not weigh on each update.
STALL_GROUP = {"cpu": 1, "cuda": 8}
#: A replayed first update may differ by so much of its own norm (CPU kernels may choose paths by alignment).
REPLAY = 1e-3


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """What the warm-up took and found; ``why`` says what was not put back.

    ``graph_s`` is the first forward and backward pass, which all arms share (compiling, searching kernels; 0 for a
    method with hooks in the model, whose passes are its own), ``seconds`` are the updates after it.
    """

    graph_s: float
    seconds: float
    stall: float | None
    why: str | None


def warm_up(stepper: Stepper, data: Any, seed: int, stall: bool) -> WarmUp:
    """Run updates on a resident batch with dummy labels, then restore model, optimizer, generators and position.

    ``stall``: the share of an update that waits for data.
    """
    device, model, optimizer = stepper.device, stepper.model, stepper.optimizer
    before = state.of_run(model, optimizer, device.random_state(), 0)
    stored = {
        "weights": state.copied(state.weights(model)),
        "optimizer": state.copied(optimizer.state_dict()),
        "random": state.copied(device.random_state()),
        "scaler": stepper.scaler.state_dict() if stepper.scaler is not None else None,
    }
    dummy = _resident(data)
    graph_s = _rehearsed(stepper, dummy, stored) if state.hooks(model) == 0 else 0.0
    start = time.perf_counter()
    stepper.update(dummy, 0)
    moved = state.copied(state.weights(model)) if device.kind == "cpu" else None
    for _ in range(UPDATES - 1):
        stepper.update(dummy, 0)
    device.synchronize()
    seconds = time.perf_counter() - start
    waits = _stall(stepper, data, seed) if stall else None
    _restore(stepper, stored)
    why = None if moved is None else _replayed(stepper, dummy, stored, moved)
    stepper.buckets.collect()
    stepper.buckets.forget()
    device.release()
    if why is None and state.of_run(model, optimizer, device.random_state(), 0) != before:
        why = "after the warm-up its state cannot be put back: the hash of model, optimizer and generators differs"
    return WarmUp(graph_s=graph_s, seconds=seconds, stall=waits, why=why)


def _rehearsed(stepper: Stepper, dummy: Fetch, stored: dict[str, Any]) -> float:
    """Seconds of a forward and backward pass without the method; batch statistics and generators are put back."""
    start = time.perf_counter()
    stepper.passes(dummy)
    stepper.device.synchronize()
    seconds = time.perf_counter() - start
    state.restore_weights(stepper.model, stored["weights"])
    stepper.device.set_random_state(stored["random"])
    return seconds


def _resident(data: Any) -> Fetch:
    """Fetch that needs no work: the same resident batch with dummy labels each time."""
    kept: dict[int, Batch] = {}

    def fetch(first: int, count: int) -> Batch:
        if count not in kept:
            inputs, targets = data.constant(count)
            kept[count] = Batch(inputs, torch.zeros_like(targets))
        return kept[count]

    return fetch


def _restore(stepper: Stepper, stored: dict[str, Any]) -> None:
    state.restore_weights(stepper.model, stored["weights"])
    stepper.optimizer.load_state_dict(state.copied(stored["optimizer"]))
    stepper.device.set_random_state(stored["random"])
    if stepper.scaler is not None:
        stepper.scaler.load_state_dict(stored["scaler"])
    if callable(parts := getattr(stepper.optimizer, "parts", None)):
        parts()


def _replayed(stepper: Stepper, dummy: Fetch, stored: dict[str, Any], moved: dict[str, torch.Tensor]) -> str | None:
    """Repeat the first update after the reset: state hidden from ``state_dict`` shows in where it leads."""
    stepper.update(dummy, 0)
    off = size = 0.0
    for name, tensor in state.weights(stepper.model).items():
        if tensor.is_floating_point():
            off += float((tensor.detach() - moved[name]).double().square().nansum())
            size += float((moved[name] - stored["weights"][name]).double().square().nansum())
    _restore(stepper, stored)
    if off <= REPLAY**2 * size:
        return None
    return (
        f"its load_state_dict does not restore its whole state: the first update after the reset differs from the "
        f"very first one by {(off / size) ** 0.5 if size else float('inf'):.2g} of its norm"
    )


def _stall(stepper: Stepper, data: Any, seed: int) -> float:
    """Groups of updates whose batches are made, and the same updates on the same batches made beforehand, in turn.

    The same content in both: a CPU learns the branches of one batch that is repeated, and runs faster. What counts is
    the time inside the fetch, of the middle group of each kind, and not that of whole groups: work that a method does
    every so many updates falls into more groups of one kind than of the other.
    """
    group, batch = STALL_GROUP[stepper.device.kind], stepper.batch
    times: dict[str, list[tuple[float, float]]] = {"real": [], "resident": []}

    def real(first: int, count: int) -> Batch:
        made: Batch = data.train(seed, first, count)
        return made

    _timed(stepper, real, 0, 1)
    begin = time.perf_counter()
    while len(times["real"]) < STALL_MOST:
        pair = len(times["real"])
        spent = time.perf_counter() - begin
        if pair >= STALL_PAIRS and stepper.ranks.first(math.inf if _none(times) else spent) > STALL_S:
            break
        position = (1 + pair * group) * batch
        order: list[tuple[str, Fetch]] = [("real", real), ("resident", _made(real, position, batch, group))]
        for name, fetch in order if pair % 2 == 0 else order[::-1]:
            _before(data, real, position, batch)
            times[name].append(_timed(stepper, fetch, position, group))
    whole = statistics.median(seconds for seconds, _ in times["real"])
    made, kept = (statistics.median(inside for _, inside in times[name]) for name in ("real", "resident"))
    return (made - kept) / whole


def _none(times: Mapping[str, list[tuple[float, float]]]) -> bool:
    """Whether no pair of (seconds of a group, those inside its fetch) waits for data, whichever halves are compared."""
    most, least = max(inside for _, inside in times["real"]), min(inside for _, inside in times["resident"])
    return most - least <= STALL_NONE * min(seconds for seconds, _ in times["real"])


def _before(data: Any, real: Fetch, position: int, batch: int) -> None:
    """Put the loader where it stands in training: the batch before was the last, and nothing is there ahead of it."""
    if callable(forget := getattr(data, "forget", None)):
        forget()
        real(position - batch, batch)


def _made(real: Fetch, position: int, batch: int, group: int) -> Fetch:
    """The group's batches, resident; in turn when they are too large to keep all."""
    kept = [real(position, batch)]
    size = max(1, sum(t.numel() * t.element_size() for t in state.tensors(list(kept[0]))))
    kept += [real(position + i * batch, batch) for i in range(1, max(1, min(group, STALL_BYTES // size)))]

    def fetch(first: int, count: int) -> Batch:
        index, offset = divmod(first - position, batch)
        inputs, targets = kept[index % len(kept)]
        return Batch(inputs[offset : offset + count], targets[offset : offset + count])

    return fetch


def _timed(stepper: Stepper, fetch: Fetch, position: int, group: int) -> tuple[float, float]:
    """Seconds of a group of updates, and those of them inside the fetch."""
    stepper.device.synchronize()
    start = time.perf_counter()
    for index in range(group):
        stepper.update(fetch, position + index * stepper.batch)
    stepper.device.synchronize()
    elapsed = time.perf_counter() - start
    inside = stepper.buckets.collect().get("data", 0.0)
    stepper.device.release()
    return elapsed, inside
