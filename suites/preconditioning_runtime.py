"""Run-time side of the task ``preconditioning``: contents, prior states, oracle and gate on torch tensors."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.catalogue.suite import Problem
from harness.catalogue.task import Judgement
from harness.errors import Unsupported, UserError
from suites import preconditioning_inputs as inputs

#: Rows of the gradient that a refresh is followed by: enough to see the inverse, too few to cost.
PROBES = 8
#: Columns of the factor that an update returns.
COLUMNS = 8
#: Gate of exact back-ends on ``solve_error``: an iteration may stop at a residual of 1e-2 (the Newton-Schulz back-end's
#: own tolerance); direct ones in float32 measure below 1e-4 at a condition of 100.
ACCURACY_LIMIT = 1e-2
#: Gate against the float64 twin, by spectrum. A sketch misses the best subspace of its rank by what oversampling and
#: power iterations leave; without re-orthonormalisation in between (SRE as published) float32 drowns its small modes,
#: which costs 5 to 10 % here. On the slow spectrum neighbouring modes can hardly be told apart, 30 to 40 %. A wrong
#: operator (a transposed basis, a damping on the wrong modes) is off by about its size.
FIDELITY_LIMIT: Mapping[str, float] = {"": 0.2, "flat": 0.6}
#: Seeds of the batches that prior states are made of; no gate and no block draws from them.
PRIOR_SEED = 600_000

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Given:
    """Tensors of one call by name: ``factor``, ``rows``, ``outputs`` and ``gradient``, as the operation needs."""

    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def map(self, function: Callable[[Tensor], Tensor]) -> Given:
        """The same with a function of every tensor."""
        return Given({name: function(tensor) for name, tensor in self.tensors.items()})


class Operation:
    """``op(given)`` of one method on one problem; its prior state is made once and copied back by ``rewind``."""

    def __init__(self, impl: Callable[..., Any], problem: Problem, hyper: Mapping[str, Any]) -> None:
        self.problem, self.kind = problem, inputs.operation(problem)
        outputs, width = PROBES if self.kind != "apply" else problem.shape[0], problem.shape[1]
        try:
            self.ready = impl(outputs, width, **options(impl, problem, hyper))
        except UserError as error:
            # The suite chose the options: a refusal is the method's limit, not the user's mistake.
            raise Unsupported(str(error)) from error
        self.online = bool(getattr(self.ready, "online", False))
        if self.kind == "update" and not hasattr(self.ready, "factor"):
            raise Unsupported("keeps no running factor: its refresh works on the rows themselves")
        self._prepare(outputs, width)
        self.current = self.ready if self.kind == "apply" else copy.deepcopy(self.ready)

    def _prepare(self, outputs: int, width: int) -> None:
        """The state that every call starts from: factors of the past, inverted; for ``apply`` also the output side."""
        problem, ready = self.problem, self.ready
        sides = {"a": width, "g": outputs} if self.kind == "apply" else {"a": width}
        if hasattr(ready, "place"):
            for side, size in sides.items():
                ready.place(side, inputs.prior(problem, size))
            ready.refresh()
        elif self.online:
            batch = sample(problem, inputs.ROWS_OF_STATE, PRIOR_SEED, outputs)
            ready.update(batch["rows"], batch["outputs"])
            ready.refresh()

    def rewind(self) -> None:
        """The prior state again."""
        if self.kind != "apply":
            self.current = copy.deepcopy(self.ready)

    def __call__(self, given: Given) -> Tensor:
        """One update, refresh or application; a new tensor."""
        current = self.current
        if self.kind == "apply":
            return current.precondition(given["gradient"])  # type: ignore[no-any-return]
        if self.kind == "update":
            current.update(given["rows"], None)
            return current.factor("a")[:, :COLUMNS].clone()  # type: ignore[no-any-return]
        if self.online or not hasattr(current, "place"):
            current.update(given["rows"], given["outputs"])
        else:
            current.place("a", given["factor"])
        current.refresh()
        return current.precondition(given["gradient"])  # type: ignore[no-any-return]


def options(impl: Callable[..., Any], problem: Problem, hyper: Mapping[str, Any]) -> dict[str, Any]:
    """The method's options, the problem's damping and decay in their place where the factory knows the name."""
    known = set(inspect.signature(impl).parameters) | set(hyper)
    return {**hyper, **{name: value for name, value in problem.params.items() if name in known}}


def sample(problem: Problem, count: int, seed: int, outputs: int) -> Given:
    """Rows of one batch on both sides of a layer."""
    rows = inputs.rows(problem, problem.shape[1], count, seed)
    return Given({"rows": rows, "outputs": inputs.gaussian(problem, (count, outputs), seed)})


class PreconditioningRuntime:
    """Fulfils :class:`harness.catalogue.task.TaskRuntime` and :class:`harness.catalogue.task.Stateful`."""

    def content(self, problem: Problem, seed: int) -> Given:
        """New rows and the factor with them in it; or a gradient."""
        kind, (first, width) = inputs.operation(problem), problem.shape
        if kind == "apply":
            return Given({"gradient": inputs.gaussian(problem, (first, width), seed)})
        rows = inputs.rows(problem, width, first, seed)
        if kind == "update":
            return Given({"rows": rows})
        decay = problem.params["decay"]
        whole = decay * inputs.prior(problem, width)
        whole.addmm_(rows.mT, rows, alpha=(1 - decay) / first)
        return Given(
            {
                "factor": (whole + whole.mT) / 2,
                "rows": rows,
                "outputs": inputs.gaussian(problem, (first, PROBES), seed),
                "gradient": inputs.gaussian(problem, (PROBES, width), seed + 50_000),
            }
        )

    def vary(self, content: Given, step: int) -> Given:
        """Everything up to 6 % larger, the gradient's sign by the step's parity."""
        scale = 1.0 + (step % 4096) / 2**16
        signed = {"factor": scale**2, "gradient": (-1) ** step * scale}
        return Given({name: tensor * signed.get(name, scale) for name, tensor in content.tensors.items()})

    def buffer_like(self, content: Given) -> Given:
        """Fresh, unfilled tensors."""
        return content.map(torch.empty_like)

    def fill(self, buffer: Given, content: Given) -> None:
        """Copy every tensor."""
        for name, tensor in content.tensors.items():
            buffer[name].copy_(tensor)

    def same(self, left: Any, right: Any) -> bool:
        """Bitwise equality of all tensors."""
        if isinstance(left, Given):
            return all(_same(tensor, right[name]) for name, tensor in left.tensors.items())
        return _same(left, right)

    def snapshot(self, value: Any) -> Any:
        """A detached copy."""
        return value.map(torch.clone) if isinstance(value, Given) else value.detach().clone()

    def bind(self, impl: Any, problem: Problem, hyper: Mapping[str, Any]) -> Operation:
        """The layer's preconditioner with a state of the past.

        Raises:
            UserError: ``impl`` cannot be called.
            Unsupported: the method refuses the size or the operation.
        """
        if not callable(impl):
            raise UserError(f"a preconditioning method is a factory make(d_out, d_in); got {type(impl).__name__}.")
        with torch.no_grad():
            return Operation(impl, problem, hyper)

    def rewind(self, op: Any) -> None:
        """The state of the past again."""
        op.rewind()

    def held_bytes(self, op: Any) -> Mapping[str, float]:
        """Bytes of every tensor that the preconditioner keeps after a call."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(op.current, set())}
        return {"state_bytes": float(sum(storages.values()))}

    def malformed(self, output: Any, buffer: Given, problem: Problem) -> str | None:
        """Why ``output`` is not a new dense tensor of the right shape."""
        if type(output) is not torch.Tensor:
            return f"expected a torch.Tensor, got {type(output).__module__}.{type(output).__qualname__}"
        update = inputs.operation(problem) == "update"
        like = buffer["rows"] if update else buffer["gradient"]
        width = problem.shape[1]
        wanted = (width, min(COLUMNS, width)) if update else tuple(like.shape)
        if tuple(output.shape) != wanted:
            return f"expected shape {wanted}, got {tuple(output.shape)}"
        if output.dtype != like.dtype or output.device != like.device:
            return f"expected {like.dtype} on {like.device}, got {output.dtype} on {output.device}"
        if output.untyped_storage().data_ptr() in {t.untyped_storage().data_ptr() for t in buffer.tensors.values()}:
            return "the output shares an input's memory; return a new tensor"
        return None

    def nonfinite(self, output: Tensor) -> str | None:
        """How many entries are NaN or infinite."""
        bad = int((~torch.isfinite(output)).sum())
        return f"{bad} entries are NaN or infinite" if bad else None

    @torch.no_grad()
    def oracle(self, content: Given, problem: Problem) -> Tensor:
        """In float64: the dense solve of the damped system, or columns of the running factor."""
        kind, damping = inputs.operation(problem), problem.params["damping"]
        width = problem.shape[1]
        if kind == "update":
            rows, decay = content["rows"].double(), float(problem.params["decay"])
            old = inputs.prior(problem, width)[:, :COLUMNS].double()
            return decay * old + (1 - decay) / len(rows) * (rows.mT @ rows[:, :COLUMNS])
        right = content["gradient"].double()
        if kind == "refresh":
            return _solved(content["factor"], damping, right.mT).mT
        left = _solved(inputs.prior(problem, problem.shape[0]), damping, right)
        return _solved(inputs.prior(problem, width), damping, left.mT).mT

    @torch.no_grad()
    def judge(
        self, output: Tensor, content: Given, oracle: Tensor, problem: Problem, reference: Callable[[Any], Any] | None
    ) -> Judgement:
        """Fidelity to the plain float64 twin; without one, accuracy."""
        errors = dict(self.glance(output, content, oracle, problem))
        metric, limit, status = "solve_error", ACCURACY_LIMIT, "inaccurate"
        if inputs.operation(problem) == "refresh":
            errors["residual"] = _residual(output, content, problem.params["damping"])
        if reference is not None:
            assert isinstance(reference, Operation)
            reference.rewind()
            wanted = reference(content)
            errors["fidelity_error"] = _relative(output, wanted)
            limit, status = FIDELITY_LIMIT[problem.kind.partition("_")[2]], "unfaithful"
            metric = "fidelity_error"
            if inputs.operation(problem) != "update":
                system = _system(content, problem)
                errors["fidelity_residual"] = _relative(system(output), system(wanted))
                metric = max(("fidelity_error", "fidelity_residual"), key=errors.__getitem__)
        if not errors[metric] <= limit:
            return Judgement(
                status=status, reason=f"{metric} is {errors[metric]:.4g}, its limit {limit:.3g}", errors=errors
            )
        return Judgement(status="passed", reason=None, errors=errors)

    @torch.no_grad()
    def glance(self, output: Tensor, content: Given, oracle: Tensor, problem: Problem) -> Mapping[str, float]:
        """Relative distance to the float64 answer."""
        return {"solve_error": _relative(output, oracle)}

    def work_bytes(self, problem: Problem) -> int:
        """Bytes of one content."""
        first, width = problem.shape
        kind = inputs.operation(problem)
        return 4 * (first * width + (width * width if kind == "refresh" else 0))

    def work_flops(self, problem: Problem) -> float:
        """Planning: the mean over the back-ends of a refresh, a dense product, a second moment."""
        first, width = map(float, problem.shape)
        return {
            "refresh": 10 * width**3 + 5e3 * width**2,
            "apply": 2 * first * width * (first + width),
            "update": 2 * first * width**2,
        }[inputs.operation(problem)]


