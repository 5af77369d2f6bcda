"""Whose threads share the rows of a native call: torch's own where it is loaded and has enough, else the library's."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

Library = Callable[[], ctypes.CDLL]


def default_threads() -> int:
    """The number torch uses when torch is loaded, else ``$OMP_NUM_THREADS``, else 1."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(text) if text.isdigit() and int(text) > 0 else 1


def workers(library: Library, threads: int | None = None) -> int:
    """Threads of a call; with more than one the kernels get torch's own, if torch is loaded and has as many."""
    count = threads or default_threads()
    if count > 1:
        _lend(library)
    return count


def pool(library: Library, threads: int | None = None) -> str:
    """Whose threads share rows: file name of the OpenMP run-time that torch loaded, or "own".

    After each of its operations torch's threads look for work for milliseconds. A second pool beside them waits for
    their cores, so that two threads took as long as one between operations of torch. A process made by fork has none
    of torch's threads, and more threads than torch uses are not its to give: there the pool is our own.
    """
    count = workers(library, threads)
    return _lent[2] if count > 1 and count <= _lent[1] else "own"


#: Address, team and name of what the library was last told to use.
_lent: tuple[int, int, str] = (0, 0, "own")
_forked = False


def _after_fork() -> None:
    global _forked, _lent
    _forked, _lent = True, (0, 0, "own")


def _forked_worker() -> bool:
    """Whether this module is first imported in a worker that multiprocessing made by fork."""
    kind, method = type(multiprocessing.current_process()).__name__, multiprocessing.get_start_method(True)
    forks = kind == "ForkProcess" or (kind == "Process" and method in (None, "fork"))
    return multiprocessing.parent_process() is not None and forks


_forked = _forked_worker()
os.register_at_fork(after_in_child=_after_fork)


def _lend(library: Library) -> None:
    """Tell the library of torch's threads, and again when torch uses another number of them."""
    global _lent
    torch = sys.modules.get("torch")
    address, name = (0, "own") if torch is None or _forked else _openmp()
    count = int(torch.get_num_threads()) if torch is not None and address else 0
    if (address, count, name) != _lent:
        use_openmp(library(), address, count)
        _lent = (address, count, name)


@functools.lru_cache(maxsize=1)
def _openmp() -> tuple[int, str]:
    """Address of GOMP_parallel in the run-time that torch loaded, and its name; (0, "own") where there is none."""
    beside = sorted((Path(str(sys.modules["torch"].__file__)).parent / "lib").glob("libgomp*.so*"))
    # Only a run-time that is loaded: another copy would bring threads of its own.
    loaded = [(path.name, str(path), os.RTLD_NOW | os.RTLD_NOLOAD) for path in beside]
    for name, path, mode in [*loaded, ("OpenMP", None, os.RTLD_NOW)]:
        with contextlib.suppress(OSError, AttributeError):
            return ctypes.cast(ctypes.CDLL(path, mode=mode).GOMP_parallel, ctypes.c_void_p).value or 0, name
    return 0, "own"


def use_openmp(library: ctypes.CDLL, address: int, count: int) -> None:
    """Tell the library of ``count`` threads behind the GOMP_parallel at ``address``; 0: it has only its own."""
    function = library.amm_use_openmp
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_int], None
    function(address or None, count)
