"""Suite ``robustness``: preconditioners driven through ill-conditioned statistics in low precision. Imports no torch.

Nothing is timed: a case asks whether a method survives, how far its update grows and how far it is from the same
method in float64. Measured by a command of its own that writes an ordinary record::

    python -m suites.robustness --tier standard --out results
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from harness.catalogue import registry
from harness.catalogue.suite import Problem, Suite, Tier
from harness.catalogue.task import Task
from harness.errors import UnknownName, UserError
from suites import command

ERRORS: Mapping[str, str] = {
    "update_error": "||D - D64||_F / ||D64||_F of the last update, D64: the same method in float64 on the same numbers",
    "worst_update_error": "the largest of these over the stream",
    "growth": "largest ||D_t||_F / ||D_1||_F over the stream",
    "growth_float64": "the same of the float64 twin: what is the recursion's own and not the precision's",
    "target_cosine": "cosine of the twin's last update with (G + lam)^-1 dW (A + lam)^-1 of the true moments: how much "
    "of the curvature the preconditioner has taken in",
    "excess": "largest ||D_t||_F / ||D64_t||_F over the stream",
    "least_eigenvalue": "least eigenvalue of a Kronecker factor / its largest, the worse factor; K-FAC alone",
    "failed_factorisations": "factorisations that did not go through, both factors, over the stream; K-FAC alone",
    "rung_direct": "of these, mended by the back-end's most robust way",
    "rung_damping": "of these, mended by ten or a hundred times the damping",
    "rung_float64": "of these, mended in float64",
    "rung_kept": "of these, given up: the inverse of an earlier step stays",
    "skipped_batches": "batches whose statistics were not finite",
    "steps": "steps that the stream went",
}

TASK = Task(
    name="robustness",
    summary="One linear layer preconditioned through a stream of ill-conditioned statistics",
    contract=(
        "make(model, **hyper) -> torch.optim.Optimizer of the task training; every step sees prescribed input rows, "
        "output gradients and weight gradient, from a weight of zero, so that the weight after it is the update"
    ),
    runtime="suites.robustness_drive:measure",
    oracle="the same method in float64 on the same rounded rows and gradient",
    needs=("torch",),
    errors=ERRORS,
    primary_error="update_error",
)

#: Condition numbers of both factors' spectra, evenly spaced in the logarithm.
CONDITIONS = tuple(range(2, 13))
#: Layer: outputs, inputs. Both cross a block of 30, the inputs also a hierarchy of 15 and 15.
SHAPE = (32, 48)
#: Rows of a batch: more than inputs, so that only the stream called so is rank-deficient.
ROWS = 96
STEPS = 100
#: An update further than this from its float64 twin, or larger by more than this factor, counts as failed.
ERROR_LIMIT, EXCESS_LIMIT = 0.5, 10.0
#: Above this growth the float64 twin itself is called unstable.
RUNAWAY = 1e6

#: A step of SINGD's factors at which they arrive within a stream; at the default, 0.01, they are still on their way.
FAST = 0.1
#: Stream -> log10 of the condition number, of the factor on A (its inverse on G, so that the Fisher and the gradient
#: stay as they are), of the jump of A half-way; share of the directions that carry anything; damping; whether SINGD
#: normalizes the step of its factors; that step.
STREAMS: Mapping[str, Mapping[str, float]] = {
    **{f"cond1e{power}": {"condition": power} for power in CONDITIONS},
    "large1e4": {"condition": 2, "scale": 4},
    "large1e8": {"condition": 2, "scale": 8},
    "small1e4": {"condition": 2, "scale": -4},
    "small1e8": {"condition": 2, "scale": -8},
    "rank_deficient": {"condition": 2, "rank": 0.25},
    "jump_up": {"condition": 2, "jump": 4},
    "jump_down": {"condition": 2, "jump": -4},
    "cond1e8_damped": {"condition": 8, "damping": 1e-2},
    "jump_up_normalized": {"condition": 2, "jump": 4, "normalized": 1},
    "large1e8_normalized": {"condition": 2, "scale": 8, "normalized": 1},
    **{f"cond1e{power}_fast": {"condition": power, "lr_cov": FAST} for power in CONDITIONS[::2]},
}
#: lambda of SINGD's example runs (f-dangel/singd, version 0.0.5); small, because that is where precision matters.
DAMPING = 1e-4
QUICK = ("cond1e2", "cond1e8", "rank_deficient", "jump_up", "jump_up_normalized")

#: Arithmetic of the layer's forward and backward pass, and what the preconditioner's state is kept in.
SETTINGS: tuple[tuple[str, Literal["float32", "half"]], ...] = (
    ("float32", "float32"),
    ("bfloat16", "float32"),
    ("bfloat16", "half"),
    ("float16", "float32"),
    ("float16", "half"),
)
#: Suffix of a problem's kind whose preconditioner is kept in the arithmetic's own half type.
HALF = "+half"

#: Hyper-parameters in common, then by method: statistics and inverse at every step, no momentum, no clipping.
COMMON: Mapping[str, Any] = {"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}
_KFAC: Mapping[str, Any] = {
    "update_period": 1,
    "refresh_period": 1,
    "clip": "none",
    "damping_mode": "same",
    "factor_decay": 0.95,
    "factor_init": "bias-corrected",
}
_SINGD: Mapping[str, Any] = {"update_period": 1}
STRUCTURES = (
    *("dense", "diagonal", "block30", "hierarchical15", "tril-toeplitz", "triu-toeplitz", "tril", "triu"),
    *("rank1-arrow", "rankk-arrow"),
)
METHODS: Mapping[str, Mapping[str, Any]] = {
    "training.kfac-cholesky": _KFAC,
    "training.kfac-eigh": _KFAC,
    "training.ikfac": _SINGD,
    "training.ingd": _SINGD,
    **{f"training.singd-{name}": _SINGD for name in STRUCTURES},
}


def _problems() -> Iterator[Problem]:
    for device in ("cpu", "cuda"):
        for stream, params in STREAMS.items():
            for dtype, held in SETTINGS:
                tiers: tuple[Tier, ...] = ("quick", "standard", "full") if stream in QUICK else ("standard", "full")
                yield Problem(
                    kind=stream + (HALF if held == "half" else ""),
                    shape=SHAPE,
                    dtype=dtype,
                    device=device,  # type: ignore[arg-type]
                    tiers=tiers,
                    params={"stream": stream, "held": held, "damping": DAMPING, **params},
                )


SUITE = Suite(name="robustness", task=TASK, problems=tuple(_problems()), baseline="training.kfac-cholesky")


def main(arguments: list[str] | None = None) -> None:
    """Drive every method through every stream and write one record."""
    parser = argparse.ArgumentParser(prog="python -m suites.robustness", description=main.__doc__)
    parser.add_argument("--tier", choices=("quick", "standard", "full"), default="standard")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--method", action="append", default=[], help="only this method (repeat)")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of a stream")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the record")
    given = parser.parse_args(arguments)
    if given.steps < 1:
        raise UserError(f"--steps {given.steps}: expected at least 1.")
    for name in given.method:
        if name not in METHODS:
            raise UnknownName("method", name, METHODS)
    known = registry.methods("training")
    chosen = {name: hyper for name, hyper in METHODS.items() if name in (given.method or METHODS)}
    present = {name: hyper for name, hyper in chosen.items() if name in known}
    for name in chosen.keys() - present.keys():
        print(f"{name}: not registered, left out", flush=True)
    problems = SUITE.tier(given.tier, (given.device,))
    run = registry.resolve("suites.robustness_run:run")
    run(SUITE, problems, [known[name] for name in present], present, given.steps, given.out, given.tier)


if __name__ == "__main__":
    sys.exit(command.ended(main))
