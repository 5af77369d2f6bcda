"""An engine for :class:`methods.kfac.graphs.Graphs` that does on any device what a CUDA graph does: for tests.

It records every dispatched operation with its tensors and numbers and replays them on the same storages: a number of
the host that should have changed, or a tensor that has been replaced, shows in the result as it would on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from methods.kfac.graphs import Work


class _Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes operations, and what tensors held before they were written to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if "_local_scalar_dense" in str(func):
            raise RuntimeError("the work reads a number from the device, which no capture permits")
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[place] if place < len(args) else kwargs.get(argument.name)
                tensors = [one for one in tree_leaves(given) if isinstance(one, Tensor)]
                self.before += [(one, one.clone()) for one in tensors]
        found = func(*args, **kwargs)
        fresh = not any(one.alias_info is not None for one in func._schema.returns)
        made = [one for one in tree_leaves(found) if isinstance(one, Tensor)] if fresh else []
        self.calls.append((func, args, kwargs, made))
        return found


class Recorder:
    """Operations on a list.

    Attributes:
        captures: how many there were.
        replays: how many there were.
        failing: the next capture fails.
    """

    def __init__(self) -> None:
        self.captures = self.replays = 0
        self.failing = False

    def usable(self, device: torch.device) -> bool:
        """Everywhere."""
        return True

    def run(self, device: torch.device, work: Work) -> None:
        """As it is."""
        work()

    def capture(self, device: torch.device, work: Work) -> Work:
        """Run it on the tape and take back everything it has written."""
        if self.failing:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.captures += 1
        tape = _Tape()
        with tape:
            work()
        for tensor, old in reversed(tape.before):
            tensor.copy_(old)

        def replay() -> None:
            self.replays += 1
            for func, args, kwargs, made in tape.calls:
                found = [one for one in tree_leaves(func(*args, **kwargs)) if isinstance(one, Tensor)]
                for held, new in zip(made, found, strict=bool(made)):
                    held.copy_(new)

        return replay

    def nbytes(self) -> int:
        """None."""
        return 0


class Eager(Recorder):
    """Takes every step of the work itself, also where a graph would be replayed: what replays must equal bit by bit."""

    def capture(self, device: torch.device, work: Work) -> Work:
        """The work as it is."""
        return work
