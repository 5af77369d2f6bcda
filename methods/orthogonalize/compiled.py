"""The plain iteration through torch.compile: one compilation per input layout, at its first call.

Each (algorithm, shape, strides, dtype, device) gets a function of its own, so that torch's recompilation limit, after
which it would quietly run eagerly, is never met. Compilations live as long as the process.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import types
from collections.abc import Callable

import torch

from harness.errors import Unsupported
from methods.orthogonalize.coefficients import TABLES, TURBO4, YOU5, Table
from methods.orthogonalize.newton_schulz import as_batch, checked, finished, iterate, plain_step
from methods.orthogonalize.normalise import Normaliser


def compiled_newton_schulz(G: torch.Tensor, table: Table, normaliser: Normaliser) -> torch.Tensor:
    """:func:`methods.orthogonalize.newton_schulz.newton_schulz` with the plain step, compiled.

    Raises:
        Unsupported: as the eager form, and where the compiler's back end is missing.
    """
    checked(G)
    if G.numel() == 0:
        return G.detach().clone(memory_format=torch.contiguous_format)
    batch = as_batch(G)
    with torch.no_grad():
        run = _compiled(table.name, normaliser, batch.shape, batch.stride(), batch.dtype, batch.device)
        return finished(run(batch), G)


@functools.cache
def _compiled(
    table: str,
    normaliser: Normaliser,
    shape: torch.Size,
    strides: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Callable[[torch.Tensor], torch.Tensor]:
    _require_back_end(device)
    rows = TABLES[table]

    def body(G: torch.Tensor) -> torch.Tensor:
        return iterate(G, rows, normaliser, plain_step)

    # torch keeps its compilations per code object: a copy of the code object gives this layout its own.
    own = types.FunctionType(body.__code__.replace(), body.__globals__, body.__name__, None, body.__closure__)
    return torch.compile(own, dynamic=False, fullgraph=True)


def _require_back_end(device: torch.device) -> None:
    if device.type == "cpu":
        names = (os.environ.get("CXX"), "g++", "clang++")
        if not any(name and shutil.which(name) for name in names):
            raise Unsupported("torch.compile needs a C++ compiler on the CPU; none of $CXX, g++, clang++ was found.")
    elif importlib.util.find_spec("triton") is None:
        raise Unsupported(f"torch.compile needs the package triton on {device.type}; install it or use polar.ns-torch.")


def ns_compiled(G: torch.Tensor) -> torch.Tensor:
    """``polar.ns-torch`` compiled: five steps of YOU5 after Frobenius normalisation."""
    return compiled_newton_schulz(G, YOU5, "frobenius")


def turbo_compiled(G: torch.Tensor) -> torch.Tensor:
    """``polar.turbo-torch`` compiled: rows 2-5 of YOU5 after AOL."""
    return compiled_newton_schulz(G, TURBO4, "aol")
