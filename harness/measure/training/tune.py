"""Tuning: seeded, resumable searches on a held-out part of the training set; every trial is a run in the record."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from harness.catalogue.workload import TRAINER_HYPER, Target, Workload
from harness.errors import MissingDependency
from harness.measure.training.ahead import Crew
from harness.measure.training.executor import TrainExecutor, TrainResult
from harness.measure.training.listener import Listener, Silent
from harness.measure.training.plan import Arm, Part, TrainPlan
from harness.measure.training.spec import RunSpec

#: Initial weights and data order of every trial; verdicts never use it.
STREAM = 20_000_003
#: Trials that are drawn for a worker at a time.
TOGETHER = 4
#: Objective of a run that gave no metric: worse than any miss.
FAILED = 10.0
#: What is minimised: samples to the target, or the last value of the target's metric.
Goal = Literal["target", "final"]
GOALS: tuple[Goal, ...] = ("target", "final")
Space = Mapping[str, Mapping[str, Any]]


@dataclass(kw_only=True)
class Tuned:
    """What a search found for one arm; ``best`` is None when no trial gave a value."""

    log: Path
    best: dict[str, Any] | None
    objective: float | None
    trials: int
    objectives: list[float] = field(default_factory=list)


@dataclass(kw_only=True)
class Search:
    """The record of a tuning and what was found, by arm."""

    result: TrainResult
    found: dict[str, Tuned]


def objective(
    outcome: Mapping[str, Any], target: Target, metric: str, budget_samples: float, goal: Goal = "target"
) -> float:
    """What a trial is minimised by.

    ``target``: reached, the samples to it as a share of the workload's default budget, at most 1; missed, 1 plus the
    relative gap of the best value to the target, at most 9. ``final``: the last value where smaller is better, else 1
    minus it, at most 9. A run without a value: :data:`FAILED`.
    """
    measured = outcome["measurements"]
    values = measured.get(f"curve_{metric}", (None, [], None))[1]
    if outcome["status"] not in ("target_reached", "budget_exhausted"):
        return FAILED
    if goal == "target" and outcome["status"] == "target_reached":
        return min(1.0, float(measured["samples_to_target"][1][0]) / budget_samples)
    if not values:
        return FAILED
    if goal == "final":
        return min(9.0, 1.0 - float(values[-1]) if target.larger_is_better else float(values[-1]))
    best = (max if target.larger_is_better else min)(values)
    gap = abs(target.value - float(best)) / max(abs(target.value), 1e-12)
    return 1.0 + min(8.0, gap)


def tune(
    plan: TrainPlan,
    spaces: Mapping[str, Space],
    trials: int,
    out: Path,
    command: str,
    listener: Listener | None = None,
    goal: Goal = "target",
    crew: Crew | None = None,
) -> Search:
    """Search each arm's space until its study holds ``trials`` trials or the budget is spent.

    ``spaces`` is by arm, a ``crew`` has workers that were started before. The arms take turns, so that all of them have
    had equally many trials at any time; with ``side_by_side`` several trials run at once. A space of listed values
    alone that ``trials`` cover is tried whole.

    Raises:
        MissingDependency: optuna is not installed.
    """
    part = plan.parts[0]
    studies = {arm.name: _study(part, arm, spaces[arm.name], trials, out, goal) for arm in part.runnable()}
    executor = TuneExecutor(plan, out, command, listener or Silent(), crew, studies=studies, goal=goal)
    result = executor.run()
    return Search(result=result, found={name: study.outcome() for name, study in studies.items()})


@dataclass(kw_only=True)
class Study:
    """The search of one arm: its trials are in a journal of optuna's, which a later search goes on with."""

    arm: Arm
    space: Space
    trials: int
    log: Path
    study: Any
    asked: dict[int, Any] = field(default_factory=dict)

    def finished(self) -> list[Any]:
        """Trials that ended."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]

    def left(self) -> int:
        """Trials that nobody has begun."""
        return self.trials - len(self.finished()) - len(self.asked)

    def ask(self) -> tuple[int, dict[str, Any]]:
        """A new trial's number and values."""
        trial = self.study.ask()
        self.asked[trial.number] = trial
        return trial.number, {name: _suggest(trial, name, entry) for name, entry in self.space.items()}

    def tell(self, number: int, value: float) -> None:
        """How a trial ended."""
        self.study.tell(self.asked.pop(number), value)

    def outcome(self) -> Tuned:
        """The best so far."""
        done = self.finished()
        best = self.study.best_trial if done else None
        if best is not None and best.value >= FAILED:
            best = None
        return Tuned(
            log=self.log,
            best=dict(best.params) if best is not None else None,
            objective=best.value if best is not None else None,
            trials=len(done),
            objectives=[float(trial.value) for trial in done if trial.value is not None],
        )


