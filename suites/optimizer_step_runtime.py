"""Run-time side of the task ``training`` in suite ``optimizer_step``: gradients, bare steps, fidelity to plain twins.

A step is stateful and in place, so before every call the harness lets the runtime put weights and state back
(:class:`harness.catalogue.task.Stateful`), outside every clock. The state it starts from is that after two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# The first optimizer of a process imports it, 2 s: here a worker does so once, before it forks for each method.
import torch._dynamo
from torch import Tensor, nn

from harness.catalogue.suite import Problem
from harness.catalogue.task import Judgement
from harness.errors import Unsupported, UserError
from suites.optimizer_step import NETWORKS, iteration_flops
from suites.optimizer_step_operation import Operation, Stepped

#: Gate of ``fidelity_error`` by the parameters' dtype. float32 and float64 leave two decades over what fused updates
#: measure; in bfloat16 the rounding of the weight alone, a uniform error of up to half a unit, can make it 0.22.
FIDELITY_LIMIT: Mapping[torch.dtype, float] = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 0.3}
#: The same where an iteration of products runs in a dtype of its own; see the gate of suite ``polar``.
ITERATION_LIMIT: Mapping[str, float] = {"bfloat16": 0.15, "float16": 0.05, "float32": 2e-3, "float64": 1e-7}
#: ``descent_gap`` of an update that is zero: above what any block accepts.
NO_UPDATE = 3.0
#: Two of the five methods iterate.
ITERATING_SHARE = 0.4

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Start:
    """The oracle: the weights that every step starts from."""

    weights: list[Tensor]


class OptimizerStepRuntime:
    """Fulfils :class:`harness.catalogue.task.TaskRuntime` and :class:`harness.catalogue.task.Stateful`."""

    def content(self, problem: Problem, seed: int) -> list[Tensor]:
        """One gradient a parameter, gaussian, its scale from 0.005 to 0.05 by parameter, for every seed alike."""
        return gradients(problem, seed, _dtype(problem))

    def vary(self, content: list[Tensor], step: int) -> list[Tensor]:
        """The gradients with their sign by ``step``'s parity and up to 6 % larger."""
        return torch._foreach_mul(content, (-1) ** step * (1.0 + (step % 4096) / 2**16))  # type: ignore[return-value]

    def buffer_like(self, content: list[Tensor]) -> list[Tensor]:
        """Fresh tensors of the same shapes."""
        return [torch.empty_like(tensor) for tensor in content]

    def fill(self, buffer: list[Tensor], content: list[Tensor]) -> None:
        """Copy every gradient."""
        torch._foreach_copy_(buffer, content)

    def same(self, left: Any, right: Any) -> bool:
        """Bitwise equality of all tensors. An output whose weights a later step has changed is no longer compared.

        A step is in place by contract: its output is the parameters themselves, so the rule that a later call must
        leave an earlier output alone does not apply to it.
        """
        if isinstance(left, Stepped) or isinstance(right, Stepped):
            if any(isinstance(side, Stepped) and side.gone for side in (left, right)):
                return True
            left, right = left.weights, right.weights
        return len(left) == len(right) and all(_same(one, two) for one, two in zip(left, right, strict=True))

    def snapshot(self, value: Any) -> Any:
        """A detached copy."""
        if isinstance(value, Stepped):
            return value.copy()
        return [tensor.detach().clone() for tensor in value]

    def bind(self, impl: Any, problem: Problem, hyper: Mapping[str, Any]) -> Operation:
        """The step of the optimizer that the factory ``impl`` makes; built by the first ``rewind`` or call.

        Raises:
            UserError: ``impl`` cannot be called.
        """
        if not callable(impl):
            raise UserError(f"a training method is a factory make(model, **hyper); got {type(impl).__name__}.")
        return Operation(lambda dtype: _prepared(impl, problem, dtype, hyper), _dtype(problem))

    def rewind(self, op: Any) -> None:
        """Weights and state as they were after the two steps that follow the construction."""
        op.rewind()

    def held_bytes(self, op: Any) -> Mapping[str, float]:
        """Bytes of the optimizer's state, once it has stepped."""
        return {"optimizer_state_bytes": float(op.state_bytes())}

    def malformed(self, output: Any, buffer: list[Tensor], problem: Problem) -> str | None:
        """Why the parameters are not those of the problem any more."""
        if not isinstance(output, Stepped):
            return f"expected the stepped parameters, got {type(output).__name__}"
        for index, (weight, like) in enumerate(zip(output.weights, buffer, strict=True)):
            for what in ("shape", "dtype", "device"):
                if getattr(weight, what) != getattr(like, what):
                    return f"parameter {index}: expected {what} {getattr(like, what)}, got {getattr(weight, what)}"
        return None

    def nonfinite(self, output: Stepped) -> str | None:
        """How many weights are NaN or infinite."""
        bad = sum(int((~torch.isfinite(weight)).sum()) for weight in output.weights)
        return f"{bad} weights are NaN or infinite" if bad else None

    def oracle(self, content: list[Tensor], problem: Problem) -> Start:
        """The weights that every step starts from."""
        return Start(weights(problem))

    @torch.no_grad()
    def judge(
        self,
        output: Stepped,
        content: list[Tensor],
        oracle: Start,
        problem: Problem,
        reference: Callable[[Any], Any] | None,
    ) -> Judgement:
        """The update must descend, and be its plain twin's in float64 when there is one."""
        errors = dict(self.glance(output, content, oracle, problem))
        if not errors["descent_gap"] < 1.0:
            reason = f"descent_gap is {errors['descent_gap']:.4g}: the update does not point down the gradient"
            return Judgement(status="inaccurate", reason=reason, errors=errors)
        if reference is None:
            return Judgement(status="passed", reason=None, errors=errors)
        assert isinstance(reference, Operation)
        twin = reference.in_float64()
        twin.rewind()
        wanted: Stepped = twin([tensor.double() for tensor in content])
        errors |= _fidelity(output.weights, wanted.weights, oracle.weights)
        limit = max([FIDELITY_LIMIT[_dtype(problem)], *(ITERATION_LIMIT[name] for name in output.iteration_dtypes)])
        if not errors["fidelity_error"] <= limit:
            reason = f"fidelity_error is {errors['fidelity_error']:.4g}, its limit {limit:.3g}"
            return Judgement(status="unfaithful", reason=reason, errors=errors)
        return Judgement(status="passed", reason=None, errors=errors)

    @torch.no_grad()
    def glance(self, output: Stepped, content: list[Tensor], oracle: Start, problem: Problem) -> Mapping[str, float]:
        """One minus the cosine of update and negative gradient, the mean over the parameters by their scalars.

        The mean over parameters does not see how a method shares its step out among them.
        """
        total, moved = 0.0, False
        for weight, start, gradient in zip(output.weights, oracle.weights, content, strict=True):
            change, slope = weight.double() - start.double(), gradient.double()
            size = float(change.norm() * slope.norm())
            moved = moved or size > 0
            total -= weight.numel() * float((change * slope).sum()) / size if size > 0 else 0.0
        return {"descent_gap": 1.0 - total / problem.shape[0] if moved else NO_UPDATE}

    def work_bytes(self, problem: Problem) -> int:
        """Bytes of one set of gradients."""
        return problem.shape[0] * _dtype(problem).itemsize

    def work_flops(self, problem: Problem) -> float:
        """The mean over the methods: twenty operations a scalar, and the iteration of those that orthogonalize."""
        return 20.0 * problem.shape[0] + ITERATING_SHARE * iteration_flops(problem.kind)


