"""Run-time side of the task ``approximate_matmul``: contents, fitting, oracle and gate on torch tensors."""

from __future__ import annotations

import inspect
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from harness.catalogue.suite import Problem
from harness.catalogue.task import Fact, Judgement
from harness.conformance import EdgeCase
from harness.errors import UserError
from suites.amm import contents, counters, oracle, sources, theorem
from suites.amm.contents import Rows
from suites.amm.edges import edge_cases
from suites.amm.fitted import Operation
from suites.amm.oracle import Answer
from suites.amm.parts import Parts

#: Gate of a method with a plain twin, on ||Y - Y_twin||_F / || |A| |B| ||_F by the dtype of its arithmetic. Rounding of
#: the operands to bfloat16 is 2^-9 each and of an output 2^-9 more; one-byte codes may round the other way where the
#: twin's float64 quotient lies on a tie.
FIDELITY_LIMIT: Mapping[str, float] = {
    "float64": 1e-12,
    "float16": 2e-3,
    "bfloat16": 8e-3,
    "int8": 2e-3,
    "float8": 8e-3,
}
#: The unit roundoff of float32: a sum of D products in order errs by less than u sqrt(D) of sum |a||b| in the mean
#: (Higham 2002, section 4.2); TF32 (2^-11 an operand) lies above that up to D = 4096.
FLOAT32 = 2.0**-24
SMALL_D = 32
#: Approximate methods: the same learned parameters, so only rounding of float32 sums and of the output.
APPROXIMATE_LIMIT = 1e-3
#: Share of rows that may differ from the twin's (a tie of distances between centroids broken the other way).
MISMATCH_LIMIT = 2e-3
#: Gate of a method without a twin, on the same scale against the float64 product. Int8 has one scale a row or tensor:
#: its step is 1/127 of the largest entry, which may be ten times the typical one.
ACCURACY_LIMIT: Mapping[str, float] = {
    "float64": 1e-12,
    "float16": 2e-3,
    "bfloat16": 8e-3,
    "int8": 5e-2,
    "float8": 5e-2,
}
#: An approximation without a twin may be poor, which is its price; but its best scalar multiple must beat the answer
#: zero (cosine > 0), and its error must not exceed what a sketch of a single column has: the variance of
#: A s s^T B with random signs s is at most 2 ||A||_F^2 ||B||_F^2 (Avron and Toledo 2011, lemma 5); twice for luck.
SKETCH_VARIANCE = 4.0
#: Rows of the training matrix that the theorem's training loss is taken over.
THEOREM_ROWS = 4096
#: Parts of the test rows whose gaps are told apart: a spread of as many as a verdict over several problems needs.
PARTS = 8
#: Calls whose events are counted: so many buffers, so many times over; the first round warms up.
COUNTED_BUFFERS, COUNTED_ROUNDS = 2, 4
#: A test loss below the training loss has no gap; ratios need a positive number.
TINY = 1e-9

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class ProductRuntime:
    """Fulfils :class:`harness.catalogue.task.TaskRuntime` and :class:`harness.catalogue.task.Described`.

    A content is a :class:`suites.amm.contents.Rows`, an output a tensor, an operation an
    :class:`suites.amm.fitted.Operation`.
    """

    def __init__(self) -> None:
        # Weakly: what the gate has let go must not look like memory that the method retains.
        self._recent: list[weakref.ref[Operation]] = []

    def content(self, problem: Problem, seed: int) -> Rows:
        """Rows of the problem's test pool in a random order."""
        return contents.draw(problem, sources.source(problem), seed)

    def vary(self, content: Rows, step: int) -> Rows:
        """The same rows, begun at another one."""
        return contents.vary(content, step)

    def buffer_like(self, content: Rows) -> Rows:
        """A fresh, unfilled buffer."""
        a = content.a
        empty = torch.empty_strided(a.size(), a.stride(), dtype=a.dtype, device=a.device)
        return Rows(a=empty, index=content.index)

    def fill(self, buffer: Rows, content: Rows) -> None:
        """Copy the rows."""
        content.copy_into(buffer.a)

    def same(self, left: Any, right: Any) -> bool:
        """Bitwise equality, any NaN equal to any NaN."""
        one, two = (side.whole() if isinstance(side, Rows) else side for side in (left, right))
        if one.shape != two.shape or one.dtype != two.dtype or one.device != two.device:
            return False
        bits = _BITS[one.element_size()]
        differ = one.contiguous().view(bits) != two.contiguous().view(bits)
        return not bool(differ.any()) or bool((torch.isnan(one) & torch.isnan(two))[differ].all())

    def snapshot(self, value: Any) -> Any:
        """A detached copy."""
        if isinstance(value, Rows):
            return Rows(a=value.whole().clone(), index=value.numbers())
        return value.detach().clone()

    def bind(self, impl: Any, problem: Problem, hyper: Mapping[str, Any]) -> Operation:
        """The method fitted to the problem's training rows and B, outside every clock.

        Raises:
            UserError: ``impl`` cannot be called.
            Unsupported: the method refuses the problem's options or shape.
        """
        if not callable(impl):
            raise UserError(f"a product method is a factory make(**hyper) with fit(a, b); got {type(impl).__name__}.")
        operation = Operation(impl, problem, hyper)
        self._recent = [*self._recent[-1:], weakref.ref(operation)]
        operation.fit()
        return operation

    def malformed(self, output: Any, buffer: Rows, problem: Problem) -> str | None:
        """Why ``output`` is not a new dense tensor [N, M] in float32 or the input's dtype on its device."""
        if type(output) is not torch.Tensor:
            return f"expected a torch.Tensor, got {type(output).__module__}.{type(output).__qualname__}"
        wanted = (buffer.a.shape[0], problem.shape[2])
        if tuple(output.shape) != wanted:
            return f"expected shape {wanted}, got {tuple(output.shape)}"
        given = buffer.a.dtype
        if output.dtype not in ((torch.float32, given) if given.is_floating_point else (torch.float32,)):
            other = f" or {given}" if given.is_floating_point else ""
            return f"expected dtype float32{other}, got {output.dtype}"
        if output.device != buffer.a.device or output.layout != torch.strided:
            return f"expected a dense tensor on {buffer.a.device}, got {output.layout} on {output.device}"
        if output.is_neg() or output.is_conj():
            return "expected computed values, got a lazily negated or conjugated view"
        if output.untyped_storage().data_ptr() == buffer.a.untyped_storage().data_ptr():
            return "the output shares the input's memory; return a new tensor"
        return None

    def nonfinite(self, output: Tensor) -> str | None:
        """How many entries are NaN or infinite."""
        bad = int((~torch.isfinite(output)).sum())
        return f"{bad} of {output.numel()} entries are NaN or infinite" if bad else None

    def oracle(self, content: Rows, problem: Problem) -> Answer:
        """The float64 product of the rows actually passed with B as the methods got it (rounded to the dtype)."""
        found = sources.source(problem)
        a = content.whole()
        b = torch.from_numpy(found.b).to(problem.device, contents.learned_in(problem))
        y, scale, trivial = oracle.product(a, b)
        extra: dict[str, Any] = {}
        if found.labels is not None:
            extra["labels"] = torch.from_numpy(found.labels[content.numbers()]).to(a.device)
        if found.bias is not None:
            extra["bias"] = torch.from_numpy(found.bias).double().to(a.device)
        if found.owners is not None:
            extra["owners"] = torch.from_numpy(found.owners).to(a.device)
            extra["gamma"] = found.gamma
            extra["squares"] = a.double().square().sum(1, keepdim=True) + b.double().square().sum(0)
        return Answer(y=y, scale=scale, trivial=trivial, **extra)

    def judge(
        self,
        output: Tensor,
        content: Rows,
        oracle: Answer,
        problem: Problem,
        reference: Callable[[Any], Any] | None,
    ) -> Judgement:
        """Fidelity to the plain twin; without one, accuracy by the class of the method."""
        alive = (found() for found in reversed(self._recent))
        operation = next((op for op in alive if op is not None and op is not reference), None)
        errors = dict(self.glance(output, content, oracle, problem))
        limits: dict[str, float] = {}
        if reference is not None:
            errors |= oracle_fidelity(output, reference(content), oracle)
            limits["fidelity_error"] = fidelity_limit(operation, problem)
            if operation is not None and operation.approximate:
                limits["mismatched_rows"] = MISMATCH_LIMIT
        elif operation is not None and operation.approximate:
            if not errors["cosine"] > 0.0:
                reason = f"cosine with the product is {errors['cosine']:.4g}: no multiple of it beats the answer zero"
                return Judgement(status="inaccurate", reason=reason, errors=errors)
            limits["nmse_norm"] = SKETCH_VARIANCE * (oracle.trivial / max(float(oracle.y.norm()), 1e-300)) ** 2
        else:
            limits["rounding_error"] = accuracy_limit(operation, problem)
        for metric, limit in limits.items():
            if not errors[metric] <= limit:
                status = "inaccurate" if reference is None else "unfaithful"
                reason = f"{metric} is {errors[metric]:.4g}, its limit {limit:.3g}"
                return Judgement(status=status, reason=reason, errors=errors)
        return Judgement(status="passed", reason=None, errors=errors)

    def glance(self, output: Tensor, content: Rows, oracle: Answer, problem: Problem) -> Mapping[str, float]:
        """All errors against the float64 product and the labels."""
        return oracle_errors(output, oracle)

    def parts(self, op: Any) -> Mapping[str, Callable[[Rows], Any]]:
        """Encoding, scanning (also hot), and scanning with the fix-up, where the operator has them; :class:`Parts`.

        A scan reads no row: ``scan_s`` comes after a copy of A, as a scan after another operation does, ``scan_hot_s``
        one after another, as published loops time it.
        """
        inner = op.op
        if hasattr(inner, "codes") and hasattr(inner, "scan"):
            parts = Parts(inner)
            found = {"encode_s": parts.encode, "scan_s": parts.scan, "scan_hot_s": parts.scan}
            return {**found, "scan_fix_up_s": parts.finish} if parts.divided else found
        # The narrow forms that linear methods call codes are half of their product, with no scan to tell them from.
        looks_up = hasattr(inner, "encode") and "codebooks" in getattr(op, "hyper", {})
        return {"encode_s": lambda rows: inner.encode(rows.a)} if looks_up else {}

    def facts(self, op: Any, content: Rows, problem: Problem) -> tuple[Mapping[str, Fact], dict[str, Any]]:
        """Times of training and tables; work and bytes of one call; what really ran; the theorem's bound."""
        inner = op.op
        n = problem.shape[0]
        # A method that learns nothing has spent no time, which is not a measurement.
        numbers: dict[str, Fact] = {
            name: ([float(value)], "s") for name, value in getattr(inner, "times", {}).items() if value > 0
        }
        how = _memory(inner, problem)
        if hasattr(inner, "bytes_read"):
            numbers["bytes_read"] = ([float(inner.bytes_read(n, **how))], "bytes")
        if hasattr(inner, "multiplies"):
            numbers["multiplies"] = ([float(inner.multiplies(n))], "1")
        if "codebooks" in op.hyper:
            numbers["codes"] = ([float(n) * int(op.hyper["codebooks"])], "1")
            numbers["lookups"] = ([float(n) * int(op.hyper["codebooks"]) * problem.shape[2]], "1")
        found = sources.source(problem)
        detail: dict[str, Any] = {"hyper": op.hyper, "data": found.digest, "train_rows": len(found.train)}
        if how:
            detail["bytes_read"] = {**how, "line_bytes": getattr(inner, "line_bytes", None)}
        if hasattr(inner, "describe"):
            detail["runs"] = _plain(inner.describe())
        if op.from_disk:
            detail["fitted"] = "read from the cache; the times are those of its fit"
        if problem.device == "cpu":
            counted, why = count_events(op, content)
            numbers |= counted
            detail |= {"counters": why} if why else {}
        if theorem.covers(op.hyper):
            detail["theorem"], gaps = guarantee(op, content, problem)
            limit = detail["theorem"]["bound"]
            numbers |= {"loss_bound": ([limit], "1"), "gap_over_bound": ([max(g, TINY) / limit for g in gaps], "1")}
        return numbers, detail

    def edge_cases(self, device: str) -> Iterator[EdgeCase]:
        """Inputs that conformance tries and no tier times."""
        return edge_cases(device)

    def work_bytes(self, problem: Problem) -> int:
        """Bytes of one A."""
        n, inner, _ = problem.shape
        return n * inner * torch.empty((), dtype=contents.DTYPES[problem.dtype]).element_size()

    def work_flops(self, problem: Problem) -> float:
        """The exact product, 2 N D M."""
        n, inner, outer = problem.shape
        return 2.0 * n * inner * outer


