"""Static device work as a CUDA graph: run a few times, captured, replayed; again when what it works on has moved.

A piece of work is a callable without arguments on tensors whose storages stay the same. Its first runs are ordinary
ones on a side stream, as capture demands (NVIDIA, CUDA Programming Guide, "CUDA Graphs"; PyTorch, "CUDA semantics"),
so that none is wasted. The *key* names everything that a capture bakes in: addresses, shapes, options. Numbers that
change from step to step lie in :class:`Scalars`, on the device. Nothing the work makes may be used behind it: all
graphs of one optimizer share a pool of memory.

A capture that fails has changed nothing: the caller goes the eager way, the failure is counted and told.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from harness.errors import Unsupported

MODES = ("auto", "on", "off")
#: Ordinary runs with one key before it is captured: the first lays out workspaces, the second finds them.
WARM = 2
#: Captures of one piece of work after which it stays eager: something moves all the time. Own choice: a capture costs
#: about as much as some hundred steps gain.
MOST = 16

Work = Callable[[], None]


class Engine(Protocol):
    """Runs and records device work; tests put another one in the place of CUDA's."""

    def usable(self, device: torch.device) -> bool:
        """Whether work on this device can be recorded now."""

    def run(self, device: torch.device, work: Work) -> None:
        """Run it once, as a capture would see it."""

    def capture(self, device: torch.device, work: Work) -> Work:
        """Record it without running it; what is returned runs it."""

    def nbytes(self) -> int:
        """Memory that the graphs hold for what their work makes in between."""


class Cuda:
    """CUDA graphs in a pool of their own, warmed up and captured on one side stream."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, Any] = {}
        self._pools: dict[torch.device, Any] = {}

    def usable(self, device: torch.device) -> bool:
        """On an NVIDIA GPU, and nobody else is capturing."""
        return device.type == "cuda" and torch.version.hip is None and not torch.cuda.is_current_stream_capturing()

    def run(self, device: torch.device, work: Work) -> None:
        """On the side stream, in order with the current one."""
        cuda: Any = torch.cuda
        with cuda.device(device):
            current, side = cuda.current_stream(), self._side(device)
            side.wait_stream(current)
            with cuda.stream(side):
                work()
            current.wait_stream(side)

    def capture(self, device: torch.device, work: Work) -> Work:
        """Only calls of this thread that cannot be captured make it fail."""
        cuda: Any = torch.cuda
        with cuda.device(device):
            if device not in self._pools:
                self._pools[device] = cuda.graph_pool_handle()
            graph = cuda.CUDAGraph()
            side = self._side(device)
            with cuda.graph(graph, pool=self._pools[device], stream=side, capture_error_mode="thread_local"):
                work()
        replay: Work = graph.replay
        return replay

    def nbytes(self) -> int:
        """The pools' segments in the allocator; no statistic of allocated memory has them."""
        if not self._pools:
            return 0
        mine = set(self._pools.values())
        cuda: Any = torch.cuda
        return sum(int(one["total_size"]) for one in cuda.memory_snapshot() if one.get("segment_pool_id") in mine)

    def _side(self, device: torch.device) -> Any:
        if device not in self._streams:
            cuda: Any = torch.cuda
            self._streams[device] = cuda.Stream(device)
        return self._streams[device]


@dataclass
class _Piece:
    """One piece of work: its key, how often it has run with it, and its graph."""

    key: Hashable = None
    runs: int = 0
    captures: int = 0
    replay: Work | None = None


