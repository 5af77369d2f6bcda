"""Our own engine captured into CUDA graphs: for small matrices the launches cost more than the products.

A graph is tied to the memory that it was captured with, so each call copies its input into a static buffer (any
strides), replays, and returns a fresh copy of the static output: two passes over X for a dozen launches saved.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch

from harness.errors import Unsupported
from methods.orthogonalize import _triton_launch as launch
from methods.orthogonalize.triton_fast import turbo_fast

#: Elements of the largest input taken. At 4096² in bfloat16 on one H100 the engine takes 1.7 ms with or without a
#: graph; beyond, launches no longer matter and a graph would only hold memory.
MAX_ELEMENTS = 2**24
#: Graphs kept; each holds about six times its input. The least recently used one goes first.
MAX_GRAPHS = 16
#: Calls before a capture: the first compiles, the second takes the direct launch that the capture records.
_WARM_UP = 2

Key = tuple[tuple[int, ...], torch.dtype, int]


@dataclass
class _Captured:
    """A graph, its static input and output, and the stream that used them last."""

    graph: Any
    source: torch.Tensor
    result: torch.Tensor
    stream: torch.cuda.Stream


_GRAPHS: OrderedDict[Key, _Captured] = OrderedDict()
_LOCK = threading.Lock()


def turbo_graph(G: torch.Tensor) -> torch.Tensor:
    """:func:`methods.orthogonalize.triton_fast.turbo_fast`, captured once for each shape, dtype and device.

    Shapes: G [..., m, n], any strides; the result is contiguous and its memory belongs to the caller.
    Streams: runs on the current stream; a graph last used on another stream is waited for on the device, not the host.
    Threads: a lock covers the cache and the submission of copy, replay and copy, so threads may share a graph. No
    other thread may use the device for a first call's capture in a way that a capture forbids (thread-local mode).
    Source: Turbo-Muon (arXiv 2512.04632) for the iteration; kernels and capture are ours.

    Raises:
        Unsupported: not on a GPU, another dtype, more than ``MAX_ELEMENTS`` entries, or inside another capture.
    """
    launch.check(G)
    if not G.is_cuda:
        raise Unsupported(f"needs CUDA: a graph is captured on an NVIDIA GPU, the input is on {G.device}")
    if G.numel() > MAX_ELEMENTS:
        raise Unsupported(
            f"takes up to {MAX_ELEMENTS} elements, got {G.numel()}: launches do not matter there; "
            "use polar.turbo-fast-triton"
        )
    if torch.cuda.is_current_stream_capturing():
        raise Unsupported("a capture is under way, and a graph cannot replay in it: use polar.turbo-fast-triton")
    if not G.numel():
        return torch.empty(G.shape, dtype=G.dtype, device=G.device)
    with launch.on_device(G), torch.no_grad(), _LOCK:
        held = _held(G)
        stream = torch.cuda.current_stream()
        if stream != held.stream:
            stream.wait_stream(held.stream)
            held.stream = stream
        held.source.copy_(G)
        held.graph.replay()
        return held.result.clone()


def clear() -> None:
    """Drop every graph and the memory that it holds, after the work under way on it."""
    with _LOCK:
        while _GRAPHS:
            _evict()


def cached() -> tuple[Key, ...]:
    """Keys (shape, dtype, device index) of the graphs held, the least recently used first."""
    return tuple(_GRAPHS)


def _held(G: torch.Tensor) -> _Captured:
    key = (tuple(G.shape), G.dtype, G.device.index)
    found = _GRAPHS.get(key)
    if found is not None:
        _GRAPHS.move_to_end(key)
        return found
    while len(_GRAPHS) >= MAX_GRAPHS:
        _evict()
    captured = _GRAPHS[key] = _capture(G)
    return captured


def _evict() -> None:
    _, oldest = _GRAPHS.popitem(last=False)
    oldest.stream.synchronize()  # a replay may be under way, and the buffers go back to other streams


def _capture(G: torch.Tensor) -> _Captured:
    """Warm up on a side stream, as capture demands, then record one call into a graph with a memory pool of its own."""
    with torch.inference_mode(False):  # buffers that are written again outside inference mode
        source = torch.zeros(G.shape, dtype=G.dtype, device=G.device)
        current: Any = torch.cuda.current_stream()
        side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                turbo_fast(source)
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        pool = torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = turbo_fast(source)
    return _Captured(graph, source, result, current)
