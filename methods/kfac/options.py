"""The hyper-parameters of K-FAC and its relatives, checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from harness.errors import UserError
from methods.kfac import clipping, damping, products, sharding, statistics
from methods.kfac import graphs as graphs_
from methods.kfac.inverse import INVERSES
from methods.kfac.policy import Schedule, value_at

FISHERS = ("empirical", "monte-carlo", "type-2")
LOSSES = ("cross-entropy", "mse")
DECAYS = ("coupled", "decoupled", "gradient")
FALLBACKS = ("adamw", "sgd")
#: Dtype of stored inverses: that of the factors, or half of it.
INVERSE_DTYPES = ("wide", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What every method on Kronecker factors takes beside its own options.

    Attributes:
        exclude: patterns of module names that are left to the fallback.
        fallback: optimizer of every other parameter.
        fallback_lr: its learning rate.
        fallback_momentum: of ``sgd``.
        fallback_beta1: of ``adamw``.
        fallback_beta2: of ``adamw``.
        fallback_eps: of ``adamw``.
        fallback_weight_decay: its weight decay, for matrices alone.
        graphs: a step's work on the device as one CUDA graph: ``auto`` where it can be, ``on`` or an error, ``off``
            (:mod:`methods.kfac.graphs`).
    """

    exclude: Sequence[str] = ()
    fallback: str = "adamw"
    fallback_lr: float = 1e-3
    fallback_momentum: float = 0.9
    fallback_beta1: float = 0.9
    fallback_beta2: float = 0.999
    fallback_eps: float = 1e-8
    fallback_weight_decay: float = 0.0
    graphs: str = "auto"

    def check(self, names: Mapping[str, Sequence[str]]) -> None:
        """Refuse a word that is not among ``names``' own, a switch that is none, and numbers nobody can use.

        Raises:
            UserError: with the values that are allowed.
        """
        for name, known in {**names, "fallback": FALLBACKS, "graphs": graphs_.MODES}.items():
            if getattr(self, name) not in known:
                raise UserError(f"{name} is one of {', '.join(known)}; got {getattr(self, name)!r}.")
        flags(self)
        patterns("exclude", self.exclude)
        for name in ("fallback_lr", "fallback_eps", "fallback_weight_decay"):
            in_range(name, getattr(self, name), 0.0)
        for name in ("fallback_momentum", "fallback_beta1", "fallback_beta2"):
            in_range(name, getattr(self, name), 0.0, 1.0, right=False)


@dataclass(frozen=True, kw_only=True)
class Options(Shared):
    """Defaults are those of the Wang et al. code (arXiv 1905.05934) where it has the option.

    Attributes:
        momentum: mu of v <- mu v + direction.
        damping: lam, a number or pieces [[step, value], ...].
        damping_mode: see :mod:`methods.kfac.damping`.
        weight_decay: wd.
        weight_decay_mode: ``coupled`` adds wd w to the clipped direction, so momentum has it; ``decoupled`` shrinks w
            by 1 - lr wd; ``gradient`` adds wd w to the gradient that is preconditioned.
        weight_decay_start: first step with weight decay (20 T_cov in Wang's and Puiu's code).
        factor_decay: rho of the running means.
        factor_init: see :class:`methods.kfac.statistics.Statistics`.
        sharing: ``expand`` or ``reduce``.
        fisher: ``empirical`` (the ordinary backward), ``monte-carlo`` (targets drawn from the model, a further forward
            and backward every ``update_period`` steps), ``type-2`` (all columns of a root of the loss' Hessian: as
            many further passes as the model has outputs).
        mc_samples: drawn targets for each sample.
        loss: the loss, for ``type-2``.
        loss_terms: what the mean of the loss is taken over.
        reduction: ``mean`` or ``sum``.
        update_period: T_cov, steps between statistics.
        refresh_period: T_inv, steps between refreshes of one layer.
        stagger: spread the layers' refreshes over the period.
        spread: take each layer's statistics at its own step of the update period, but for the first step.
        groups: steps of a period that ``stagger`` and ``spread`` use, evenly spaced; 0: as many as there are. Few steps
            with more work each pay what all layers of a step share less often.
        refresh_lag: steps after which a refresh' result is used, but for the first; on a GPU it runs beside them.
        subsample: share of the rows that enters the statistics.
        clip: ``kl``, ``rms`` or ``none``.
        clip_value: kappa of ``kl``, the rms of ``rms``.
        inverse: name of the back-end.
        product_dtype: products of the statistics and with the inverses: ``as-set`` in torch, ``float32`` (IEEE),
            ``tf32``, or ``bfloat16`` (operands rounded to 8 bits, sums in float32; for products with inverses this
            needs ``inverse_dtype="bfloat16"``, else they are as set).
        inverse_dtype: how inverses of float32 factors are kept: ``wide``, or ``bfloat16``, which also rounds the
            gradient in their products.
        packed: keep sums and running means of wide factors as panels of their lower triangle.
        sharding: of several processes, ``none`` keeps every layer's state on each, ``owner`` on one alone
            (:mod:`methods.kfac.sharding`).
    """

    momentum: float = 0.9
    damping: Schedule = 1e-3
    damping_mode: str = "pi"
    weight_decay: float = 0.0
    weight_decay_mode: str = "coupled"
    weight_decay_start: int = 0
    factor_decay: float = 0.95
    factor_init: str = "identity"
    sharing: str = "expand"
    fisher: str = "empirical"
    mc_samples: int = 1
    loss: str = "cross-entropy"
    loss_terms: str = "batch"
    reduction: str = "mean"
    update_period: Schedule = 10
    refresh_period: Schedule = 100
    stagger: bool = False
    spread: bool = False
    groups: int = 0
    refresh_lag: int = 0
    subsample: float = 1.0
    clip: str = "kl"
    clip_value: float = 1e-3
    inverse: str = "cholesky"
    product_dtype: str = "as-set"
    inverse_dtype: str = "wide"
    packed: bool = False
    sharding: str = "none"

    def __post_init__(self) -> None:
        names = {
            "damping_mode": damping.MODES,
            "weight_decay_mode": DECAYS,
            "factor_init": statistics.INITIAL,
            "sharing": statistics.SHARING,
            "fisher": FISHERS,
            "loss": LOSSES,
            "loss_terms": statistics.LOSS_TERMS,
            "reduction": statistics.REDUCTIONS,
            "clip": clipping.MODES,
            "inverse": tuple(INVERSES),
            "product_dtype": products.PRODUCTS,
            "inverse_dtype": INVERSE_DTYPES,
            "sharding": sharding.MODES,
        }
        self.check(names)
        in_range("momentum", self.momentum, 0.0, 1.0, right=False)
        in_range("factor_decay", self.factor_decay, 0.0, 1.0, right=False)
        in_range("subsample", self.subsample, 0.0, 1.0, left=False)
        in_range("weight_decay", self.weight_decay, 0.0)
        in_range("clip_value", self.clip_value, 0.0, left=False)
        in_range("weight_decay_start", self.weight_decay_start, 0, whole=True)
        in_range("groups", self.groups, 0, whole=True)
        in_range("mc_samples", self.mc_samples, 1, whole=True)
        for value in values(self.damping, "damping"):
            in_range("damping", value, 0.0, left=False)
        for name in ("update_period", "refresh_period"):
            for value in values(getattr(self, name), name):
                in_range(name, value, 1, whole=True)
        in_range("refresh_lag", self.refresh_lag, 0, min(values(self.refresh_period)) - 1, whole=True)


