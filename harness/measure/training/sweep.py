"""Batch-size sweeps: the workloads of one family, ``NAME`` and ``NAME-bN``, and rates that follow the batch."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from harness.catalogue import registry
from harness.catalogue.method import Method
from harness.catalogue.workload import Workload
from harness.errors import UserError
from harness.measure.training import recipe
from harness.measure.training.recipe import Hyper

#: ``linear``: the named workload's rate times batch / its batch; ``recipe``: what each size's own recipe has.
RULES = ("linear", "recipe")
_NAME = re.compile(r"^(?P<stem>.+?)(?:-b\d+)?$")


def family(base: Workload) -> dict[int, Workload]:
    """Registered workloads that differ from ``base`` in their batch alone, by batch."""
    found = _NAME.match(base.name)
    assert found is not None
    pattern = re.compile(rf"^{re.escape(found['stem'])}(-b\d+)?$")
    members = [workload for name, workload in registry.workloads().items() if pattern.match(name)]
    return {workload.batch: workload for workload in sorted(members, key=lambda one: one.batch)}


def chosen(base: Workload, batches: str) -> list[Workload]:
    """The family's members of these sizes, smallest first.

    Args:
        base: a member.
        batches: numbers with commas between them, or ``all``.

    Raises:
        UserError: no such size, or no family.
    """
    members = family(base)
    if len(members) == 1:
        raise UserError(f"--batches: {base.name} is registered at one batch size alone, {base.batch}.")
    if batches.strip() == "all":
        return list(members.values())
    parts = [part.strip() for part in batches.split(",") if part.strip()]
    if not parts or not all(part.isdigit() for part in parts):
        raise UserError(f"--batches {batches}: expected numbers with commas between them, or all.")
    sizes = sorted({int(part) for part in parts})
    if missing := [size for size in sizes if size not in members]:
        raise UserError(
            f"--batches {batches}: {base.name} has no batch {missing[0]}; it has {', '.join(map(str, members))}."
        )
    return [members[size] for size in sizes]


def check(rule: str) -> None:
    """Refuse another rule.

    Raises:
        UserError: with those that there are.
    """
    if rule not in RULES:
        raise UserError(f"--lr-rule {rule}: expected {' or '.join(RULES)}.")


def scaled(hyper: Hyper, base: Workload, workload: Workload, method: Method, given: Mapping[str, Any]) -> Hyper:
    """One arm's hyper-parameters with the rate in proportion to the batch; the fallback's rates stay as they are.

    Raises:
        UserError: a method without ``lr``.
    """
    if workload.name == base.name:
        return hyper
    rate = recipe.resolve(base, method, given).factory.get("lr", _default(method))
    if not isinstance(rate, int | float):
        raise UserError(f"{method.name} has no lr that could follow the batch; use --lr-rule recipe.")
    ratio = workload.batch / base.batch
    evidence = f"rate: that of {base.name} ({rate:g}) times {ratio:g}"
    if hyper.evidence:
        evidence += f"; this size's own recipe ({hyper.factory.get('lr')}) has: {hyper.evidence}"
    return replace(
        hyper,
        factory={**hyper.factory, "lr": rate * ratio},
        sources={**hyper.sources, "lr": f"{base.name} times {ratio:g}"},
        evidence=evidence,
    )


def _default(method: Method) -> Any:
    """The factory's own default of ``lr``, for a method that does not list it."""
    if "lr" in method.hyper:
        return None
    found = inspect.signature(registry.resolve(method.impl)).parameters.get("lr")
    return None if found is None else found.default