def _study(part: Part, arm: Arm, space: Space, trials: int, out: Path, goal: Goal) -> Study:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise MissingDependency("speedclaim tune needs optuna: pip install 'speedclaim[tune]' or optuna.") from error
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name = f"{part.workload.name}-{arm.method}-{_question(part, arm, space, goal)}"
    log = out / "tuning" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=name,
        storage=JournalStorage(JournalFileBackend(str(log))),
        # The seed moves on with the trials that exist, so that a resumed search does not repeat its first draws.
        sampler=optuna.samplers.TPESampler(seed=0, constant_liar=True),
        direction="minimize",
        load_if_exists=True,
    )
    finished = len(study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE]))
    study.sampler = optuna.samplers.TPESampler(seed=finished, constant_liar=True)
    grid = _grid(space)
    whole = grid is not None and len(grid) <= trials
    if not whole and not study.get_trials(deepcopy=False) and (known := starting_point(arm, space)):
        study.enqueue_trial(known)
    for old in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(old.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(old.params)
    if grid is not None and whole:
        for values in grid:
            study.enqueue_trial(values, skip_if_exists=True)
        # Trials of an earlier, smaller search may have met some values twice: what is left of the grid comes on top.
        trials = finished + len(study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.WAITING]))
    return Study(arm=arm, space=space, trials=trials, log=log, study=study)


def _grid(space: Space) -> list[dict[str, Any]] | None:
    """Every combination of a space of listed values; None when it holds a range."""
    if not all("values" in entry for entry in space.values()):
        return None
    names = list(space)
    return [
        dict(zip(names, values, strict=True))
        for values in itertools.product(*(space[name]["values"] for name in names))
    ]


