"""Search spaces of tuning: equal ranges in decades for every method unless it ships a table of its own."""

from __future__ import annotations

import importlib
import importlib.resources
import math
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.catalogue import registry
from harness.catalogue.method import Method
from harness.catalogue.workload import TRAINER_HYPER
from harness.errors import UserError
from harness.measure.training.plan import Arm, TrainPlan
from harness.measure.training.recipe import Hyper, check_factory

#: Three decades of learning rate around the base value; the schedule's length is tuned in every arm.
DEFAULT: Mapping[str, Mapping[str, Any]] = {
    "lr": {"decades": 3.0},
    "epochs": {"factors": [0.25, 0.5, 0.75, 1.0]},
}
_FORMS = "low and high (log = true for decades), decades, factors, or values"


def space(method: Method, hyper: Hyper, file: Path | None = None) -> dict[str, dict[str, Any]]:
    """Name -> ``{"low", "high", "log"}`` or ``{"values"}``.

    The file on the command line, else ``spaces/<method>.toml`` in the package of the method's code, else
    :data:`DEFAULT`. ``decades`` is a log range centred on the base value, ``factors`` multiply it.

    Raises:
        UserError: a file that cannot be read or is empty, a name that the method does not know, or an entry of no
            known form.
    """
    table = _read(file) if file is not None else _shipped(method) or DEFAULT
    unfixed = {name: method.hyper.get(name) for name in table if name not in TRAINER_HYPER}
    check_factory(method, unfixed, dict.fromkeys(unfixed, f"--space {file}" if file is not None else "space"))
    base = {**hyper.trainer, **hyper.factory}
    return {name: _entry(name, entry, base.get(name)) for name, entry in table.items()}


def with_unlisted(plan: TrainPlan, ranges: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> TrainPlan:
    """The plan with a value for each searched name that a method does not list, as the command line's.

    A factory that takes any name, and refuses the wrong ones itself, is so asked before the first trial.
    """
    parts = [replace(part, arms=[_unlisted(arm, ranges.get(arm.name, {})) for arm in part.arms]) for part in plan.parts]
    return replace(plan, parts=parts)


def _unlisted(arm: Arm, table: Mapping[str, Mapping[str, Any]]) -> Arm:
    known = {*TRAINER_HYPER, *registry.method(arm.method).hyper}
    new = {name: entry["values"][0] if "values" in entry else entry["low"] for name, entry in table.items()}
    new = {name: value for name, value in new.items() if name not in known}
    if arm.hyper is None or not new:
        return arm
    sources = {**arm.hyper.sources, **dict.fromkeys(new, "command line")}
    return replace(arm, hyper=replace(arm.hyper, factory={**arm.hyper.factory, **new}, sources=sources))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # no TOML, or no UTF-8
        raise UserError(f"--space {path}: expected a TOML table per hyper-parameter ({error}).") from error
    if not table:
        raise UserError(f"--space {path}: expected a TOML table per hyper-parameter, got an empty file: {_FORMS}.")
    return table


def _shipped(method: Method) -> Mapping[str, Any] | None:
    package = method.impl.partition(":")[0].rpartition(".")[0]
    if not package:
        return None
    path = importlib.resources.files(importlib.import_module(package)) / "spaces" / f"{method.name}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _entry(name: str, entry: Any, base: Any) -> dict[str, Any]:
    if isinstance(entry, Mapping) and (found := _range(entry, base)):
        return found
    raise UserError(f"space of {name!r}: expected {_FORMS} around a base value, got {entry} around {base!r}.")


def _range(entry: Mapping[str, Any], base: Any) -> dict[str, Any] | None:
    """The entry as a range or a list; None when it is neither."""
    if isinstance(entry.get("values"), list) and entry["values"]:
        return {"values": list(entry["values"])}
    low: Any = entry.get("low")
    high: Any = entry.get("high")
    log = entry.get("log", False)
    if _number(low) and _number(high) and low < high and isinstance(log, bool) and (low > 0 or not log):
        return {"low": float(low), "high": float(high), "log": log}
    if _number(entry.get("decades")) and _number(base) and base > 0 and entry["decades"] > 0:
        half = 10 ** (float(entry["decades"]) / 2)
        return {"low": base / half, "high": base * half, "log": True}
    factors = entry.get("factors")
    if isinstance(factors, list) and factors and all(map(_number, factors)) and _number(base):
        return {"values": [base * factor for factor in factors]}
    return None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def decades(entry: Mapping[str, Any]) -> float | None:
    """Width of a log range in decades."""
    return math.log10(entry["high"] / entry["low"]) if entry.get("log") else None


def edges(space: Mapping[str, Mapping[str, Any]], best: Mapping[str, Any]) -> dict[str, str]:
    """Names whose best value stands at the ``lower`` or ``upper`` edge of what was tried: the optimum may lie beyond.

    Listed numbers: the least or largest of at least three. Ranges: within a twentieth of their width from an end.
    """
    found = {}
    for name, entry in space.items():
        place = _place(entry, best.get(name))
        if place is not None and not 0.05 < place < 0.95:
            found[name] = "lower" if place < 0.5 else "upper"
    return found


def _place(entry: Mapping[str, Any], value: Any) -> float | None:
    """Where a value stands between the ends, 0 to 1; None where there are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if "values" not in entry:
        scale = math.log if entry["log"] else float
        low, high = scale(entry["low"]), scale(entry["high"])
        return (scale(value) - low) / (high - low)
    numbers = sorted(v for v in entry["values"] if isinstance(v, int | float) and not isinstance(v, bool))
    if len(numbers) < 3 or len(numbers) < len(entry["values"]):
        return None
    return numbers.index(value) / (len(numbers) - 1) if value in numbers else None
