"""The noun *Method*: a named implementation of one task, described without importing it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_NAME = re.compile(r"^[a-z0-9_]+\.[a-z0-9][a-z0-9_.+-]*$")
_TARGET = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")

Origin = Literal["library", "published design", "own design", "third party"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Work that one call of *this* method executes on one problem (not the task's dense work).

    Attributes:
        flops: executed floating-point operations, a multiply-add counting two.
        bytes: bytes it must touch, each operand once (a lower bound: used for the physical floor).
        dtype: the arithmetic's dtype when it is not the input's.
    """

    flops: float
    bytes: float
    dtype: str | None = None


@dataclass(frozen=True, kw_only=True)
class Method:
    """A named implementation of one task.

    Attributes:
        name: ``"task.method"``, equal to the entry point's name.
        impl: ``"module:attr"``, imported only when the method is measured.
        summary: one line for people.
        source: paper section and upstream of the method and of its constants.
        formula: the mathematics in one line (plain text).
        needs: what the machine must have: ``torch``, ``triton``, ``cuda``, ``cxx``, ``avx2``, ``avx512``,
            or ``package:NAME`` for an optional peer.
        reference: ``"module:attr"`` of the plain twin with the same signature; a method with a
            reference is gated by fidelity to it, one without by accuracy against the oracle.
        cost: ``"module:attr"`` of ``f(shape, itemsize_bytes) -> Cost``.
        hyper: the constructor's defaults that a user may change.
        dtypes: input dtypes that the method accepts.
        devices: device kinds that the method runs on.
        origin: who designed what runs: ``library`` (called as installed), ``published design``
            (our code, their algorithm and kernel design), ``own design``, ``third party``.
        tags: free labels; ``compile`` marks a method that pays a long first call for every shape (it runs on the
            problems that ask for it, never in tier ``quick``), ``slow-cpu`` one that emulates its dtype on a CPU
            (never in ``quick`` there), ``variant`` one for a table of options (in tier ``full`` or by name).
        largest: most elements of an input that it is measured on; beyond, one call would take minutes.
    """

    name: str
    impl: str
    summary: str
    source: str
    formula: str = ""
    needs: tuple[str, ...] = ()
    reference: str | None = None
    cost: str | None = None
    hyper: Mapping[str, Any] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16", "float64")
    devices: tuple[str, ...] = ("cpu", "cuda")
    origin: Origin = "third party"
    tags: tuple[str, ...] = ()
    largest: int | None = None

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise ValueError(f"a method's name is 'task.method' in lower case; got {self.name!r}")
        lists = {"needs": self.needs, "dtypes": self.dtypes, "devices": self.devices, "tags": self.tags}
        for label, names in lists.items():
            if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"{self.name}: {label} must be a tuple of strings, got {names!r}")
        try:
            json.dumps(dict(self.hyper))
        except TypeError as error:
            raise ValueError(f"{self.name}: hyper must be plain JSON values ({error})") from error
        for label, target in (("impl", self.impl), ("reference", self.reference), ("cost", self.cost)):
            if target is not None and not _TARGET.match(target):
                raise ValueError(f"{self.name}: {label} must be 'module:attr', got {target!r}")

    @property
    def task(self) -> str:
        """The task's name: the part before the first dot."""
        return self.name.split(".", 1)[0]

    def describe(self) -> dict[str, Any]:
        """A JSON-ready copy, stored in the header of every record so that reports need no import."""
        return {
            "name": self.name,
            "task": self.task,
            "impl": self.impl,
            "summary": self.summary,
            "source": self.source,
            "formula": self.formula,
            "needs": list(self.needs),
            "reference": self.reference,
            "hyper": dict(self.hyper),
            "dtypes": list(self.dtypes),
            "devices": list(self.devices),
            "origin": self.origin,
            "tags": list(self.tags),
        }
