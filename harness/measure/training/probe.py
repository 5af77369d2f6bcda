"""Hyper-parameters from the command line, tried on a tiny network before anything runs or is recorded."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from harness.catalogue import registry
from harness.errors import SpeedclaimError, UserError
from harness.measure.isolate import Worker
from harness.measure.training.ahead import Crew, kind_of
from harness.measure.training.executor import lane_environment
from harness.measure.training.plan import TrainPlan
from harness.measure.worker import Pipe, forked_child

#: Names of modules mean nothing on another network.
OF_THE_NETWORK = ("exclude",)
#: Seconds without an answer after which the question is left to the run itself.
PATIENCE_S = 120.0
#: A method and values for its factory.
Question = tuple[str, dict[str, Any]]


def check(plan: TrainPlan, crew: Crew | None = None) -> None:
    """Refuse what a method's factory refuses, before seconds are spent on data and networks.

    A factory that fails on the tiny network without the values of the command line as well is left to the run itself.

    Args:
        plan: what is to be trained.
        crew: whose first process is asked, and keeps its imports for the runs; None asks in this process.

    Raises:
        UserError: the method, and what it says of the values.
    """
    asked = _questions(plan)
    questions = [each for plain, every, _ in asked for each in (plain, every)]
    answers = _answers(questions) if crew is None or not questions else _asked(questions, plan, crew)
    for (_, (method, _), values), plain, every in zip(asked, answers[::2], answers[1::2], strict=True):
        if plain is None and every is not None:
            raise UserError(f"{method} refuses {values}: {every}")


def _questions(plan: TrainPlan) -> list[tuple[Question, Question, str]]:
    """For each method with values of the command line: without them, with them, and the values for people."""
    found: dict[tuple[str, str], tuple[Question, Question, str]] = {}
    for arm in (arm for part in plan.parts for arm in part.runnable()):
        assert arm.hyper is not None
        every = {name: value for name, value in arm.hyper.factory.items() if name not in OF_THE_NETWORK}
        given = {name: value for name, value in every.items() if arm.hyper.sources.get(name) == "command line"}
        if given:
            known = registry.method(arm.method).hyper
            others = {name: value for name, value in every.items() if name not in given}
            plain = others | {name: known[name] for name in given if name in known}
            values = ", ".join(f"{name}={value!r}" for name, value in given.items())
            found[arm.method, repr(arm.hyper)] = (arm.method, plain), (arm.method, every), values
    return list(found.values())


def _asked(questions: Sequence[Question], plan: TrainPlan, crew: Crew) -> list[str | None]:
    """The answers of the crew's first process; none if it dies or hangs over them, which the run will do too."""
    kind, environment = kind_of(plan.request.world.size), lane_environment(plan, 0)
    process = crew.take(kind, 0, environment)
    job = {"kind": "refusals", "asked": [list(question) for question in questions]}
    worker = Worker(None, PATIENCE_S, process=process)
    worker.give(job, last=False)
    found = [message for message in worker.messages() if isinstance(message, Mapping)]
    crew.give_back(process)
    answers = found[0]["answers"] if found else None
    return list(answers) if answers is not None else [None] * len(questions)


def answer(job: Mapping[str, Any], pipe: Pipe) -> None:
    """The job ``refusals`` of a worker: in a forked child, since nothing that a factory does may reach the runs."""
    child = os.fork()
    if child == 0:
        asked = [(method, dict(hyper)) for method, hyper in job["asked"]]
        forked_child(lambda: pipe.send(event="result", answers=_answers(asked)))
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        pipe.send(event="result", answers=None)


def _answers(questions: Sequence[Question]) -> list[str | None]:
    return [_refusal(method, hyper) for method, hyper in questions]


def _refusal(method: str, hyper: dict[str, Any]) -> str | None:
    """What the factory says on the CPU; None when it builds, or refuses for another reason than its values."""
    from torch import nn

    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tiny network
            registry.resolve(registry.method(method).impl)(network, **hyper)
    except UserError as error:
        return str(error)
    except SpeedclaimError:
        return None
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None
