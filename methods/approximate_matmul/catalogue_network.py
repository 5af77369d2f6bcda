"""Descriptors of whole networks, exact and with look-ups. Importing this imports no torch."""

from __future__ import annotations

from typing import Any

from harness.catalogue.method import Method, Origin

_HOME = "methods.approximate_matmul.network"
_LOOKUPS = (
    "Blalock and Guttag, Multiplying Matrices Without Multiplying, arXiv 2106.10860; inside convolutions and trained: "
    "Schoenleber et al., Stella Nera, arXiv 2311.10207; the layers are ours"
)


def _method(
    name: str, impl: str, summary: str, source: str, origin: Origin, tags: tuple[str, ...] = (), **hyper: Any
) -> Method:
    return Method(
        name=f"whole_network.{name}",
        impl=f"{_HOME}:{impl}",
        summary=summary,
        source=source,
        formula="logits = net(images)" if not hyper else "W x of the inner layers -> sum_c T[c, code_c(x)]",
        needs=("torch",),
        hyper=hyper,
        dtypes=("float32",),
        origin=origin,
        tags=tags,
    )


DENSE = _method("dense", "make_dense", "the trained network as it is", "PyTorch, torch.nn", "library")
BF16 = _method(
    "bf16",
    "make_bf16",
    "weights, inputs and arithmetic in bfloat16",
    "PyTorch, torch.bfloat16",
    "library",
    tags=("slow-cpu",),
)
MADDNESS = _method(
    "maddness",
    "make_maddness",
    "inner layers as look-ups, batch norms taken again, no fine-tuning",
    _LOOKUPS,
    "published design",
    patch=9,
    calibration=1000,
    backend="auto",
)
TUNED = _method(
    "maddness-tuned",
    "make_tuned",
    "inner layers as look-ups, fine-tuned through a differentiable surrogate outside every clock",
    _LOOKUPS,
    "published design",
    patch=9,
    calibration=1000,
    backend="auto",
    updates=140,
    lr=1e-3,
)
