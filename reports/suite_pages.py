"""Pages of suites that time nothing: what their records hold, read once, and the plain tables that a page shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from reports import plain
from reports.charts import Section
from reports.tables import describe_problem

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Told:
    """One method on one problem, as the newest record tells it."""

    method: str
    problem: Row
    status: str
    reason: str
    metrics: Mapping[str, float]
    detail: Mapping[str, Any]
    file: str

    @property
    def name(self) -> str:
        """The method without its task."""
        return self.method.split(".", 1)[-1]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell: a text, smaller lines under it, a tone, what stands in its tooltip, and a sort key."""

    text: str
    sub: tuple[str, ...] = ()
    tone: str = ""
    title: str = ""
    sort: float | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with a heading of its own; ``rows`` are a label and its cells."""

    id: str
    heading: str
    note: str
    first: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]


@dataclass(frozen=True, kw_only=True)
class Page:
    """One page: the suite on one device; without a ``command`` it is measured by the suite's own module."""

    slug: str
    title: str
    device: str
    suite: str
    lead: str
    tables: list[Table]
    sections: list[Section] = field(default_factory=list)
    after: list[Table] = field(default_factory=list)
    command: str = ""


def told(runs: pd.DataFrame, headers: list[dict[str, Any]], task: str) -> dict[str, list[Told]]:
    """Device -> what stands for each method and problem of ``task``, in the order of the headers."""
    if runs.empty:
        return {}
    frame = runs[(runs["task"] == task) & runs["problem"].notna()]
    known = {
        problem["id"]: problem
        for header in headers
        for suite in header.get("plan", {}).get("suites", [])
        if suite.get("task") == task
        for problem in suite.get("problems", [])
    }
    order = {name: place for place, name in enumerate(known)}
    methods = dict.fromkeys(
        method["name"] for header in headers if _has(header, task) for method in header.get("methods") or []
    )
    rank = {name: place for place, name in enumerate(methods)}
    newest: dict[tuple[str, str, str], tuple[str, Told]] = {}
    for _, own in frame.groupby("run", sort=False):
        first = own.iloc[0]
        measured = own[own["metric"].notna()]
        device = str(first["device"]) if isinstance(first["device"], str) else "unknown device"
        key = (device, str(first["method"]), str(first["problem"]))
        found = Told(
            method=key[1],
            problem=describe_problem(key[2], known),
            status=str(first["status"]),
            reason=first["reason"] if isinstance(first["reason"], str) else "",
            metrics={str(m): float(v) for m, v in zip(measured["metric"], measured["value"], strict=True)},
            detail=first["detail"] if isinstance(first["detail"], Mapping) else {},
            file=str(first["file"]),
        )
        age = str(first["utc"])
        if key not in newest or newest[key][0] <= age:
            newest[key] = (age, found)
    devices: dict[str, list[Told]] = {}
    for (device, _, _), (_, one) in newest.items():
        devices.setdefault(device, []).append(one)
    for own_device in devices.values():
        own_device.sort(key=lambda one: (rank.get(one.method, len(rank)), order.get(one.problem["id"], len(order))))
    return devices


def _has(header: Mapping[str, Any], task: str) -> bool:
    return any(suite.get("task") == task for suite in header.get("plan", {}).get("suites", []))


def slug(kind: str, device: str) -> str:
    """Name of the page without its ending."""
    return plain.anchor(kind, device)
