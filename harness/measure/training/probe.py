"""Hyper-parameters from the command line, tried on a tiny network before anything runs or is recorded."""

from __future__ import annotations

import warnings
from typing import Any

from harness.catalogue import registry
from harness.errors import SpeedclaimError, UserError
from harness.measure.training.plan import Arm, TrainPlan

#: Names of modules mean nothing on another network.
OF_THE_NETWORK = ("exclude",)


def check(plan: TrainPlan) -> None:
    """Refuse what a method's factory refuses, before seconds are spent on data and networks.

    A factory that fails on the tiny network without the values of the command line as well is left to the run itself.

    Raises:
        UserError: the method, and what it says of the values.
    """
    done = set()
    for part in plan.parts:
        for arm in part.runnable():
            key = (arm.method, repr(arm.hyper))
            if key not in done:
                done.add(key)
                _check(arm)


def _check(arm: Arm) -> None:
    assert arm.hyper is not None
    every = {name: value for name, value in arm.hyper.factory.items() if name not in OF_THE_NETWORK}
    given = {name: value for name, value in every.items() if arm.hyper.sources.get(name) == "command line"}
    if not given:
        return
    known = registry.method(arm.method).hyper
    others = {name: value for name, value in every.items() if name not in given}
    plain = others | {name: known[name] for name in given if name in known}
    if _refusal(arm.method, plain) is not None:
        return
    if (why := _refusal(arm.method, every)) is not None:
        values = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise UserError(f"{arm.method} refuses {values}: {why}")


def _refusal(method: str, hyper: dict[str, Any]) -> str | None:
    """What the factory says on the CPU; None when it builds, or refuses for another reason than its values."""
    from torch import nn

    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tiny network
            registry.resolve(registry.method(method).impl)(network, **hyper)
    except UserError as error:
        return str(error)
    except SpeedclaimError:
        return None
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None