def flags(options: Any) -> None:
    """Refuse a switch that is neither true nor false: a text such as ``False`` would count as true."""
    for one in fields(options):
        flag(one.name, getattr(options, one.name), isinstance(one.default, bool))


def flag(name: str, value: Any, is_flag: bool = True) -> None:
    """Refuse what is neither true nor false."""
    if is_flag and not isinstance(value, bool):
        raise UserError(f"{name} is true or false; got {value!r}.")


def patterns(name: str, value: Any) -> None:
    """Refuse what is not a pattern or a list of them."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, Sequence) or not all(isinstance(one, str) for one in listed):
        raise UserError(f"{name} is a list of patterns of module names; got {value!r}.")


def values(schedule: Schedule, name: str = "") -> list[float]:
    """Every value that a schedule takes, as far as it can be told: a function's at step 0.

    Raises:
        UserError: what is not a schedule, with the ``name`` of the hyper-parameter.
    """
    try:
        first = value_at(schedule, 0)
    except UserError as error:
        raise UserError(f"{name}: {error}" if name else str(error)) from error
    if callable(schedule) or isinstance(schedule, int | float):
        return [first]
    return [float(piece[1]) for piece in schedule]


def in_range(
    name: str,
    value: Any,
    low: float,
    high: float = math.inf,
    *,
    left: bool = True,
    right: bool = True,
    whole: bool = False,
) -> None:
    """Refuse a number outside its range.

    Raises:
        UserError: with the range and what came.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    inside = number and (low <= value if left else low < value) and (value <= high if right else value < high)
    if inside and not (whole and value != int(value)):
        return
    kind = "a whole number" if whole else "a number"
    upper = "" if high == math.inf else f" and {'at most' if right else 'below'} {high:g}"
    raise UserError(f"{name} is {kind} {'of at least' if left else 'above'} {low:g}{upper}; got {value!r}.")


def parse(given: dict[str, Any]) -> Options:
    """Options from keywords.

    Raises:
        UserError: an unknown name or a value out of range.
    """
    names_known(Options, given)
    return Options(**given)


def names_known(options: type[Shared], given: Iterable[str]) -> None:
    """Refuse a name that is no field of ``options``; the message lists its own before the shared ones.

    Raises:
        UserError: with the names that exist.
    """
    shared = [one.name for one in fields(Shared)]
    known = [one.name for one in fields(options) if one.name not in shared] + shared
    for name in given:
        if name not in known:
            raise UserError(f"unknown hyper-parameter {name!r}; known: lr, {', '.join(known)}.")
