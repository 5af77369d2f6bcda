"""Eigenvalues of averaged Kronecker factors along training: is the number of kept modes constant in width?

``python -m suites.spectrum --workload digits-cnn --widths 128 256 512 --out results`` trains the workload's network
with a wide head (features - w - w - classes), watches the layer in the middle and writes one record. Low-rank K-FAC
costs O(d^2 r) only if r, the number of eigenvalues that matter, does not grow with d (Puiu, arXiv 2206.15397,
section 3: the modes within 1/33 of the largest eigenvalue).

    A_k = rho A_{k-1} + (1 - rho) / N sum a a^T,   G_k likewise with N sum g g^T of the mean loss' gradients,

both divided by 1 - rho^k, where the published code starts from the identity, whose rho^k I would hide the spectrum of
short runs. Every decay is averaged in the same run. This module describes the task; :mod:`suites.spectrum_run` trains.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.catalogue.method import Method
from harness.catalogue.suite import Problem
from harness.catalogue.task import Task
from harness.errors import UserError
from suites import command

#: Modes count while they are at least this share of the largest (Puiu's target for the adaptive rank, 0.033, code).
SHARE = 1 / 33
#: Fixed rank of the experiments whose tail is reported (the same code).
RANK = 220
DECAYS = (0.9, 0.95, 0.99)
WIDTHS: Mapping[str, tuple[int, ...]] = {"cpu": (128, 256, 512, 1024), "cuda": (128, 256, 512, 1024, 2048, 4096)}

METRICS: Mapping[str, str] = {
    "modes_a": "eigenvalues of the input factor of at least 1/33 of the largest, at the end of training",
    "modes_g": "the same of the factor of output gradients",
    "tail_a": "220th eigenvalue of the input factor over the largest (0 where it is narrower)",
    "tail_g": "the same of the factor of output gradients",
    "modes_a_path": "modes_a at evenly spaced updates, the first after a tenth of them",
    "modes_g_path": "modes_g at the same updates",
    "path_updates": "those updates",
}

TASK = Task(
    name="spectrum",
    summary="Effective rank of a wide layer's averaged Kronecker factors along training",
    contract="python -m suites.spectrum: trains, averages and decomposes in float64",
    runtime="suites.spectrum_run:main",
    oracle="float64 eigenvalues of the averaged factors",
    needs=("torch",),
    errors=METRICS,
    primary_error="modes_a",
)
METHOD = Method(
    name="spectrum.factors",
    impl="suites.spectrum_run:main",
    summary="Averaged factors of the hidden layer of a wide head",
    source="Puiu, arXiv 2206.15397, section 3",
    needs=("torch",),
    origin="own design",
)


def problem(workload: str, width: int, decay: float, device: str) -> Problem:
    """The identity of one cell, e.g. ``digits_cnn_r95-512-float32-cpu``."""
    kind = f"{workload.replace('-', '_')}_r{round(100 * decay)}"
    return Problem(kind=kind, shape=(width,), dtype="float32", device="cuda" if device == "cuda" else "cpu")


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m suites.spectrum", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workload", default="digits-cnn", help="digits-cnn, fashion-cnn or cifar10-vgg16bn")
    parser.add_argument("--widths", type=int, nargs="+", help="widths of the head; default by device")
    parser.add_argument("--decays", type=float, nargs="+", default=list(DECAYS), help="factor decays")
    parser.add_argument("--seeds", type=int, default=6, help="6 or more for a verdict")
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--every", type=int, default=1, help="updates between two captures (T_cov)")
    parser.add_argument("--points", type=int, default=5, help="points of the path")
    parser.add_argument("--method", default="training.adamw", help="what trains")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--synthetic", action="store_true", help="generated data: to try the command")
    parser.add_argument("--quick", action="store_true", help="two widths, two seeds, 40 updates")
    parser.add_argument("--out", type=Path, default=Path("results"))
    found = parser.parse_args(given)
    if found.quick:
        found.widths, found.seeds, found.updates = found.widths or [128, 256], 2, 40
    for name, low in (("seeds", 1), ("updates", 10), ("every", 1), ("points", 1)):
        if getattr(found, name) < low:
            raise UserError(f"--{name}: expected at least {low}, got {getattr(found, name)}.")
    for width in found.widths or ():
        if width < 1:
            raise UserError(f"--widths: expected at least 1, got {width}.")
    if not 0 < found.lr < float("inf"):
        raise UserError(f"--lr: expected a finite number above 0, got {found.lr}.")
    for decay in found.decays:
        if not 0 <= decay < 1:
            raise UserError(f"--decays: expected numbers in [0, 1), got {decay}.")
    return found


def main(given: Sequence[str] | None = None) -> int:
    """Measure and write the record; 2 for a user's mistake."""

    def measure() -> None:
        from suites import spectrum_run

        spectrum_run.main(arguments(given))

    return command.ended(measure)


if __name__ == "__main__":
    sys.exit(main())