class Graphs:
    """The graphs of one optimizer.

    Args:
        mode: ``auto`` captures where it can, ``on`` raises where a capture fails or the device has no graphs, ``off``
            never captures.
        engine: CUDA's if None.

    Attributes:
        counters: ``graph_failures``, for the optimizer's own counters.
    """

    def __init__(self, mode: str = "auto", engine: Engine | None = None) -> None:
        self.mode = mode
        self.engine: Engine = Cuda() if engine is None else engine
        self.counters = {"graph_failures": 0}
        self._captured = self._replayed = 0
        self._why = ""
        self._pieces: dict[Hashable, _Piece] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Graphs:
        """A copy works on other tensors and begins anew."""
        return Graphs(self.mode, None if isinstance(self.engine, Cuda) else self.engine)

    def usable(self, device: torch.device) -> bool:
        """Whether work on this device goes through graphs now.

        Not under anomaly detection or torch's deterministic debug mode, which look at every operation, nor inside
        another capture.

        Raises:
            Unsupported: mode ``on`` and a device without graphs.
        """
        if self.mode == "off" or self.counters["graph_failures"]:
            return False
        if torch.is_anomaly_enabled() or torch.get_deterministic_debug_mode():
            return False
        usable = self.engine.usable(device)
        if self.mode == "on" and not usable:
            raise Unsupported(f"graphs='on', but work on {device} cannot be captured now; use graphs='auto'.")
        return usable

    def run(self, name: Hashable, key: Hashable, device: torch.device, work: Work) -> bool:
        """Run the work once, by its graph where there is one; False: nothing has been done.

        Args:
            name: of this piece of work.
            key: everything that a capture bakes in; another key means another capture.
            device: of all its tensors.
            work: reads and writes only tensors that the key names.

        Raises:
            Unsupported: mode ``on`` and a capture that failed.
        """
        piece = self._pieces.setdefault(name, _Piece())
        if piece.key != key:
            piece.key, piece.runs, piece.replay = key, 0, None
        if piece.replay is None and piece.runs < WARM:
            piece.runs += 1
            self.engine.run(device, work)
            return True
        if piece.replay is None and not self._capture(piece, device, work):
            return False
        assert piece.replay is not None
        piece.replay()
        self._replayed += 1
        return True

    def _capture(self, piece: _Piece, device: torch.device, work: Work) -> bool:
        try:
            if piece.captures >= MOST:
                raise Unsupported(f"captured {MOST} times already: what the work reads keeps moving.")
            piece.captures += 1
            piece.replay = self.engine.capture(device, work)
        except (RuntimeError, Unsupported) as error:
            self.counters["graph_failures"] += 1
            self._why = " ".join(str(error).split())[:300]
            self.forget()
            if self.mode == "on":
                raise Unsupported(f"graphs='on', but a capture failed: {self._why}") from error
            return False
        self._captured += 1
        return True

    def forget(self) -> None:
        """Drop all graphs: what they work on has been replaced."""
        for piece in self._pieces.values():
            piece.key, piece.runs, piece.replay = None, 0, None

    def nbytes(self) -> int:
        """Memory of the graphs' own pool, 0 before the first capture."""
        return self.engine.nbytes()

    def describe(self) -> dict[str, Any]:
        """For the record: mode, what has been captured and replayed, and why it stopped if it did."""
        found = {"mode": self.mode, "captured": self._captured, "replayed": self._replayed}
        return {**found, "failed": self.counters["graph_failures"], **({"why": self._why} if self._why else {})}


class Scalars:
    """Numbers that change from step to step, in one tensor that keeps its place.

    Args:
        names: of the numbers.
        dtype: of the tensor.
        device: of the tensor.
    """

    def __init__(self, names: Sequence[str], dtype: torch.dtype, device: torch.device) -> None:
        self.names = list(names)
        self._values: list[float] = [0.0] * len(self.names)
        self._held = torch.zeros(len(self.names), dtype=dtype, device=device)
        self._parts = dict(zip(self.names, self._held.unbind(), strict=True))

    def __getitem__(self, name: str) -> Tensor:
        """The number, 0-d."""
        return self._parts[name]

    def set(self, values: Mapping[str, float]) -> None:
        """Copy them to the device if one has changed; the host does not wait."""
        wanted = [float(values[name]) for name in self.names]
        if wanted == self._values:
            return
        self._values = wanted
        # A new tensor each time: the copy before may not have been made yet.
        host = torch.tensor(wanted, dtype=self._held.dtype, pin_memory=self._held.is_cuda)
        self._held.copy_(host, non_blocking=True)

    def tensors(self) -> list[Tensor]:
        """What a key must name."""
        return [self._held]


def places(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Addresses, for a key."""
    return tuple(tensor.data_ptr() for tensor in tensors)
