"""The noun *Protocol*: how a suite is measured. Its version invalidates old numbers.

It stands in the catalogue because a Suite contains one and the flow between rooms never goes back.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Precision = Literal["ieee", "tf32", "torch-default", "bf16", "fp16"]

PROTOCOL_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How one suite is measured (``shared`` law: docs in README, "How a number earns its place").

    Attributes:
        blocks: interleaved blocks, each one fresh process; never under ``min_blocks``.
        min_blocks: below six blocks the signed-rank interval cannot reach 95 %.
        gate_seeds: seeds of realistic inputs that every method must pass before it is timed.
        inner_s: inner samples fill this many seconds (at least ``min_inner`` calls after one warm-up).
        gpu_warmup_s: device warm-up, once per block and problem.
        gpu_arm_s: device time per arm and clock, or ``gpu_min_calls`` calls, whichever comes first.
        case_timeout_s: a case that takes longer is recorded as ``timeout``.
        graph_below_s: on a GPU, calls shorter than this are also replayed as a CUDA graph.
        hot_below_s: calls longer than this are not timed a second time with a hot cache.
        precision: the precision mode, equal for all arms.
    """

    version: int = PROTOCOL_VERSION
    blocks: int = 10
    min_blocks: int = 6
    gate_seeds: int = 3
    inner_s: float = 0.1
    min_inner: int = 1
    max_inner: int = 200
    gpu_warmup_s: float = 0.5
    gpu_arm_s: float = 0.05
    gpu_min_calls: int = 10
    case_timeout_s: float = 120.0
    graph_below_s: float = 1e-3
    hot_below_s: float = 1e-2
    precision: Precision = "ieee"

    def describe(self) -> dict[str, Any]:
        """A JSON-ready copy for the record's header."""
        return asdict(self)