vary_rows = contents.vary
oracle_errors = oracle.errors_of
oracle_fidelity = oracle.fidelity


def arithmetic(operation: Operation | None) -> str:
    """Class of the dtype that an operator says it computes in, such as float32, bfloat16, int8 or float8."""
    inner: Any = operation.op if operation is not None else None
    named = str(inner.describe().get("dtype", "float32")) if hasattr(inner, "describe") else "float32"
    return "float8" if named.startswith("float8") else "int8" if named in ("uint8", "int8") else named


def _roundoff(inner: int) -> float:
    return FLOAT32 * math.sqrt(max(inner, SMALL_D))


def fidelity_limit(operation: Operation | None, problem: Problem) -> float:
    """Limit of fidelity_error for one method on one problem."""
    named = arithmetic(operation)
    limit = FIDELITY_LIMIT.get(named, _roundoff(problem.shape[1]))
    if operation is not None and operation.approximate:
        limit = max(limit, APPROXIMATE_LIMIT)
    # The answer may be rounded to the input's dtype on top.
    return max(limit, FIDELITY_LIMIT.get(problem.dtype, 0.0) if problem.dtype != "float64" else 0.0)


def accuracy_limit(operation: Operation | None, problem: Problem) -> float:
    """Limit of rounding_error for an exact or quantised method without a twin."""
    limit = ACCURACY_LIMIT.get(arithmetic(operation), _roundoff(problem.shape[1]))
    return max(limit, ACCURACY_LIMIT.get(problem.dtype, 0.0) if problem.dtype != "float64" else 0.0)


