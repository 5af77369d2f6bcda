"""Hyper-parameters of one arm: command line, then the workload's recipe, then the method's defaults."""

from __future__ import annotations

import functools
import importlib
import importlib.resources
import inspect
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.catalogue import registry
from harness.catalogue.method import Method
from harness.catalogue.workload import SCHEDULES, TRAINER_HYPER, Workload
from harness.errors import UserError

TASK = "training"
PRECISIONS = ("ieee", "tf32", "torch-default", "bf16", "fp16")
#: What a recipe's table may hold beside hyper-parameters.
NOTES = ("evidence", "trials")
#: The trainer's defaults: linear decay is the schedule of most speed records (airbench, modded-nanogpt).
DEFAULTS: Mapping[str, Any] = {
    "schedule": "linear",
    "warmup": 0.0,
    "final_lr": 0.0,
    "milestones": None,
    "gamma": None,
    "pieces": None,
    "clip_norm": None,
    "accumulate": 1,
}


@dataclass(frozen=True, kw_only=True)
class Hyper:
    """Values for the factory and for the trainer, and where each came from."""

    factory: Mapping[str, Any]
    trainer: Mapping[str, Any]
    sources: Mapping[str, str]
    evidence: str | None = None
    trials: int | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return {
            "factory": dict(self.factory),
            "trainer": dict(self.trainer),
            "sources": dict(self.sources),
            "evidence": self.evidence,
            "trials": self.trials,
        }


def full_name(name: str) -> str:
    """``adamw`` means ``training.adamw``."""
    return name if "." in name else f"{TASK}.{name}"


def scalar(text: str) -> Any:
    """A command-line value: JSON where it parses, else text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def parse(assignments: Sequence[str], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``k=v`` for every method, ``method.k=v`` for one: values by method.

    Raises:
        UserError: text without ``=``, or no name before it.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in methods}
    for text in assignments:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise UserError(f"--hyper {text!r}: expected name=value, e.g. lr=0.1 or adamw.lr=0.003.")
        owner, dot, name = key.strip().rpartition(".")
        if dot and full_name(owner) not in found:
            raise UserError(f"--hyper {text!r}: {full_name(owner)} is not trained here; methods: {', '.join(methods)}.")
        for method in [full_name(owner)] if dot else methods:
            found[method][name] = scalar(value)
    return found


@functools.cache
def _recipes(workload: str) -> dict[str, dict[str, Any]]:
    entry = registry.entries("workloads").get(workload)
    if entry is None:
        return {}
    module = entry.target.partition(":")[0]
    package = module if hasattr(importlib.import_module(module), "__path__") else module.rpartition(".")[0]
    if not package:
        return {}
    path = importlib.resources.files(package) / "recipes" / f"{workload}.toml"
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML ({error}).") from error


def recipe(workload: str, method: str) -> dict[str, Any]:
    """The recipe's table of one method, empty without one."""
    return dict(_recipes(workload).get(method, {}))


def resolve(workload: Workload, method: Method, given: Mapping[str, Any]) -> Hyper:
    """Every value of one arm with its source.

    Raises:
        UserError: a name that neither the trainer nor the method's factory knows, or a bad value of the trainer.
    """
    stored = recipe(workload.name, method.name)
    notes = {name: stored.pop(name) for name in NOTES if name in stored}
    layers: list[tuple[str, Mapping[str, Any]]] = [
        ("default", {**DEFAULTS, "epochs": workload.epochs, "precision": workload.precision, **method.hyper}),
        ("recipe", stored),
        ("command line", given),
    ]
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, layer in layers:
        for name, value in layer.items():
            if source == "command line" and name in values and values[name] == value:
                continue  # asked for what it is anyway: still the recipe's run
            values[name], sources[name] = value, source
    factory = {name: value for name, value in values.items() if name not in TRAINER_HYPER}
    check_factory(method, factory, sources)
    trainer = {name: values[name] for name in TRAINER_HYPER}
    for schedule, owned in (("step", ("milestones", "gamma")), ("steps", ("pieces",))):
        for name in owned if trainer["schedule"] != schedule else ():
            if sources[name] == "recipe":  # a recipe's steps, when another schedule was asked for
                trainer[name], sources[name] = None, "default"
    _check_trainer(trainer)
    return Hyper(
        factory=factory,
        trainer=trainer,
        sources=sources,
        evidence=notes.get("evidence"),
        trials=notes.get("trials"),
    )


