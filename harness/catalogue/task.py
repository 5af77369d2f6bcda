"""The noun *Task*: the mathematical contract that methods fulfil, and its run-time side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from harness.catalogue.suite import Problem


@dataclass(frozen=True, kw_only=True)
class Task:
    """A mathematical contract, described without importing what computes it.

    Attributes:
        name: the part of a method's name before the dot.
        summary: one line for people.
        contract: signature, shapes and dtypes of ``impl``.
        runtime: ``"module:attr"`` of an object with the methods of :class:`TaskRuntime`.
        oracle: what counts as the true answer, in words.
        needs: what a worker needs to run the task at all (``torch`` for ours).
        errors: metric name -> one line that explains it.
        primary_error: the error that block outputs are held to and that Pareto plots show.
    """

    name: str
    summary: str
    contract: str
    runtime: str
    oracle: str
    needs: tuple[str, ...] = ()
    errors: Mapping[str, str]
    primary_error: str


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Outcome of one output check: ``status`` is ``passed``, ``inaccurate`` or ``unfaithful``."""

    status: str
    reason: str | None
    errors: Mapping[str, float]


class TaskRuntime(Protocol):
    """What the harness asks of a task while it measures; the only code that knows what an input looks like.

    *Content* is one input's value (a tensor, an array, a tuple of them). A *buffer* has the content's shape and
    is written in place between timed calls.
    """

    def content(self, problem: Problem, seed: int) -> Any:
        """New input content on the problem's device, a function of (problem, seed) alone."""

    def vary(self, content: Any, step: int) -> Any:
        """Cheap new content that is as hard as ``content`` and different for every ``step``: feeds the timed calls."""

    def buffer_like(self, content: Any) -> Any:
        """A fresh buffer that can hold ``content``."""

    def fill(self, buffer: Any, content: Any) -> None:
        """Copy ``content`` into ``buffer`` in place."""

    def same(self, left: Any, right: Any) -> bool:
        """Bitwise equality, NaN equal to NaN: shows a mutated input or a cached output."""

    def snapshot(self, value: Any) -> Any:
        """A detached deep copy of an input or output."""

    def bind(self, impl: Any, problem: Problem, hyper: Mapping[str, Any]) -> Callable[[Any], Any]:
        """Turn a resolved ``impl`` into ``op(buffer) -> output``; set-up work that is not timed happens here."""

    def malformed(self, output: Any, buffer: Any, problem: Problem) -> str | None:
        """Why ``output`` has the wrong type, shape, dtype or device; None when it is well formed."""

    def nonfinite(self, output: Any) -> str | None:
        """Why ``output`` is not finite; None when it is."""

    def oracle(self, content: Any, problem: Problem) -> Any:
        """The true answer in float64 for the content actually passed, shared by all arms."""

    def judge(
        self,
        output: Any,
        content: Any,
        oracle: Any,
        problem: Problem,
        reference: Callable[[Any], Any] | None,
    ) -> Judgement:
        """Compare an output with the oracle, and with what the bound plain reference gives when there is one.

        The reference is passed, not its output, so that of a large batch only the judged members need it.
        """

    def glance(self, output: Any, content: Any, oracle: Any, problem: Problem) -> Mapping[str, float]:
        """Errors that are cheap to compute, the primary one among them: every block's checked output is held to it."""

    def work_bytes(self, problem: Problem) -> int:
        """Bytes of one input, for planning."""

    def work_flops(self, problem: Problem) -> float:
        """Floating-point operations of a typical call, for planning only."""


@runtime_checkable
class Stateful(Protocol):
    """What a runtime adds when its operations have a state that a call changes (an optimizer's step)."""

    def rewind(self, op: Callable[[Any], Any]) -> None:
        """Put a bound operation back to the state that it starts from; called before every call, outside every clock.

        Repeated calls of a warm-up and of the memory and energy passes are not rewound in between.
        """

    def held_bytes(self, op: Callable[[Any], Any]) -> Mapping[str, float]:
        """Bytes that the operation keeps from call to call, by metric name; read after the memory pass."""


#: Samples of one number, and their unit.
Fact = tuple[Sequence[float], str]


@runtime_checkable
class Described(Protocol):
    """What a runtime adds when a bound operation has more to tell than its time (what was fitted, what really runs)."""

    def facts(self, op: Any, content: Any, problem: Problem) -> tuple[Mapping[str, Fact], dict[str, Any]]:
        """Samples with their unit by metric name, and plain JSON detail; asked once, after the gate was passed.

        Seconds here are written down with the host's clock and enter no ranking.
        """


@runtime_checkable
class Divided(Protocol):
    """What a runtime adds when parts of an operation are timed as well, in every block, on the device's first clock."""

    def parts(self, op: Any) -> Mapping[str, Callable[[Any], Any]]:
        """Metric name (``encode_s``) -> callable of a buffer; empty when the operation has no part of its own.

        Each call gets a freshly filled buffer. A part named ``…_hot_s`` gets the same one again and again, so that what
        it reads lies where its last call left it: for parts that do not read the content.
        """