def count_events(operation: Callable[[Rows], Any], content: Rows) -> tuple[dict[str, Fact], str]:
    """Cache misses and instructions of a call, as :mod:`suites.amm.counters` may read them, and what it may not.

    Every call reads another buffer, as the timed ones do, so that A comes from as far away as it does for them.
    """
    buffers = [vary_rows(content, step).whole() for step in range(COUNTED_BUFFERS)]
    rows = [Rows(a=a, index=content.index) for a in buffers]
    calls = [lambda one=one: operation(one) for one in rows * COUNTED_ROUNDS]
    counts, why = counters.per_call(calls)
    return {name: (values[COUNTED_BUFFERS:], counters.UNITS[name]) for name, values in counts.items()}, why


@torch.no_grad()
def guarantee(operation: Operation, content: Rows, problem: Problem) -> tuple[dict[str, float], list[float]]:
    """The measured gap between test and training loss |a b - approximation|, beside the theorem's bound.

    The losses are means over rows, of the column with the largest gap; sigma_A and n belong to all training rows. The
    list holds the gaps of ``PARTS`` parts of the test rows.
    """
    found = sources.source(problem)
    dtype = contents.learned_in(problem)
    train = torch.from_numpy(found.train).to(problem.device, dtype)
    b = torch.from_numpy(found.b).to(problem.device, dtype)

    def loss(rows: Tensor) -> Tensor:
        got: Tensor = operation.op(rows.contiguous())
        return (got.double() - rows.double() @ b.double()).abs()

    trained, tested = loss(train[:THEOREM_ROWS]).mean(0), loss(content.whole()[:THEOREM_ROWS])
    gaps = tested.mean(0) - trained
    column = int(gaps.argmax())
    wide = train.double()
    sigma = float(torch.linalg.eigvalsh(wide.mT @ wide)[-1].clamp(min=0).sqrt())
    limit = theorem.bound(
        codebooks=int(operation.hyper["codebooks"]),
        columns=problem.shape[1],
        rows=len(train),
        sigma=sigma,
        norm_b=float(b.double()[:, column].norm()),
        ridge=float(operation.hyper["ridge"]),
    )
    told = {
        "train_loss": float(trained[column]),
        "test_loss": float(tested[:, column].mean()),
        "gap": float(gaps[column]),
        "bound": limit,
        "sigma": sigma,
    }
    return told, [float(part.mean() - trained[column]) for part in tested[:, column].tensor_split(PARTS) if len(part)]


def _memory(inner: Any, problem: Problem) -> dict[str, Any]:
    """How A lies in memory, for a count of bytes that asks."""
    if not hasattr(inner, "bytes_read"):
        return {}
    item = torch.empty((), dtype=contents.DTYPES[problem.dtype]).element_size()
    known = {"layout": contents.layout(problem), "item_bytes": item}
    asked = inspect.signature(inner.bytes_read).parameters
    return {name: value for name, value in known.items() if name in asked}


def _plain(value: Any) -> Any:
    """Plain JSON values of what an operator says about itself."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


RUNTIME = ProductRuntime()
