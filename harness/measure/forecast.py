"""Seconds that a plan takes, by the probe, by its gates and by its blocks; and what is dropped to keep a budget."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from harness.catalogue.method import Method
from harness.catalogue.suite import Case, Problem
from harness.measure.plan import BUDGET_REASON, Plan, SuitePlan
from harness.measure.worker import AA, ENERGY_S, PREPARATION

#: Part of the budget that is kept for writing, judging and rendering.
RESERVE = 0.04
#: What is measured already may end this much over the budget before blocks, or the only problem of a suite, are lost.
OVERRUN = 0.1
#: A start imports torch: the yardstick of everything that Python and not arithmetic takes. In starts, on two cores of
#: 2026-11-23 (3.4 s each): a gate (fork, imports, contents, comparisons), a suite's process in a block, an arm in it.
_GATE_STARTS, _SUITE_STARTS, _ARM_STARTS = 0.1, 0.1, 0.01
#: Calls of the gate: one per seed, one repeated, two for memory; a plain twin runs once a seed at twice the work.
_GATE_CALLS, _TWIN_CALLS = 6.0, 6.0
#: Work of the checks, in calls at the rate of float64: of a gate, and of one problem in a block.
_JUDGE_CALLS, _ORACLE_CALLS = 3.0, 4.0
#: Passes over one content that a gate and an arm make (draw, copy, compare), and the bytes a second of a pass.
_GATE_PASSES, _ARM_PASSES = 30.0, 4.0
_BYTES_PER_S = {"cpu": 2e9, "cuda": 1e12}
#: Calls before the samples of an arm and after them.
_BLOCK_CALLS = 2.0
#: A window of energy with what finds its length and its first tick.
_ENERGY_WINDOWS = 1.5
#: Seconds of the smallest call, and of varying and copying for the smallest sample.
_CALL_S, _SAMPLE_S = 1e-4, 1e-3
#: Seconds that a compiled shape costs at the gate (6 read from the compiler's cache, 10 to 20 anew), and in a block.
_COMPILE_S, _CACHED_COMPILE_S = 10.0, 2.5
#: CPU time of a product relative to float32 while no probe has told it.
_DTYPE_FACTOR = {"bfloat16": 4.0, "float16": 6.0, "float64": 2.0}
#: A cell that takes this many times its problem's median arm is dear.
DEAR = 4.0
#: A suite's gates so far scale those to come, within these limits.
_SCALE = (0.5, 5.0)

#: A suite and the id of one of its cases.
Lost = tuple[SuitePlan, str]


def arithmetic(method: Method, problem: Problem) -> str:
    """Dtype that a method computes in where its time is concerned."""
    return "bfloat16" if "slow-cpu" in method.tags and problem.device == "cpu" else problem.dtype


class Forecast:
    """What is known about the speed of this machine, best source first: blocks, gates, probe.

    Attributes:
        start_s: from the start of a worker to its first answer.
        rates: products by dtype in FLOP/s; ``float32`` on a CPU, ``""`` on a GPU, and others that were asked for.
        work: operations of a case that its method declares.
        typical: operations of a problem that its task guesses, by "task/problem".
        sizes: bytes of one content, by "task/problem".
        calls: seconds of one call, by case, as its gate found them.
        gated: whether a case passed.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.start_s = 3.0
        self.rates: dict[str, float] = {"": 1e10}
        self.work: dict[str, float] = {}
        self.typical: dict[str, float] = {}
        self.sizes: dict[str, float] = {}
        self.calls: dict[str, float] = {}
        self.gated: dict[str, bool] = {}
        self._firsts: dict[str, list[float]] = {}
        self._seen: dict[str, list[Problem]] = {}
        self._problems = {problem.id: problem for part in plan.suites for problem in part.suite.problems}
        self._gate_walls: dict[str, float] = {}
        self._block_walls: dict[tuple[str, str], dict[str, list[float]]] = {}
        self._block_rests: list[float] = []

    # -- learning --------------------------------------------------------------------------------------------------

    def probed(self, facts: Mapping[str, Any], start_s: float) -> None:
        """The probe's answer."""
        self.start_s = start_s
        self.work, self.typical, self.sizes = facts["work"], facts["typical"], facts["bytes"]
        if facts.get("flops_per_s"):
            self.rates = {"": facts["flops_per_s"], **facts.get("rates", {})}

    def gate(self, record: Mapping[str, Any]) -> None:
        """A stored gate."""
        case, method = record["case"], record["method"]
        self.gated[case] = record["status"] == "passed"
        if record["problem"] in self._problems:
            self._seen.setdefault(method, []).append(self._problems[record["problem"]])
        if planning_s := record.get("detail", {}).get("planning_s"):
            self.calls[case] = float(planning_s)
        for measurement in record.get("measurements", ()):
            if measurement["metric"] == "first_call_s":
                self._firsts.setdefault(method, []).append(float(measurement["samples"][0]))

    def gate_took(self, case: str, seconds: float) -> None:
        """Wall time of a case's gate."""
        self._gate_walls[case] = self._gate_walls.get(case, 0.0) + seconds

    def block_took(self, arms: Mapping[tuple[str, str, str], float], rest_s: float) -> None:
        """Wall time of one block by (suite, problem, arm), and of what belongs to none of them."""
        for (suite, problem, arm), seconds in arms.items():
            self._block_walls.setdefault((suite, problem), {}).setdefault(arm, []).append(seconds)
        self._block_rests.append(rest_s)

    # -- forecasting -----------------------------------------------------------------------------------------------

    def left_s(self, blocks_done: int = 0) -> float:
        """Seconds that are still to come."""
        return sum(self.part_s(part, blocks_done) for part in self.plan.suites) + self._shared_s(blocks_done)

    def _shared_s(self, blocks_done: int) -> float:
        open_ = any(self._ungated(part, problem) for part in self.plan.suites for problem in part.problems)
        start = statistics.median(self._block_rests) if self._block_rests else self.start_s
        return self.start_s * open_ + (self.plan.blocks - blocks_done) * start

    def part_s(self, part: SuitePlan, blocks_done: int = 0) -> float:
        """Seconds still to come of one suite, without the starts that all suites share."""
        if not part.problems:
            return 0.0
        blocks = self.plan.blocks - blocks_done
        alone = 0.0 if self._block_rests else blocks * _SUITE_STARTS * self.start_s
        gates = sum(self._gate_s(part, m, problem) for problem in part.problems for m in self._ungated(part, problem))
        return alone + self._scale(part) * gates + blocks * sum(self.block_s(part, p) for p in part.problems)

    def block_s(self, part: SuitePlan, problem: Problem) -> float:
        """Seconds of one problem in one block."""
        walls = self._block_walls.get((part.suite.name, problem.id), {})
        arms = [self._arm_s(part, method, problem) for method, _ in self._timed(part, problem)]
        if not arms:
            return 0.0
        if walls:
            return sum(arms) + statistics.median(walls.get(PREPARATION, [0.0]))
        warm_up = part.protocol.gpu_warmup_s if problem.device == "cuda" else 0.0
        return sum(arms) + warm_up + _ORACLE_CALLS * self._check_s(part, problem)

    def _arm_s(self, part: SuitePlan, method: Method, problem: Problem) -> float:
        """Seconds of one method in one block, the baseline with its alias."""
        names = [method.name, *([method.name + AA] if method.name == part.suite.baseline else [])]
        walls = self._block_walls.get((part.suite.name, problem.id), {})
        if all(name in walls for name in names):
            return sum(statistics.median(walls[name]) for name in names)
        call, protocol = self.call_s(part, method, problem), part.protocol
        sampled = max(call, min(protocol.inner_s, protocol.max_inner * (call + _SAMPLE_S)))
        sampled = protocol.gpu_arm_s * 3 if problem.device == "cuda" else sampled
        own = _ARM_STARTS * self.start_s + _ARM_PASSES * self._pass_s(part, problem)
        own += _ENERGY_WINDOWS * max(ENERGY_S, call) if self.plan.request.energy else 0.0
        compiled = _CACHED_COMPILE_S if "compile" in method.tags else 0.0
        return compiled + len(names) * (own + _BLOCK_CALLS * call + sampled)

    def call_s(self, part: SuitePlan, method: Method, problem: Problem) -> float:
        """Seconds of one call: as gated; else the model, corrected by what the method took on other problems."""
        case = Case(method=method.name, problem=problem).id
        if case in self.calls:
            return self.calls[case]
        ratios = [
            self.calls[known] / self._model_s(part, method, other)
            for other in self._seen.get(method.name, ())
            if (known := Case(method=method.name, problem=other).id) in self.calls
        ]
        return self._model_s(part, method, problem) * (statistics.median(ratios) if ratios else 1.0)

    def _model_s(self, part: SuitePlan, method: Method, problem: Problem) -> float:
        flops = self.work.get(Case(method=method.name, problem=problem).id, self._typical(part, problem))
        return _CALL_S + flops / self._rate(arithmetic(method, problem), problem) + self._pass_s(part, problem)

    def _typical(self, part: SuitePlan, problem: Problem) -> float:
        return self.typical.get(f"{part.suite.task.name}/{problem.id}", 0.0)

    def _pass_s(self, part: SuitePlan, problem: Problem) -> float:
        return self.sizes.get(f"{part.suite.task.name}/{problem.id}", 0.0) / _BYTES_PER_S[problem.device]

    def _check_s(self, part: SuitePlan, problem: Problem) -> float:
        return self._typical(part, problem) / self._rate("float64", problem)

    def _rate(self, dtype: str, problem: Problem) -> float:
        if problem.device == "cuda" or dtype == "float32":
            return self.rates[""]
        return self.rates.get(dtype) or self.rates[""] / _DTYPE_FACTOR.get(dtype, 1.0)

    def _gate_s(self, part: SuitePlan, method: Method, problem: Problem) -> float:
        """The model of one gate."""
        seconds = _GATE_STARTS * self.start_s + _JUDGE_CALLS * self._check_s(part, problem)
        seconds += _GATE_PASSES * self._pass_s(part, problem)
        if not self._runs(part, method, problem):
            return seconds
        seconds += _GATE_CALLS * self.call_s(part, method, problem)
        if method.reference is not None:
            seconds += _TWIN_CALLS * self._typical(part, problem) / self._rate(problem.dtype, problem)
        if "compile" in method.tags:
            seconds += statistics.median(self._firsts.get(method.name, [_COMPILE_S]))
        return seconds

    def _scale(self, part: SuitePlan) -> float:
        """How much longer than the model the gates of this suite have taken so far."""
        taken = modelled = 0.0
        for method in part.methods:
            for problem in self._seen.get(method.name, ()):
                if (wall := self._gate_walls.get(Case(method=method.name, problem=problem).id)) is not None:
                    taken, modelled = taken + wall, modelled + self._gate_s(part, method, problem)
        return min(max(taken / modelled, _SCALE[0]), _SCALE[1]) if modelled else 1.0

    def _cells(self, part: SuitePlan, problem: Problem) -> Iterator[tuple[Method, str]]:
        for method in part.methods:
            case = Case(method=method.name, problem=problem).id
            if case not in part.skipped:
                yield method, case

    def _ungated(self, part: SuitePlan, problem: Problem) -> list[Method]:
        return [method for method, case in self._cells(part, problem) if case not in self.gated]

    def _timed(self, part: SuitePlan, problem: Problem) -> list[tuple[Method, str]]:
        return [(method, case) for method, case in self._cells(part, problem) if self._runs(part, method, problem)]

    def _runs(self, part: SuitePlan, method: Method, problem: Problem) -> bool:
        """Whether a method will be timed: as gated here; else unless it has failed wherever it was gated."""
        case = Case(method=method.name, problem=problem).id
        if case in part.skipped:
            return False
        if case in self.gated:
            return self.gated[case]
        told = [self.gated[Case(method=method.name, problem=other).id] for other in self._seen.get(method.name, ())]
        return any(told) if told else True

    # -- the budget ------------------------------------------------------------------------------------------------

    def fit(self, spent_s: float, blocks_done: int = 0) -> list[Lost]:
        """Leave out what the budget has no time for: whole problems, then blocks down to the protocols' least.

        A problem goes from the end of the suite that is furthest over its share; each suite keeps one until gates have
        told what it takes. If the rest still does not fit then, the dearest cells go: methods of over ``DEAR`` times
        the median arm, never a baseline; then whole suites, but that of the largest weight, if that is enough. Once
        blocks are under way they go first, because a problem without all of them is lost.

        Returns:
            Cells that will not be measured, in order; problems without one are gone from the plan, and its blocks may
            have become fewer.
        """
        budget = self.plan.request.budget_s
        if budget is None:
            return []
        least, most = budget * (1 - RESERVE) - spent_s, budget * (1 + OVERRUN) - spent_s
        if blocks_done:
            self._fewer_blocks(budget - spent_s, blocks_done)
            least = most
        lost = self._drop(least, blocks_done)
        self._fewer_blocks(least, blocks_done)
        if self.gated:
            lost += self._drop_dear(most, blocks_done)
            lost += self._drop_suites(most, blocks_done)
        return lost

    def _drop(self, left_s: float, blocks_done: int) -> list[Lost]:
        """Drop problems while what is left does not fit and a suite has several."""
        lost: list[Lost] = []
        while self.left_s(blocks_done) > left_s:
            able = [part for part in self.plan.suites if len(part.problems) > 1]
            if not able:
                break
            part = max(able, key=lambda one: self.part_s(one, blocks_done) / one.suite.weight)
            lost += [(part, case) for _, case in self._cells(part, part.problems[-1])]
            part.problems.pop()
        return lost

    def _drop_dear(self, left_s: float, blocks_done: int) -> list[Lost]:
        """Skip the dearest cells while what is left does not fit."""
        found = []
        for part in self.plan.suites:
            for problem in part.problems:
                arms = {case: self._arm_s(part, m, problem) for m, case in self._timed(part, problem)}
                usual = statistics.median(arms.values()) if arms else 0.0
                baseline = f"{part.suite.baseline}/{problem.id}"
                found += [(s, part, case) for case, s in arms.items() if s > DEAR * usual and case != baseline]
        lost: list[Lost] = []
        for _, part, case in sorted(found, key=lambda item: -item[0]):
            if self.left_s(blocks_done) <= left_s:
                break
            part.skipped[case] = BUDGET_REASON
            lost.append((part, case))
        return lost

    def _drop_suites(self, left_s: float, blocks_done: int) -> list[Lost]:
        """Empty suites until what is left fits; if it never does, none, for nothing would be gained."""
        kept = {part.suite.name: list(part.problems) for part in self.plan.suites}
        heaviest = max(self.plan.suites, key=lambda part: (bool(part.problems), part.suite.weight))
        lost: list[Lost] = []
        while self.left_s(blocks_done) > left_s:
            able = [part for part in self.plan.suites if part.problems and part is not heaviest]
            if not able:
                for part in self.plan.suites:
                    part.problems[:] = kept[part.suite.name]
                return []
            part = max(able, key=lambda one: self.part_s(one, blocks_done) / one.suite.weight)
            lost += [(part, case) for problem in part.problems for _, case in self._cells(part, problem)]
            part.problems.clear()
        return lost

    def _fewer_blocks(self, left_s: float, blocks_done: int) -> None:
        """Take blocks away while what is left does not fit."""
        least = max(blocks_done, *(part.protocol.min_blocks for part in self.plan.suites))
        while self.left_s(blocks_done) > left_s and self.plan.blocks > least:
            self.plan.blocks -= 1
