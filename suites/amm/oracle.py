"""The true product, and how far an approximate one is from it. float64 on the content's device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: Distances of zero are told as this: ratios and limits are judged on the log scale.
TINY = 1e-12
#: Rows multiplied at a time, so that float64 copies of a large A need little memory.
PIECE = 65_536


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a product is held to.

    Attributes:
        y: float64 [N, M], A B of the tensors actually passed.
        scale: ||  |A| |B|  ||_F, what rounding errors are measured in.
        trivial: ||A||_F ||B||_F, at least ||A B||_F.
        labels: int64 [N], true classes, or None.
        bias: float64 [M] of a classifier, or None.
        owners: int64 [M], classes of prototypes, or None.
        squares: float64 [N, M], ||x||^2 + ||p||^2 of a kernel classifier, or None.
        gamma: RBF parameter of a kernel classifier.
    """

    y: Tensor
    scale: float
    trivial: float
    labels: Tensor | None = None
    bias: Tensor | None = None
    owners: Tensor | None = None
    squares: Tensor | None = None
    gamma: float = 0.0


def product(a: Tensor, b: Tensor) -> tuple[Tensor, float, float]:
    """A B in float64, || |A| |B| ||_F and ||A||_F ||B||_F."""
    wide = b.double()
    y = torch.empty(a.shape[0], b.shape[1], dtype=torch.float64, device=a.device)
    scale = square = 0.0
    for at in range(0, a.shape[0], PIECE):
        rows = a[at : at + PIECE].double()
        y[at : at + PIECE] = rows @ wide
        scale += float((rows.abs() @ wide.abs()).square().sum())
        square += float(rows.square().sum())
    return y, math.sqrt(scale), math.sqrt(square) * float(wide.norm())


def errors_of(output: Tensor, answer: Answer) -> dict[str, float]:
    """Every error that needs no plain twin."""
    y, got = answer.y, output.double()
    gap = got - y
    loss, power = float(gap.square().sum()), float(y.square().sum())
    spread = float((y - y.mean()).square().sum())
    norm = float(got.norm())
    found = {
        "nmse": _ratio(loss, spread),
        "nmse_norm": _ratio(loss, power),
        "pearson": _pearson(got, y),
        "cosine": float((got * y).sum()) / (norm * math.sqrt(power)) if norm * power > 0 else float(loss == 0.0),
        "max_abs_error": float(gap.abs().max()),
        "rounding_error": _ratio(math.sqrt(loss), answer.scale),
        "beats_mean": float(loss < spread or loss == 0.0),
    }
    return found | _decisions(got, answer)


def _decisions(got: Tensor, answer: Answer) -> dict[str, float]:
    """Argmax agreement where columns are classes; accuracies where labels exist."""
    if answer.owners is not None:
        exact, mine = _kernel_classes(answer.y, answer), _kernel_classes(got, answer)
    elif answer.bias is not None:
        logits, ours = answer.y + answer.bias, got + answer.bias
        exact, mine = logits.argmax(1), ours.argmax(1)
    elif answer.y.shape[1] >= 10:
        return {"argmax_agreement": _mean(answer.y.argmax(1) == got.argmax(1))}
    else:
        return {}
    found = {"argmax_agreement": _mean(exact == mine)}
    if answer.bias is not None and answer.owners is None:
        distance = (torch.softmax(logits, 1) - torch.softmax(ours, 1)).abs().sum(1) / 2
        found["softmax_distance"] = max(float(distance.mean()), TINY)
    if answer.labels is not None:
        whole, part = _mean(exact == answer.labels), _mean(mine == answer.labels)
        found |= {
            "accuracy": part,
            "accuracy_exact": whole,
            "accuracy_retained": _ratio(part, whole),
            "top1_error": 1.0 - part,
        }
    return found


def _kernel_classes(y: Tensor, answer: Answer) -> Tensor:
    """Class of the largest sum of exp(-gamma (||x||^2 + ||p||^2 - 2 x p)) over a class's prototypes."""
    assert answer.squares is not None
    assert answer.owners is not None
    exponent = -answer.gamma * (answer.squares - 2.0 * y)
    powers = torch.exp(exponent - exponent.amax(1, keepdim=True))
    classes = int(answer.owners.max()) + 1
    scores = torch.zeros(len(y), classes, dtype=powers.dtype, device=powers.device)
    return scores.index_add_(1, answer.owners, powers).argmax(1)


def fidelity(output: Tensor, wanted: Tensor, answer: Answer) -> dict[str, float]:
    """Distance to the plain twin's output, and the share of rows that clearly differ from it."""
    gap = (output.double() - wanted.double().to(output.device)).abs()
    size = float(answer.y.square().mean().sqrt()) or 1.0
    return {
        "fidelity_error": _ratio(float(gap.norm()), answer.scale),
        "mismatched_rows": _mean(gap.amax(1) > ROW_SLACK * size),
    }


#: A row differs from the twin's when an entry is off by this part of the root mean square of Y: a hundredth of what one
#: other code changes, ten times what rounding to bfloat16 does.
ROW_SLACK = 0.03


def _pearson(got: Tensor, y: Tensor) -> float:
    one, two = got - got.mean(), y - y.mean()
    size = float(one.norm() * two.norm())
    return float((one * two).sum()) / size if size > 0 else 0.0


def _mean(mask: Tensor) -> float:
    return float(mask.double().mean())


def _ratio(top: float, bottom: float) -> float:
    if bottom > 0:
        return top / bottom
    return 0.0 if top == 0 else math.inf