def _solved(factor: Tensor, damping: float, right: Tensor) -> Tensor:
    whole = factor.double()
    whole.diagonal().add_(damping)
    found: Tensor = torch.cholesky_solve(right, torch.linalg.cholesky(whole))  # type: ignore[no-untyped-call]
    return found


def _system(content: Given, problem: Problem) -> Callable[[Tensor], Tensor]:
    """X -> (G + lam I) X (A + lam I) in float64, G the identity without an output side.

    Of a random V most lies where the factor is far below lam, and V / lam alone is within 20 % of the answer from some
    hundred columns on; seen through the system, the few large eigenvalues weigh what they do.
    """
    damping, (first, width) = problem.params["damping"], problem.shape
    if inputs.operation(problem) == "refresh":
        right = content["factor"].double()
        return lambda x: x.double() @ right + damping * x.double()
    right, left = inputs.prior(problem, width).double(), inputs.prior(problem, first).double()

    def applied(x: Tensor) -> Tensor:
        half = left @ x.double() + damping * x.double()
        found: Tensor = half @ right + damping * half
        return found

    return applied


def _residual(output: Tensor, content: Given, damping: float) -> float:
    found, right = output.double(), content["gradient"].double()
    return float((found @ content["factor"].double() + damping * found - right).norm() / right.norm())


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def _same(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape or left.dtype != right.dtype or left.device != right.device:
        return False
    bits = _BITS[left.element_size()]
    return bool(torch.equal(left.contiguous().view(bits), right.contiguous().view(bits)))


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor that is reachable through attributes, mappings and sequences."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item, seen)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from _tensors(vars(value), seen)


RUNTIME = PreconditioningRuntime()
