"""Launching one compiled kernel again and again without the work that Triton's launcher repeats for every call.

The ordinary launch binds, specialises and hashes some twenty arguments, tens of microseconds a launch. A
:class:`Launch` fixes all but pointers and floats, so the kernel that its first, ordinary call returned serves the
others through ``compiled[grid](...)``, the form that Triton's tutorials use for kernels compiled ahead.
Whatever looks unknown goes the ordinary way, and :func:`state` says so.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from typing import Any

import torch

#: Launches kept; each is a few kilobytes. Past that many shapes all are forgotten, and built again when needed.
CAPACITY = 4096
_LAUNCHES: dict[Hashable, Launch] = {}
_STATE: dict[str, Any] = {"direct": True, "reason": ""}


def state() -> dict[str, Any]:
    """``{"direct": bool, "reason": str}``: whether compiled kernels are launched directly, and if not, why."""
    return dict(_STATE)


def disable(reason: str) -> None:
    """Launch the ordinary way from now on."""
    _STATE.update(direct=False, reason=reason)


def enable() -> None:
    """Launch compiled kernels directly again."""
    _STATE.update(direct=True, reason="")


def form(tensor: torch.Tensor | None) -> Hashable:
    """All of a tensor that decides which compiled kernel serves it: shape, strides, dtype, device, alignment."""
    if tensor is None:
        return None
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device.index, tensor.data_ptr() % 16 == 0


def forget() -> None:
    """Drop every kept launch, as after a change of the table of configurations."""
    _LAUNCHES.clear()


class Launch:
    """A kernel with everything fixed but its pointers and floats.

    The kernel's parameters come in the order pointers (or descriptors), integers, floats, constants.
    """

    __slots__ = ("_constants", "_grid", "_integers", "_kernel", "_meta", "_runner", "extra")

    def __init__(self, kernel: Any, programs: int, integers: tuple[int, ...], meta: dict[str, Any], extra: Any = None):
        self._kernel = kernel
        self._grid = (programs, 1, 1)
        self._integers = integers
        self._meta = meta
        self._constants = tuple(meta[name] for name in inspect.signature(kernel.fn).parameters if name in meta)
        self._runner: Callable[..., None] | None = None
        self.extra = extra

    def __call__(self, pointers: tuple[Any, ...], floats: tuple[float, ...] = ()) -> None:
        """Start the kernel on the current stream of the current device, which must be the tensors' device."""
        runner = self._runner
        if runner is not None and _STATE["direct"]:
            try:
                runner(*pointers, *self._integers, *floats, *self._constants)
            except (
                AttributeError,
                TypeError,
                ValueError,
            ) as error:  # another signature than the one known; nothing has been launched
                disable(f"compiled kernel refused its arguments: {error}")
            else:
                return
        compiled = self._kernel[self._grid](*pointers, *self._integers, *floats, **self._meta)
        if runner is None and _STATE["direct"]:
            self._runner = self._direct(compiled)

    def _direct(self, compiled: Any) -> Callable[..., None] | None:
        if compiled is None:  # the interpreter compiles nothing
            return None
        if type(compiled).__name__ != "CompiledKernel" or not hasattr(compiled, "__getitem__"):
            disable(f"a launch returned {type(compiled).__name__}, not a compiled kernel")
            return None
        if getattr(self._kernel, "pre_run_hooks", None):
            return None
        runner: Callable[..., None] = compiled[self._grid]
        return runner


def get(key: Hashable, build: Callable[[], Launch]) -> Launch:
    """The launch kept under this key; built when there is none. The key must name the kernel and every form."""
    found = _LAUNCHES.get(key)
    if found is None:
        if len(_LAUNCHES) >= CAPACITY:
            _LAUNCHES.clear()
        found = _LAUNCHES[key] = build()
    return found
