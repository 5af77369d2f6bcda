"""Run-time side of the task ``polar``: inputs, oracle and gate on torch tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from harness.catalogue.suite import Problem
from harness.catalogue.task import Judgement
from harness.conformance import EdgeCase
from harness.errors import UserError
from suites import polar_inputs, polar_oracle
from suites.polar_edges import edge_cases

#: Gate of a method without a plain reference: directions with sigma >= 0.02 ||G||_F are orthogonal to 30 %. The
#: loosest published table (Jordan's, three constant coefficients) is built to leave them between 0.7 and 1.2.
PROJECTED_LIMIT = 0.30
#: Published tables overshoot to 1.2; a value of 2 marks an iteration on its way to divergence.
SIGMA_LIMIT = 2.0
#: Gate of a method with a plain reference, by dtype: twelve to fifteen products in a row round differently in another
#: engine by about ten units in the last place of bfloat16 (2^-8) and float16 (2^-11); float32 and float64 leave two
#: to three decades for the amplification of small singular values.
FIDELITY_LIMIT: Mapping[str, float] = {"bfloat16": 0.06, "float16": 0.02, "float32": 1e-3, "float64": 1e-8}
#: The same distance without the projection, on gaussian inputs alone: their singular values reach down to 1/n of the
#: largest, so the projection above sees a quarter of them at n = 4096 and would take one table for another. Honest
#: engines measure 0.01 to 0.05 in bfloat16, four steps in the place of five 0.15 and more.
FULL_FIDELITY_LIMIT: Mapping[str, float] = {"bfloat16": 0.08, "float16": 0.03, "float32": 1e-3, "float64": 1e-8}
#: A method without a reference must beat the best scalar multiple of its input by a tenth: at n = 4096 a gaussian
#: divided by a constant lies within the projected gate. Inputs that are orthogonal already are exempt.
IMPROVEMENT = 0.9
ALREADY_ORTHOGONAL = 0.3
#: No orthogonal factor has entries above 1; from here on squares could leave float64's range.
ENTRY_LIMIT = 1e30
#: Elements looked at in one piece, so that the check of the largest batch needs little memory.
PIECE = 2**26
#: Products of the plain iteration whose work is planned: five steps.
STEPS = 5

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class PolarRuntime:
    """Fulfils :class:`harness.catalogue.task.TaskRuntime`; contents, buffers and outputs are dense tensors."""

    def content(self, problem: Problem, seed: int) -> torch.Tensor:
        """New input on the problem's device, a function of (problem, seed) alone."""
        return polar_inputs.generate(problem, seed)

    def vary(self, content: torch.Tensor, step: int) -> torch.Tensor:
        """``content`` with the signs of rows and columns flipped, drawn from ``step``: the same singular values."""
        return polar_inputs.flip(content, step)

    def buffer_like(self, content: torch.Tensor) -> torch.Tensor:
        """A fresh, unfilled tensor like ``content``."""
        return torch.empty_like(content)

    def fill(self, buffer: torch.Tensor, content: torch.Tensor) -> None:
        """Copy ``content`` into ``buffer``."""
        buffer.copy_(content)

    def same(self, left: Any, right: Any) -> bool:
        """Bitwise equality of shape, dtype and content; any NaN equals any NaN, and 0.0 differs from -0.0."""
        if left.shape != right.shape or left.dtype != right.dtype or left.device != right.device:
            return False
        for one, other in zip(_pieces(left), _pieces(right), strict=True):
            bits = _BITS[one.element_size()]
            if torch.equal(one.view(bits), other.view(bits)):
                continue
            differ = one.view(bits) != other.view(bits)
            if not bool((torch.isnan(one) & torch.isnan(other))[differ].all()):
                return False
        return True

    def snapshot(self, value: torch.Tensor) -> torch.Tensor:
        """A detached copy."""
        return value.detach().clone()

    def bind(self, impl: Any, problem: Problem, hyper: Mapping[str, Any]) -> Callable[[Any], Any]:
        """``impl`` itself: a polar method is a plain function of one tensor.

        Raises:
            UserError: hyper-parameters were given, or ``impl`` cannot be called.
        """
        if hyper:
            raise UserError(
                f"a polar method takes no hyper-parameters, got {', '.join(sorted(hyper))}; register a second method "
                f"for another setting."
            )
        if not callable(impl):
            raise UserError(f"a polar method is a function f(G) -> X; got {type(impl).__name__}.")
        return impl  # type: ignore[no-any-return]

    def malformed(self, output: Any, buffer: torch.Tensor, problem: Problem) -> str | None:
        """Why ``output`` is not a dense tensor of its own with the input's shape, dtype and device."""
        if type(output) is not torch.Tensor:
            return f"expected a torch.Tensor, got {type(output).__module__}.{type(output).__qualname__}"
        for what in ("shape", "dtype", "device", "layout"):
            wanted, got = getattr(buffer, what), getattr(output, what)
            if wanted != got:
                return f"expected {what} {_plain(wanted)}, got {_plain(got)}"
        if output.is_neg() or output.is_conj():
            return "expected computed values, got a lazily negated or conjugated view"
        if output.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr():
            return "the output shares the input's memory; return a new tensor"
        return None

    def nonfinite(self, output: torch.Tensor) -> str | None:
        """How many elements are NaN or infinite; None when none is."""
        nan = infinite = 0
        for piece in _pieces(output):
            if bool(torch.isfinite(piece).all()):
                continue
            nan += int(torch.isnan(piece).sum())
            infinite += int(torch.isinf(piece).sum())
        if nan + infinite == 0:
            return None
        return f"{nan} elements are NaN and {infinite} infinite, of {output.numel()}"

    def oracle(self, content: torch.Tensor, problem: Problem) -> polar_oracle.PolarOracle:
        """Float64 polar factors of the (sampled) matrices of ``content``."""
        return polar_oracle.solve(content)

    def judge(
        self,
        output: torch.Tensor,
        content: torch.Tensor,
        oracle: polar_oracle.PolarOracle,
        problem: Problem,
        reference: Callable[[torch.Tensor], torch.Tensor] | None,
    ) -> Judgement:
        """Gate one output: by fidelity when there is a reference, by accuracy when there is none.

        The cosine with the true polar factor must be positive either way. Of a batch, each metric is the worst of
        the sampled members.
        """
        outputs, contents = _flat(output), _flat(content)
        found = []
        for part in oracle.parts:
            largest = float(outputs[part.index].abs().max())
            if not largest <= ENTRY_LIMIT:
                reason = f"matrix {part.index} has an entry of magnitude {largest:.3g}; a polar factor has none above 1"
                return Judgement(status="inaccurate", reason=reason, errors={})
            member = contents[part.index]
            # The plain algorithm treats the members of a batch alike, so only the judged ones are computed.
            wanted = None if reference is None else reference(member.clone())
            found.append(polar_oracle.errors_of(outputs[part.index], member, part, wanted))
        errors = {metric: WORST.get(metric, max)(one[metric] for one in found) for metric in found[0]}
        return _judgement(errors, problem)

    def glance(
        self, output: torch.Tensor, content: torch.Tensor, oracle: polar_oracle.PolarOracle, problem: Problem
    ) -> Mapping[str, float]:
        """Polar error, orthogonality error and cosine, the worst of the judged members; no decomposition."""
        outputs = _flat(output)
        found = [polar_oracle.glance_at(outputs[part.index], part) for part in oracle.parts]
        return {metric: WORST.get(metric, max)(one[metric] for one in found) for metric in found[0]}

    def edge_cases(self, device: str) -> Iterator[EdgeCase]:
        """Inputs that conformance tries and no tier times."""
        return edge_cases(device)

    def work_bytes(self, problem: Problem) -> int:
        """Bytes of one input."""
        return math.prod(problem.shape) * polar_inputs.DTYPES[problem.dtype].itemsize

    def work_flops(self, problem: Problem) -> float:
        """Five plain quintic steps, 5 (4 n^2 m + 2 n^3) a matrix with n <= m; a multiply-add counts two."""
        small, large = sorted(problem.shape[-2:])
        return float(math.prod(problem.shape[:-2]) * STEPS * (4 * small**2 * large + 2 * small**3))