def _fidelity(got: Sequence[Tensor], wanted: Sequence[Tensor], start: Sequence[Tensor]) -> dict[str, float]:
    unit = torch.finfo(got[0].dtype).eps
    off, moved, size, worst = 0.0, 0.0, 0.0, 0.0
    for one, two, first in zip(got, wanted, start, strict=True):
        distance = float((one.double() - two).norm())
        change, length = float((two - first.double()).norm()), float(two.norm())
        worst = max(worst, distance / (change + unit * length))
        off, moved, size = off + distance**2, moved + change**2, size + length**2
    return {"fidelity_error": worst, "fidelity_full": off**0.5 / (moved**0.5 + unit * size**0.5)}


def _same(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape or left.dtype != right.dtype or left.device != right.device:
        return False
    bits = _BITS[left.element_size()]
    return torch.equal(left.detach().contiguous().view(bits), right.detach().contiguous().view(bits))


def _dtype(problem: Problem) -> torch.dtype:
    found: torch.dtype = getattr(torch, problem.dtype)
    return found


def _drawn(problem: Problem, seed: int) -> Iterator[Tensor]:
    """One gaussian tensor a parameter in float32 on the problem's device, times a scale that no seed changes."""
    generator = torch.Generator(problem.device).manual_seed(7_919 * (problem.seed + 1) + seed)
    scales = torch.rand(len(NETWORKS[problem.kind]), generator=torch.Generator().manual_seed(problem.seed)).tolist()
    for weight, scale in zip(NETWORKS[problem.kind], scales, strict=True):
        yield torch.randn(weight.shape, generator=generator, device=problem.device) * 0.005 * 10.0**scale


def gradients(problem: Problem, seed: int, dtype: torch.dtype) -> list[Tensor]:
    """Gradients of ``seed`` in the problem's dtype, then in ``dtype``."""
    return [tensor.to(_dtype(problem)).to(dtype) for tensor in _drawn(problem, 1_000 + seed)]


def weights(problem: Problem) -> list[Tensor]:
    """The starting weights in the problem's dtype."""
    return [tensor.to(_dtype(problem)) for tensor in _drawn(problem, 0)]


def network(problem: Problem, dtype: torch.dtype) -> tuple[nn.Module, list[nn.Parameter]]:
    """A module that holds the problem's parameters (embedding and head in modules of their type), and them in order."""
    model = nn.Module()
    parameters = []
    for weight, value in zip(NETWORKS[problem.kind], weights(problem), strict=True):
        parameter = nn.Parameter(value.to(dtype))
        name = weight.name.replace(".", "_")
        if weight.role == "weight":
            model.register_parameter(name, parameter)
        else:
            rows, columns = weight.shape
            holder = (
                nn.Embedding(rows, columns, device="meta")
                if weight.role == "embedding"
                else nn.Linear(columns, rows, bias=False, device="meta")
            )
            holder.weight = parameter
            model.add_module(name, holder)
        parameters.append(parameter)
    return model, parameters


#: Steps before the state that is measured: the second one is the first with a history.
WARM_STEPS = 2
#: Seeds of those steps, which no gate and no block uses.
WARM_SEED = 500_000


def _prepared(
    impl: Any, problem: Problem, dtype: torch.dtype, hyper: Mapping[str, Any]
) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    """A new optimizer after ``WARM_STEPS`` steps, its parameters put back to the starting weights.

    Raises:
        Unsupported: an optimizer that listens to the model's layers, as second-order methods do.
    """
    model, parameters = network(problem, dtype)
    start = [parameter.detach().clone() for parameter in parameters]
    optimizer: torch.optim.Optimizer = impl(model, **hyper)
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        raise Unsupported(
            "its step needs the activations of a forward pass, and here are gradients alone; suite preconditioning "
            "times its layers, a workload its whole updates."
        )
    for step in range(WARM_STEPS):
        for parameter, gradient in zip(parameters, gradients(problem, WARM_SEED + step, dtype), strict=True):
            parameter.grad = gradient
        optimizer.step()
    with torch.no_grad():
        for parameter, value in zip(parameters, start, strict=True):
            parameter.copy_(value)
    return optimizer, parameters


RUNTIME = OptimizerStepRuntime()
