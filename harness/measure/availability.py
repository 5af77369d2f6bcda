"""Can a method run here? Answered by looking (device files, find_spec, PATH), never by importing torch."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from harness.catalogue import registry
from harness.catalogue.method import Method
from harness.record import environment, nvidia

_NAMES = {"torch": "PyTorch", "triton": "Triton"}


def _package(module: str) -> str | None:
    if environment.importable(module):
        return None
    return f"needs {_NAMES.get(module, f'the package {module}')}: not installed"


def _cuda() -> str | None:
    return None if nvidia.present() else "needs CUDA: no NVIDIA device is visible"


def _cxx() -> str | None:
    return None if environment.compiler() else "needs a C++ compiler: none on PATH (set CXX)"


def _simd(flag: str) -> Callable[[], str | None]:
    def check() -> str | None:
        wanted = "avx512f" if flag == "avx512" else flag
        return None if wanted in environment.cpu()["simd"] else f"needs {flag}: this CPU has not got it"

    return check


_CHECKS: dict[str, Callable[[], str | None]] = {
    "torch": lambda: _package("torch"),
    "triton": lambda: _package("triton"),
    "cuda": _cuda,
    "cxx": _cxx,
    "avx2": _simd("avx2"),
    "avx512": _simd("avx512"),
}


@functools.cache
def missing(need: str) -> str | None:
    """Why ``need`` is not met on this machine; None when it is."""
    if need.startswith("package:"):
        return _package(need.partition(":")[2])
    if need not in _CHECKS:
        return f"needs {need!r}: not a need that Speedclaim knows ({', '.join(_CHECKS)}, package:NAME)"
    return _CHECKS[need]()


def _bound(statements: Iterable[ast.stmt]) -> Iterator[str]:
    """Names that a module's statements bind; ``*`` or ``__getattr__`` where they may bind others too."""
    for one in statements:
        if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield one.name
            continue
        if isinstance(one, (ast.Import, ast.ImportFrom)):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in one.names)
        for node in ast.walk(one):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
        for inner in ("body", "orelse", "finalbody"):
            yield from _bound(getattr(one, inner, ()))
        for handler in getattr(one, "handlers", ()):
            yield from _bound(handler.body)


@functools.cache
def unwritten(target: str) -> str | None:
    """Why ``module:attribute`` names nothing, by reading the module's source; None where it does or nobody can tell."""
    module, _, attribute = target.partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return f"its impl is {target}, but there is no module {module}"
    path = Path(spec.origin or "")
    if path.suffix != ".py":
        return None
    try:
        names = set(_bound(ast.parse(path.read_bytes()).body))
    except (OSError, SyntaxError, ValueError) as error:
        return f"its impl is {target}, but {path.name} cannot be read ({type(error).__name__}: {error})"
    first = attribute.partition(".")[0]
    if first in names or names & {"*", "__getattr__"}:
        return None
    return f"its impl is {target}, but {path.name} has no {first}"


def reason(method: Method, device: str | None = None, dtype: str | None = None) -> str | None:
    """Why ``method`` cannot run here (on ``device``, for ``dtype``); None when it can."""
    for need in method.needs:
        if why := missing(need):
            return why
    if device and device not in method.devices:
        return f"runs on {' and '.join(method.devices)} only"
    if dtype and dtype not in method.dtypes:
        return f"does not take {dtype}"
    # Of our own a test of the house looks at every one.
    entry = registry.entries("methods").get(method.name)
    why = unwritten(method.impl) if entry is not None and entry.owner != registry.OURS else None
    return f"{why}; mend it in package {entry.owner!r} and install it again" if entry is not None and why else None


def devices() -> tuple[str, ...]:
    """Device kinds of this machine, the accelerator first."""
    return ("cuda", "cpu") if nvidia.present() and environment.importable("torch") else ("cpu",)