def _question(part: Part, arm: Arm, space: Space, goal: Goal = "target") -> str:
    """What must agree for trials to belong to one study: ranges, fixed values, the goal and the workload itself."""
    hyper = arm.hyper
    fixed = {**hyper.trainer, **hyper.factory} if hyper is not None else {}
    content = {
        "space": space,
        "fixed": {name: value for name, value in fixed.items() if name not in space},
        "workload": part.workload.describe(),
        **({"goal": goal} if goal != "target" else {}),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def starting_point(arm: Arm, space: Space) -> dict[str, Any]:
    """The recipe's values where the space holds them: the first trial, so that no search ends behind its recipe."""
    base = {**arm.hyper.trainer, **arm.hyper.factory} if arm.hyper is not None else {}
    return {name: base[name] for name, entry in space.items() if name in base and _holds(entry, base[name])}


def _holds(entry: Mapping[str, Any], value: Any) -> bool:
    if "values" in entry:
        return value in entry["values"]
    return isinstance(value, int | float) and entry["low"] <= value <= entry["high"]


class TuneExecutor(TrainExecutor):
    """The executor of trials: it asks the studies for values and tells them how each run ended."""

    def __init__(
        self,
        plan: TrainPlan,
        out: Path,
        command: str,
        listener: Listener,
        crew: Crew | None = None,
        *,
        studies: Mapping[str, Study],
        goal: Goal = "target",
    ) -> None:
        super().__init__(plan, out, command, listener, crew)
        self._studies, self._goal = studies, goal
        self._told = 0

    def _total(self) -> int:
        return sum(study.trials for study in self._studies.values())

    def _train(self) -> None:
        lanes = self.plan.request.side_by_side
        self._at_once([(self._search, (lane,)) for lane in range(lanes)] if lanes > 1 else [(self._search, (0,))])

    def _search(self, lane: int) -> None:
        """Draw trials and run them until nothing is left; a worker goes on until it dies."""
        part = self.plan.parts[0]
        pending: list[RunSpec] = []
        while not self._stopping:
            pending = self._open(pending) or self._next(part)
            if not pending:
                return
            with self._hired(lane) as worker:
                while pending and self._walk(part, pending, worker, last=False):
                    pending = self._open(pending) or self._next(part)

    def _open(self, pending: list[RunSpec]) -> list[RunSpec]:
        """Those of some trials that have no end."""
        with self._turn:
            return [spec for spec in pending if spec.seed in self._studies[spec.arm].asked]

    def _next(self, part: Part) -> list[RunSpec]:
        with self._turn:
            return [] if self._stopping else self._draw(part)

    def _draw(self, part: Part) -> list[RunSpec]:
        """The next trials of one worker, of the arms that have had fewest."""
        budget, used = self.plan.request.budget_s, time.monotonic() - self.start
        if budget is not None and used + (used / self._told if self._told else 0.0) > budget:
            done = sum(len(study.finished()) for study in self._studies.values())
            self.listener.note(f"the tuning budget of {budget:g} s is spent after {done} trials")
            return []
        left = sum(max(0, study.left()) for study in self._studies.values())
        found: list[RunSpec] = []
        for _ in range(min(TOGETHER, math.ceil(left / self.plan.request.side_by_side))):
            study = max(self._studies.values(), key=Study.left)
            found.append(self._trial(part, study))
        return found

    def _time_for(self, part: Part, spec: RunSpec) -> bool:
        return True

    def _over(self, part: Part, spec: RunSpec) -> bool:
        return False

    def _trial(self, part: Part, study: Study) -> RunSpec:
        number, values = study.ask()
        spec = self.plan.spec(part, study.arm, 0)
        # The recipe's evidence is not these values'.
        shared = {name: value for name, value in spec.extra.items() if name == "side_by_side"}
        return replace(
            spec,
            seed=number,
            block=number,
            stream=STREAM,
            trainer={**spec.trainer, **{k: v for k, v in values.items() if k in TRAINER_HYPER}},
            factory={**spec.factory, **{k: v for k, v in values.items() if k not in TRAINER_HYPER}},
            sources={**spec.sources, **dict.fromkeys(values, "tuning trial")},
            extra={**shared, "trial": number, "searched": values, "goal": self._goal},
        )

    def _result(self, part: Part, spec: RunSpec, found: Mapping[str, Any]) -> None:
        target = part.workload.target
        metric = f"val_{target.metric.split('_', 1)[-1]}"
        value = objective(found, target, metric, _budget(part.workload, found), self._goal)
        super()._result(part, spec, {**found, "detail": {**found["detail"], "objective": value}})
        self._tell(spec, value)

    def _failed(self, part: Part, spec: RunSpec, status: str, reason: str) -> None:
        super()._failed(part, spec, status, reason)
        self._tell(spec, FAILED)

    def _tell(self, spec: RunSpec, value: float) -> None:
        self._studies[spec.arm].tell(spec.seed, value)
        self._told += 1


def _budget(workload: Workload, found: Mapping[str, Any]) -> float:
    """Samples of the workload's default schedule, from what this run's schedule came to."""
    spec = found["detail"].get("spec") or {}
    if not spec.get("updates"):
        return 1.0
    return float(spec["updates"] * spec["batch"] * workload.epochs / spec["epochs"])


def _suggest(trial: Any, name: str, entry: Mapping[str, Any]) -> Any:
    if "values" in entry:
        return trial.suggest_categorical(name, entry["values"])
    return trial.suggest_float(name, entry["low"], entry["high"], log=entry["log"])
