"""Speedclaim's harness: how methods are found, measured, recorded and judged.

The package is lazy: importing it costs nothing, and the names below are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Method": "harness.catalogue.method",
    "Cost": "harness.catalogue.method",
    "Task": "harness.catalogue.task",
    "Problem": "harness.catalogue.suite",
    "Suite": "harness.catalogue.suite",
    "Protocol": "harness.catalogue.protocol",
    "Workload": "harness.catalogue.workload",
    "Claim": "harness.judge.claim",
    "load": "harness.catalogue.registry",
    "list_methods": "harness.catalogue.registry",
    "read_runs": "harness.record.store",
}

if TYPE_CHECKING:
    from harness.catalogue.method import Cost, Method
    from harness.catalogue.protocol import Protocol
    from harness.catalogue.registry import list_methods, load
    from harness.catalogue.suite import Problem, Suite
    from harness.catalogue.task import Task
    from harness.catalogue.workload import Workload
    from harness.judge.claim import Claim
    from harness.record.store import read_runs

__all__ = [
    "Claim",
    "Cost",
    "Method",
    "Problem",
    "Protocol",
    "Suite",
    "Task",
    "Workload",
    "list_methods",
    "load",
    "read_runs",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'harness' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
