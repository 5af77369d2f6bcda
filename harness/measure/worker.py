"""A worker process: ``python -m harness.measure.worker FD`` reads jobs (JSON lines) and answers in JSON lines on FD.

Standard output and standard error belong to the method and never carry results. A *check* job gates methods, each in
a process of its own; a *block* job walks the problems and runs every arm in shuffled order, each suite in a process of
its own; a *probe* job measures the machine; a *train* job trains arms to a target; a *refusals* job asks factories what
they make of hyper-parameters. A second argument (``train`` or ``ranks``) names what is imported while the first job is
on its way.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from harness.catalogue import registry
from harness.catalogue.method import Method
from harness.catalogue.protocol import Protocol
from harness.catalogue.suite import Problem
from harness.catalogue.task import Task, TaskRuntime
from harness.measure import gate, micro
from harness.measure.device import Device, open_device, probe
from harness.measure.floor import Floor, floor

AA = "#aa"
#: What stands for an arm while a block's content and oracle are made.
PREPARATION = "(preparation)"
ENERGY_S = 0.4
#: A block's checked output may be this much worse than the gate's worst before its time is refused.
BLOCK_ERROR_FACTOR = 2.0
BLOCK_ERROR_SLACK = 1e-3


class Pipe:
    """The line to the parent."""

    def __init__(self, descriptor: int) -> None:
        self._stream = os.fdopen(descriptor, "w", encoding="utf-8")

    def send(self, **message: Any) -> None:
        """One JSON line, flushed."""
        self._stream.write(json.dumps(message) + "\n")
        self._stream.flush()


def main() -> None:
    """Entry of the process."""
    die_with_parent()
    pipe = Pipe(int(sys.argv[1]))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as stream:
        stream.write("800")
    lines = Lines(0)
    line = _ahead(sys.argv[2], lines) if len(sys.argv) > 2 else lines.read()
    while line:
        job = json.loads(line)
        sys.path[:0] = [path for path in job.get("path", []) if path not in sys.path]
        _JOBS[job["kind"]](job, pipe)
        pipe.send(event="done")
        line = lines.read()


class Lines:
    """Lines of a descriptor, without the locks of a stream: a thread may wait for one while the process ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._rest = descriptor, b""

    def read(self) -> bytes:
        """The next line; empty at the end."""
        while b"\n" not in self._rest:
            chunk = os.read(self._descriptor, 1 << 16)
            if not chunk:
                line, self._rest = self._rest, b""
                return line
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def _ahead(kind: str, lines: Lines) -> bytes:
    from harness.measure.training import ahead

    return ahead.first_job(kind, lines)


