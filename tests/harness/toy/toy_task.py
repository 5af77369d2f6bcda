"""A task without torch: double every number of a list. The harness is tested on it."""

import math
import random

from harness.catalogue.protocol import Protocol
from harness.catalogue.suite import Problem, Suite
from harness.catalogue.task import Judgement, Task

TASK = Task(
    name="toy",
    summary="double a list of numbers",
    contract="f(list[float]) -> list[float]",
    runtime="toy_task:RUNTIME",
    oracle="twice every number",
    errors={"gap": "largest absolute difference from the oracle"},
    primary_error="gap",
)
SUITE = Suite(
    name="toy",
    task=TASK,
    problems=tuple(
        Problem(kind="uniform", shape=(n,), dtype="float64", tiers=("quick", "standard")) for n in (2000, 4000)
    ),
    baseline="toy.plain",
    protocol=Protocol(inner_s=0.002, max_inner=5, case_timeout_s=4.0),
)


def _equal(a, b):
    return len(a) == len(b) and all(x == y or (math.isnan(x) and math.isnan(y)) for x, y in zip(a, b, strict=True))


class Runtime:
    def content(self, problem, seed):
        rng = random.Random(f"{problem.id}/{seed}")
        return [rng.uniform(1, 2) for _ in range(problem.shape[0])]

    def vary(self, content, step):
        return [*content[step % len(content) :], *content[: step % len(content)]]

    def buffer_like(self, content):
        return [0.0] * len(content)

    def fill(self, buffer, content):
        buffer[:] = content

    def same(self, left, right):
        return _equal(left, right)

    def snapshot(self, value):
        return list(value)

    def bind(self, impl, problem, hyper):
        return impl

    def malformed(self, output, buffer, problem):
        if type(output) is not list:
            return f"expected a list, got {type(output).__name__}"
        if len(output) != problem.shape[0]:
            return f"expected {problem.shape[0]} numbers, got {len(output)}"
        return None

    def nonfinite(self, output):
        bad = sum(not math.isfinite(x) for x in output)
        return f"{bad} of {len(output)} numbers are not finite" if bad else None

    def oracle(self, content, problem):
        return [2 * x for x in content]

    def judge(self, output, content, oracle, problem, reference):
        gap = max(abs(a - b) for a, b in zip(output, oracle, strict=True))
        if reference is not None:
            off = max(abs(a - b) for a, b in zip(output, reference(list(content)), strict=True))
            if off > 1e-9:
                return Judgement(status="unfaithful", reason=f"{off:.3g} from the reference", errors={"gap": gap})
        elif gap > 1e-3:
            return Judgement(status="inaccurate", reason=f"gap {gap:.3g} over 1e-3", errors={"gap": gap})
        return Judgement(status="passed", reason=None, errors={"gap": gap})

    def glance(self, output, content, oracle, problem):
        return {"gap": max(abs(a - b) for a, b in zip(output, oracle, strict=True))}

    def work_bytes(self, problem):
        return 8 * problem.shape[0]

    def work_flops(self, problem):
        return float(problem.shape[0])


RUNTIME = Runtime()
