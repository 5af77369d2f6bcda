"""Tuning: a seeded, resumable search on a held-out part of the training set; every trial is a run in the record."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.catalogue.workload import TRAINER_HYPER, Target, Workload
from harness.errors import MissingDependency
from harness.measure.training.executor import TrainExecutor, TrainResult
from harness.measure.training.listener import Listener, Silent
from harness.measure.training.plan import Arm, Part, TrainPlan
from harness.measure.training.spec import RunSpec

#: Initial weights and data order of every trial; verdicts never use it.
STREAM = 20_000_003
#: Trials that one worker is given at a time: an import of torch costs as much as a quick trial.
TOGETHER = 4
#: Objective of a run that gave no metric: worse than any miss.
FAILED = 10.0


@dataclass(kw_only=True)
class Tuned:
    """What a search found."""

    result: TrainResult
    log: Path
    best: dict[str, Any] | None
    objective: float | None
    trials: int
    objectives: list[float] = field(default_factory=list)


def objective(outcome: Mapping[str, Any], target: Target, metric: str, budget_samples: float) -> float:
    """What a trial is minimised by.

    Target reached: samples to it as a share of the workload's default budget, at most 1. Missed: 1 plus the relative
    gap of the best value to the target, at most 9. Neither: :data:`FAILED`.
    """
    measured = outcome["measurements"]
    if outcome["status"] == "target_reached":
        return min(1.0, float(measured["samples_to_target"][1][0]) / budget_samples)
    values = measured.get(f"curve_{metric}", (None, [], None))[1]
    if outcome["status"] != "budget_exhausted" or not values:
        return FAILED
    best = (max if target.larger_is_better else min)(values)
    gap = abs(target.value - float(best)) / max(abs(target.value), 1e-12)
    return 1.0 + min(8.0, gap)


def tune(
    plan: TrainPlan,
    space: Mapping[str, Mapping[str, Any]],
    trials: int,
    out: Path,
    command: str,
    listener: Listener | None = None,
) -> Tuned:
    """Search ``space`` for the plan's only arm until the study holds ``trials`` trials or the budget is spent.

    Raises:
        MissingDependency: optuna is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise MissingDependency("speedclaim tune needs optuna: pip install 'speedclaim[tune]' or optuna.") from error
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    part = plan.parts[0]
    name = f"{part.workload.name}-{part.arms[0].method}-{_question(part, space)}"
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
    if not study.get_trials(deepcopy=False) and (known := starting_point(part.arms[0], space)):
        study.enqueue_trial(known)
    for old in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(old.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(old.params)
    executor = TuneExecutor(plan, out, command, listener or Silent(), study=study, space=space, trials=trials)
    result = executor.run()
    done = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    best = study.best_trial if done else None
    return Tuned(
        result=result,
        log=log,
        best=dict(best.params) if best is not None else None,
        objective=best.value if best is not None else None,
        trials=len(done),
        objectives=[float(trial.value) for trial in done if trial.value is not None],
    )


def _question(part: Part, space: Mapping[str, Mapping[str, Any]]) -> str:
    """What must agree for trials to belong to one study: ranges, fixed values and the workload itself."""
    hyper = part.arms[0].hyper
    fixed = {**hyper.trainer, **hyper.factory} if hyper is not None else {}
    content = {
        "space": space,
        "fixed": {name: value for name, value in fixed.items() if name not in space},
        "workload": part.workload.describe(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def starting_point(arm: Arm, space: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The recipe's values where the space holds them: the first trial, so that no search ends behind its recipe."""
    base = {**arm.hyper.trainer, **arm.hyper.factory} if arm.hyper is not None else {}
    return {name: base[name] for name, entry in space.items() if name in base and _holds(entry, base[name])}


def _holds(entry: Mapping[str, Any], value: Any) -> bool:
    if "values" in entry:
        return value in entry["values"]
    return isinstance(value, int | float) and entry["low"] <= value <= entry["high"]


class TuneExecutor(TrainExecutor):
    """The executor of trials: it asks the study for values and tells it how each run ended."""

    def __init__(
        self,
        plan: TrainPlan,
        out: Path,
        command: str,
        listener: Listener,
        *,
        study: Any,
        space: Mapping[str, Mapping[str, Any]],
        trials: int,
    ) -> None:
        super().__init__(plan, out, command, listener)
        self._study, self._space, self._trials = study, space, trials
        self._asked: dict[int, Any] = {}
        self._told = 0

    def _total(self) -> int:
        return self._trials

    def _finished(self) -> int:
        return sum(trial.state.name == "COMPLETE" for trial in self._study.get_trials(deepcopy=False))

    def _train(self) -> None:
        part = self.plan.parts[0]
        budget = self.plan.request.budget_s
        while (left := self._trials - self._finished()) > 0:
            used = time.monotonic() - self.start
            if budget is not None and used + (used / self._told if self._told else 0.0) > budget:
                self.listener.note(f"the tuning budget of {budget:g} s is spent after {self._finished()} trials")
                return
            pending = [self._trial(part, part.arms[0]) for _ in range(min(TOGETHER, left))]
            while pending:
                self._work(part, pending)
                pending = [spec for spec in pending if spec.seed in self._asked]

    def _time_for(self, part: Part, spec: RunSpec) -> bool:
        return True

    def _over(self, part: Part, spec: RunSpec) -> bool:
        return False

    def _trial(self, part: Part, arm: Arm) -> RunSpec:
        trial = self._study.ask()
        self._asked[trial.number] = trial
        values = {name: _suggest(trial, name, entry) for name, entry in self._space.items()}
        spec = self.plan.spec(part, arm, 0)
        return replace(
            spec,
            seed=trial.number,
            block=trial.number,
            stream=STREAM,
            trainer={**spec.trainer, **{k: v for k, v in values.items() if k in TRAINER_HYPER}},
            factory={**spec.factory, **{k: v for k, v in values.items() if k not in TRAINER_HYPER}},
            sources={**spec.sources, **dict.fromkeys(values, "tuning trial")},
            extra={"trial": trial.number, "searched": dict(values)},
        )

    def _result(self, part: Part, spec: RunSpec, found: Mapping[str, Any]) -> None:
        target = part.workload.target
        metric = f"val_{target.metric.split('_', 1)[-1]}"
        value = objective(found, target, metric, _budget(part.workload, found))
        super()._result(part, spec, {**found, "detail": {**found["detail"], "objective": value}})
        self._tell(spec, value)

    def _failed(self, part: Part, spec: RunSpec, status: str, reason: str) -> None:
        super()._failed(part, spec, status, reason)
        self._tell(spec, FAILED)

    def _tell(self, spec: RunSpec, value: float) -> None:
        self._study.tell(self._asked.pop(spec.seed), value)
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