def check_factory(method: Method, factory: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    """Refuse names that the factory does not know, and values where it wants true or false, or a number.

    Raises:
        UserError: with the name, where it came from, and the names that are known.
    """
    for name, value in factory.items():
        if isinstance(method.hyper.get(name), bool) and not isinstance(value, bool):
            raise UserError(
                f"{method.name}: hyper-parameter {name}={value!r} (from the {sources[name]}): expected true or false."
            )
        if _number(method.hyper.get(name)) and (isinstance(value, str) or value != value):
            raise UserError(
                f"{method.name}: hyper-parameter {name}={value!r} (from the {sources[name]}): expected a number."
            )
    unknown = [name for name in factory if name not in method.hyper]
    if not unknown:
        return
    parameters = list(inspect.signature(registry.resolve(method.impl)).parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = {p.name for p in parameters[1:]}
    for name in unknown:
        if name not in known:
            raise UserError(
                f"{method.name} has no hyper-parameter {name!r} (from the {sources[name]}). "
                f"Known: {', '.join(sorted(known | set(method.hyper)))}; of the trainer: {', '.join(TRAINER_HYPER)}."
            )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _share(value: Any) -> bool:
    return _number(value) and 0 < value < 1


def _pieces(value: Any) -> bool:
    """[[0, factor], [epoch, factor], ...] with rising epochs."""
    if not isinstance(value, list) or not all(isinstance(p, list) and len(p) == 2 for p in value):
        return False
    numbers = all(_number(part) and part >= 0 for piece in value for part in piece)
    epochs = [piece[0] for piece in value]
    return numbers and epochs[:1] == [0] and epochs == sorted(set(epochs))


def _check_trainer(trainer: Mapping[str, Any]) -> None:
    steps, places, gamma = trainer["schedule"] == "step", trainer["milestones"], trainer["gamma"]
    checks = {
        "epochs": (_number(trainer["epochs"]) and 0 < trainer["epochs"] < float("inf"), "a positive number"),
        "schedule": (trainer["schedule"] in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
        "warmup": (_number(trainer["warmup"]) and 0 <= trainer["warmup"] < 1, "a fraction from 0 to below 1"),
        "final_lr": (_number(trainer["final_lr"]) and 0 <= trainer["final_lr"] <= 1, "a fraction from 0 to 1"),
        "milestones": (
            places is None if not steps else isinstance(places, list) and places and all(map(_share, places)),
            "a list of fractions of the schedule with schedule=step, else null",
        ),
        "gamma": (
            gamma is None if not steps else _number(gamma) and 0 < gamma <= 1,
            "a factor from above 0 to 1 with schedule=step, else null",
        ),
        "pieces": (
            _pieces(trainer["pieces"]) if trainer["schedule"] == "steps" else trainer["pieces"] is None,
            "[[0, factor], [epoch, factor], ...] with rising epochs with schedule=steps, else null",
        ),
        "clip_norm": (
            trainer["clip_norm"] is None or (_number(trainer["clip_norm"]) and trainer["clip_norm"] > 0),
            "a positive number or null",
        ),
        "precision": (trainer["precision"] in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
        "accumulate": (type(trainer["accumulate"]) is int and trainer["accumulate"] >= 1, "a whole number from 1"),
    }
    for name, (good, expected) in checks.items():
        if not good:
            raise UserError(f"hyper-parameter {name}={trainer[name]!r}: expected {expected}.")