#: Metrics whose worst member is not the largest; of the middle quantile the smallest is told.
WORST: Mapping[str, Callable[[Iterable[float]], float]] = dict.fromkeys(
    ("sigma_min", "sigma_p02", "sigma_p50", "cosine"), min
)


def _judgement(errors: Mapping[str, float], problem: Problem) -> Judgement:
    if not errors["cosine"] > 0.0:
        reason = f"cosine with the polar factor is {errors['cosine']:.4g}, it must be above 0"
        return Judgement(status="inaccurate", reason=reason, errors=errors)
    faithful = "fidelity_error" in errors
    limits: dict[str, float] = {}
    if faithful:
        limits["fidelity_error"] = FIDELITY_LIMIT[problem.dtype]
        if problem.kind == "gaussian":
            limits["fidelity_full"] = FULL_FIDELITY_LIMIT[problem.dtype]
    else:
        limits["projected_error"] = PROJECTED_LIMIT
        if errors["rescaling_error"] > ALREADY_ORTHOGONAL:
            limits["polar_error"] = IMPROVEMENT * errors["rescaling_error"]
    limits["sigma_max"] = SIGMA_LIMIT
    for metric, limit in limits.items():
        if not errors[metric] <= limit:
            status = "unfaithful" if faithful else "inaccurate"
            return Judgement(
                status=status, reason=f"{metric} is {errors[metric]:.4g}, its limit {limit:.3g}", errors=errors
            )
    return Judgement(status="passed", reason=None, errors=errors)


def _flat(batch: torch.Tensor) -> torch.Tensor:
    return batch.reshape(-1, *batch.shape[-2:])


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Views of whole rows, about ``PIECE`` elements each; the batch dimensions are flattened."""
    batch = tensor.detach().reshape(-1, *tensor.shape[-2:])
    rows = max(1, PIECE // max(1, batch.shape[-1]))
    members = max(1, rows // max(1, batch.shape[-2]))
    for start in range(0, batch.shape[0], members):
        for top in range(0, batch.shape[1], rows):
            yield batch[start : start + members, top : top + rows]


def _plain(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, torch.Size) else str(value)


RUNTIME = PolarRuntime()
