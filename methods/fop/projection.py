"""beta*, eta* and the two coefficients of a layer's update from five inner products, on the device.

With g = (g1 + g2) / 2, d = g1 - g2, F the layer's Fisher and P = F^-1 g, R = F^-1 d, both solved together:

    s = <d, F g> / (<g, F g> + eps)                    g_perp = d - s g
    A = <g, P>,  D = <g, R> - s A,  E = <d, R> - 2 s <g, R> + s^2 A
    beta* = D / E,  eta* = r (A + beta D) / (A + 2 beta D + beta^2 E)
    update = eta (P + beta (R - s P)) = eta (1 - beta s) P + eta beta R

r = 2 if the reference gradient is the sum of the halves', 1 if it is their mean. Lu and Armour, arXiv 2508.13898,
equations 4 to 6, 13 and 15 to 18.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.errors import UserError
from methods.kfac.options import in_range

REFERENCES = {"sum": 2.0, "mean": 1.0}
BETAS = ("optimal", "zero", "random")
ETAS = ("optimal", "one")
SPLITS = ("passes", "batch")
#: E is a difference of inner products: at or below this many roundings of its terms it counts as 0, and so does beta.
ROUNDINGS = 64.0
#: Keeps quotients finite where a gradient is zero; far below any inner product in use.
FLOOR = 1e-300


@dataclass(frozen=True, kw_only=True)
class Projection:
    """What FOP adds to K-FAC. The paper gives no value for any of these.

    Attributes:
        split: ``passes``: two forward and backward passes over the halves of a batch, as published (batch norm then
            sees halves); ``batch``: one pass, the first half's gradient is computed from what K-FAC catches anyway.
        eta_ref: g_tot in the numerator of eta*: ``sum`` is g1 + g2 as in equation 17, so eta* is in [1, 2]; ``mean``
            is their mean, so eta* is in [1/2, 1] as the text describes it. A hidden factor 2 in the learning rate.
        beta: ``optimal``; ``zero``: the projected difference is left out; ``random``: |beta*| with a random sign.
        eta: ``optimal`` or ``one``.
        eps: added to <g, F g> in s. In the unit of that product, so 0 unless it is known; a zero gradient is caught.
        damped: the F of s is the damped matrix. The paper's F is the Fisher, so no.
        beta_max: bound on |beta|, None: none. |beta*| <= sqrt(A / E) holds anyway.
        eta_min: lower bound on eta, None: none.
        eta_max: upper bound on eta, None: none; eta* is at most 2 (``sum``) or 1 (``mean``) anyway.
        seed: of the random signs, which depend on it, the step and the layer's number alone.
    """

    split: str = "batch"
    eta_ref: str = "sum"
    beta: str = "optimal"
    eta: str = "optimal"
    eps: float = 0.0
    damped: bool = False
    beta_max: float | None = None
    eta_min: float | None = None
    eta_max: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        known = {"split": SPLITS, "eta_ref": tuple(REFERENCES), "beta": BETAS, "eta": ETAS}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise UserError(f"{name} is one of {', '.join(values)}; got {getattr(self, name)!r}.")
        in_range("eps", self.eps, 0.0)
        in_range("seed", self.seed, 0, whole=True)
        for name in ("beta_max", "eta_min", "eta_max"):
            if getattr(self, name) is not None:
                in_range(name, getattr(self, name), 0.0)
        if self.eta_min is not None and self.eta_max is not None and self.eta_min > self.eta_max:
            raise UserError(f"eta_min is at most eta_max; got {self.eta_min!r} and {self.eta_max!r}.")


def split_options(given: dict[str, Any]) -> tuple[Projection, dict[str, Any]]:
    """FOP's own options, and what is left for K-FAC.

    Raises:
        UserError: a value out of range.
    """
    names = {one.name for one in fields(Projection)}
    return Projection(**{k: v for k, v in given.items() if k in names}), {
        k: v for k, v in given.items() if k not in names
    }


class Products(NamedTuple):
    """Inner products by layer, (L,) each: <g, P>, <g, R>, <d, R>, <g, F g>, <d, F g>."""

    gp: Tensor
    gr: Tensor
    dr: Tensor
    fg: Tensor
    fd: Tensor


class Chosen(NamedTuple):
    """By layer, (L,) each: coefficients of P and R, and beta, eta, s and c = D^2 / (A E) for the record."""

    of_p: Tensor
    of_r: Tensor
    beta: Tensor
    eta: Tensor
    s: Tensor
    c: Tensor


def choose(found: Products, rule: Projection, rounding: float, signs: Tensor | None = None) -> Chosen:
    """The coefficients of every layer; see the module.

    Args:
        found: inner products, float64.
        rule: the options.
        rounding: machine epsilon of the gradients, in which the inner products were taken.
        signs: (L,) of +1 and -1, for ``beta="random"``.
    """
    s = found.fd / (found.fg + rule.eps).clamp_min(FLOOR)
    a, d = found.gp, found.gr - s * found.gp
    e = found.dr - 2 * s * found.gr + s**2 * a
    real = (e > ROUNDINGS * rounding * (found.dr.abs() + s**2 * a.abs())) & (a > 0)
    safe = e.clamp_min(FLOOR)
    # Cauchy and Schwarz: what goes beyond is rounding.
    bound = (a.clamp_min(0.0) / safe).sqrt()
    best = torch.where(real, (d / safe).clamp(-bound, bound), 0.0)
    beta = _beta(best, rule, signs)
    reference = REFERENCES[rule.eta_ref]
    along = a + 2 * beta * d + beta**2 * e
    eta = torch.where(along > 0, reference * (a + beta * d) / along.clamp_min(FLOOR), reference)
    if rule.eta == "one":
        eta = torch.ones_like(eta)
    if rule.eta_min is not None or rule.eta_max is not None:
        eta = eta.clamp(rule.eta_min, rule.eta_max)
    c = torch.where(real, (d**2 / (a.clamp_min(FLOOR) * safe)).clamp(0.0, 1.0), 0.0)
    return Chosen(eta * (1 - beta * s), eta * beta, beta, eta, s, c)


def _beta(best: Tensor, rule: Projection, signs: Tensor | None) -> Tensor:
    if rule.beta == "zero":
        return torch.zeros_like(best)
    if rule.beta == "random":
        assert signs is not None
        best = best.abs() * signs
    return best if rule.beta_max is None else best.clamp(-rule.beta_max, rule.beta_max)


def sign(seed: int, step: int, layer: int) -> float:
    """+1 or -1 from a counter (the finaliser of splitmix64; Steele, Lea and Flood, OOPSLA 2014)."""
    mask = (1 << 64) - 1
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03 + (layer + 1) * 0x8CB92BA72F3D8DD7) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return 1.0 if (z ^ (z >> 31)) & 1 else -1.0