def die_with_parent() -> None:
    """On Linux, be killed when the parent dies: nothing may outlive a measurement that was killed itself."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _problem(fields: Mapping[str, Any]) -> Problem:
    fields = {key: value for key, value in fields.items() if key != "id"}
    return Problem(**{**fields, "shape": tuple(fields["shape"]), "tiers": tuple(fields["tiers"])})


def _open(job: Mapping[str, Any]) -> tuple[Task, TaskRuntime, Device, Protocol]:
    suite = registry.suite(job["suite"])
    protocol = Protocol(**job["protocol"])
    device = open_device(job["device"], "torch" in suite.task.needs, protocol.precision)
    return suite.task, registry.resolve(suite.task.runtime), device, protocol


def _floor(method: Method, problem: Problem, job: Mapping[str, Any], itemsize: int) -> Floor | None:
    if method.cost is None:
        return None
    cost = registry.resolve(method.cost)(problem.shape, itemsize)
    return floor(cost, cost.dtype or problem.dtype, job["environment"])


_ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "uint8": 1}


def _checks(job: Mapping[str, Any], pipe: Pipe) -> None:
    """One process per method, forked after the imports that all of them share; CUDA is opened only in the child."""
    _import_runtimes(job["items"])
    for item in job["items"]:
        code = _forked(functools.partial(_check, {**job, **item}, pipe))
        event = "died" if code != 0 else "finished"
        pipe.send(event=event, code=code, suite=item["suite"], method=item["method"])


def _blocks(job: Mapping[str, Any], pipe: Pipe) -> None:
    """One block of every suite, each in a process forked after the imports: what one sets, no other meets."""
    _import_runtimes(job["items"])
    for item in job["items"]:
        first = item["problems"][0]["problem"]["id"]
        pipe.send(event="start", suite=item["suite"], problem=first, arm=PREPARATION)
        code = _forked(functools.partial(_block, {**job, **item}, pipe))
        pipe.send(event="died" if code != 0 else "finished", code=code, suite=item["suite"])


def _import_runtimes(items: Sequence[Mapping[str, Any]]) -> None:
    for name in dict.fromkeys(item["suite"] for item in items):
        registry.resolve(registry.suite(name).task.runtime)


def _forked(work: Callable[[], None]) -> int:
    """The exit code of ``work`` in a child; a negative one is the signal that it died of."""
    child = os.fork()
    if child == 0:
        forked_child(work)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def forked_child(work: Callable[[], None]) -> NoReturn:
    """The whole life of a forked process: it dies with its parent, prints what went wrong, and never returns."""
    code = 1
    die_with_parent()
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _check(job: Mapping[str, Any], pipe: Pipe) -> None:
    _, runtime, device, protocol = _open(job)
    method = registry.method(job["method"])
    for fields in job["problems"]:
        problem = _problem(fields)
        pipe.send(event="start", suite=job["suite"], method=method.name, problem=problem.id)
        before = device.allocated()
        outcome = gate.check(method=method, runtime=runtime, problem=problem, device=device, seeds=protocol.gate_seeds)
        retained = device.allocated() - before
        bound = None
        try:
            bound = _floor(method, problem, job, _ITEMSIZE.get(problem.dtype, 4))
        except Exception as error:
            outcome.mark("error", f"its cost function raised {type(error).__name__}: {error}")
        if bound is not None:
            outcome.detail |= {"floor_s": bound.seconds, "floor_basis": bound.basis}
        memory: dict[str, Any] = {}
        if outcome.status == "passed":
            memory = _memory(method, runtime, problem, device)
            if device.kind == "cuda" and memory["status"] == "passed":
                memory["measurements"]["retained_device_bytes"] = [max(0.0, retained), "bytes"]
        result = {"gate": outcome.to_json(), "memory": memory}
        pipe.send(event="result", suite=job["suite"], method=method.name, problem=problem.id, **result)


def _memory(method: Method, runtime: TaskRuntime, problem: Problem, device: Device) -> dict[str, Any]:
    content = runtime.content(problem, 0)
    try:
        op = runtime.bind(registry.resolve(method.impl), problem, method.hyper)
        peak = micro.memory_pass(op=op, runtime=runtime, content=content, device=device)
        joules = micro.energy_pass(
            op=op,
            runtime=runtime,
            content=content,
            device=device,
            seconds=ENERGY_S,
        )
    except Exception as error:
        status, reason = gate.failure(device, error)
        return {"status": status, "reason": f"in the memory pass: {reason}", "measurements": {}, "detail": {}}
    measurements: dict[str, list[Any]] = {name: [value, "bytes"] for name, value in peak.items()}
    detail = {}
    if isinstance(joules, list):
        measurements["call_energy_j"] = [joules, "J"]
    else:
        detail["energy"] = joules
    return {"status": "passed", "reason": None, "measurements": measurements, "detail": detail}


def _block(job: Mapping[str, Any], pipe: Pipe) -> None:
    task, runtime, device, protocol = _open(job)
    block: int = job["block"]
    for item in job["problems"]:
        problem = _problem(item["problem"])
        pipe.send(event="start", suite=job["suite"], problem=problem.id, arm=PREPARATION)
        # Gate seeds are 0, 1, 2, …: a block's content is one that no gate has seen.
        content = runtime.content(problem, 1000 + block)
        oracle = runtime.oracle(content, problem)
        arms = ordered(item["arms"], f"{job['seed']}/{problem.id}", block)
        if device.kind == "cuda":
            _warm(arms, runtime, problem, content, device, protocol)
        for position, arm in enumerate(arms):
            pipe.send(event="start", suite=job["suite"], problem=problem.id, arm=arm)
            limit = item["limits"].get(arm.removesuffix(AA))
            given = (problem, content, oracle, device, protocol, limit, job["energy"])
            result = _arm(arm, position, task, runtime, *given)
            pipe.send(event="result", suite=job["suite"], problem=problem.id, arm=arm, order=position, **result)


def ordered(arms: Sequence[str], seed: str, block: int) -> list[str]:
    """The block's order: one random order a run and problem, rotated by block and reversed in every second turn.

    Over as many blocks as there are arms each arm stands at each position once, so that what the power controller
    carries over from the arm before does not fall on one arm alone.
    """
    base = sorted(arms)
    random.Random(seed).shuffle(base)
    turn = block % len(base)
    rotated = base[turn:] + base[:turn]
    return rotated[::-1] if block % 2 else rotated


def _warm(
    arms: list[str], runtime: TaskRuntime, problem: Problem, content: Any, device: Device, protocol: Protocol
) -> None:
    baseline = next((arm for arm in arms if arm.endswith(AA)), arms[0]).removesuffix(AA)
    method = registry.method(baseline)
    op = runtime.bind(registry.resolve(method.impl), problem, method.hyper)
    buffer = runtime.buffer_like(content)
    runtime.fill(buffer, content)
    device.warm_up(lambda: op(buffer), protocol.gpu_warmup_s)


def _arm(
    arm: str,
    position: int,
    task: Task,
    runtime: TaskRuntime,
    problem: Problem,
    content: Any,
    oracle: Any,
    device: Device,
    protocol: Protocol,
    limit: float | None,
    energy: bool = False,
) -> dict[str, Any]:
    method = registry.method(arm.removesuffix(AA))
    before = device.settings()
    try:
        op = runtime.bind(registry.resolve(method.impl), problem, method.hyper)
        timing = micro.time_arm(
            op=op,
            runtime=runtime,
            problem=problem,
            content=content,
            device=device,
            protocol=protocol,
            offset=1 + 2000 * position,
        )
        status, reason, errors = _judge_block(task, runtime, problem, content, oracle, timing.output, limit)
        if timing.graph_output is not None and status == "passed":
            replayed = _judge_block(task, runtime, problem, content, oracle, timing.graph_output, limit)
            if replayed[0] != "passed":
                del timing.samples["op_graph_s"]
                timing.notes["op_graph_s"] = f"the replayed graph is wrong: {replayed[1]}"
        if why := device.changed(before):
            status, reason = "impure", f"in a block: {why}"
    except Exception as error:
        status, reason = gate.failure(device, error)
        return {"status": status, "reason": f"in a block: {reason}", "timings": {}, "errors": {}, "detail": {}}
    joules = _joules(op, runtime, content, device) if energy and status == "passed" else []
    if isinstance(joules, str):
        timing.notes["call_energy_j"] = joules
    return {
        "status": status,
        "reason": reason,
        "timings": {name: [clock, samples] for name, (clock, samples) in timing.samples.items()},
        "errors": errors,
        "joules": joules if isinstance(joules, list) else [],
        "detail": {**timing.state, **({"notes": timing.notes} if timing.notes else {})},
    }


def _joules(op: Any, runtime: TaskRuntime, content: Any, device: Device) -> list[float] | str:
    """One window of joules a call; a failure here is a remark, for the times beside it are taken already."""
    try:
        return micro.energy_pass(op=op, runtime=runtime, content=content, device=device, seconds=ENERGY_S, count=1)
    except Exception as error:
        return f"energy: {gate.failure(device, error)[1]}"


def _judge_block(
    task: Task, runtime: TaskRuntime, problem: Problem, content: Any, oracle: Any, output: Any, limit: float | None
) -> tuple[str, str | None, dict[str, float]]:
    """One output per arm and block: well formed, finite, and no worse than at the gate."""
    if why := runtime.malformed(output, runtime.buffer_like(content), problem):
        return "error", f"in a block: {why}", {}
    if why := runtime.nonfinite(output):
        return "nonfinite", f"in a block: {why}", {}
    errors = {k: float(v) for k, v in runtime.glance(output, content, oracle, problem).items()}
    found = errors.get(task.primary_error)
    if found is not None and limit is not None:
        allowed = BLOCK_ERROR_FACTOR * limit + BLOCK_ERROR_SLACK
        if not found <= allowed:
            return (
                "inaccurate",
                f"in a block: {task.primary_error} {found:.3g} against at most {limit:.3g} at the gate",
                errors,
            )
    return "passed", None, errors


def _probe(job: Mapping[str, Any], pipe: Pipe) -> None:
    """Each case's operations, each problem's bytes, and the machine's rates; ``probe_s`` is what that took."""
    _import_runtimes(job["items"])
    begin = time.monotonic()
    facts: dict[str, Any] = {"work": {}, "typical": {}, "bytes": {}}
    for item in job["items"]:
        task, runtime, _, _ = _open({**job, **item})
        for fields in item["problems"]:
            problem = _problem(fields)
            facts["typical"][f"{task.name}/{problem.id}"] = runtime.work_flops(problem)
            facts["bytes"][f"{task.name}/{problem.id}"] = runtime.work_bytes(problem)
        facts["work"] |= _work(item)
        if "torch" in task.needs and "flops_per_s" not in facts:
            facts |= probe(job["device"], job["dtypes"])
    facts["probe_s"] = time.monotonic() - begin
    pipe.send(event="result", facts=facts)


def _work(item: Mapping[str, Any]) -> dict[str, float]:
    """Operations of the cases whose method declares them; a cost that cannot be told leaves the task's own guess."""
    found = {}
    for name in item["methods"]:
        method = registry.method(name)
        if method.cost is None:
            continue
        for problem in map(_problem, item["problems"]):
            with contextlib.suppress(Exception):
                cost = registry.resolve(method.cost)(problem.shape, _ITEMSIZE.get(problem.dtype, 4))
                found[f"{name}/{problem.id}"] = float(cost.flops)
    return found


def _train(job: Mapping[str, Any], pipe: Pipe) -> None:
    from harness.measure.training.worker import train

    train(job, pipe)


def _refusals(job: Mapping[str, Any], pipe: Pipe) -> None:
    from harness.measure.training.probe import answer

    answer(job, pipe)


_JOBS = {"check": _checks, "block": _blocks, "probe": _probe, "train": _train, "refusals": _refusals}

if __name__ == "__main__":
    main()
