"""The catalogue lists every hyper-parameter that a method's constructor takes, and none that it refuses."""

import dataclasses
import functools
import inspect

import pytest

from harness.catalogue import registry
from harness.errors import SpeedclaimError

torch = pytest.importorskip("torch")

#: By the beginning of a method's name: what its constructor takes, but nobody may choose there.
UNLISTED = {
    # An object, and a back-end's arguments, which have names of their own in the catalogue.
    "training.": {"grad_scaler", "inverse_options", "sketch"},
    "training.b-": {"sharding"},  # one process keeps Brand's pairs of all layers
    "training.seng": {"factor_init", "stagger", "groups", "refresh_lag", "inverse_dtype", "packed", "sharding"},
    # What the name of an arm fixes, and what has no effect for it.
    "training.fop": {"beta", "eta", "seed", "scaling", "eps", "damped", "beta_max", "eta_ref", "eta_min", "eta_max"},
    "training.kfac-halves": {"eta_ref", "eps", "damped", "beta_max", "eta_min", "eta_max", "seed"},
    "preconditioning.": {"relative"},  # the suite declares the damping
    "approximate_matmul.maddness-triton": {"aggregation"},  # "exact" alone
}  # fmt: skip


def names():
    for name, method in registry.methods().items():
        optional = any(need == "triton" or need.startswith("package:") for need in method.needs)
        if method.impl.startswith("methods.") and (not optional or method.task == "approximate_matmul"):
            yield name


def build(name, **changes):
    """The operator, optimizer or estimator on something tiny."""
    method = registry.method(name)
    given = {**method.hyper, **changes}
    if method.task == "training":
        parts = (torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
        return registry.resolve(method.impl)(torch.nn.Sequential(*parts, torch.nn.Linear(64, 3)), **given)
    return registry.resolve(method.impl)(*((4, 5) if method.task == "preconditioning" else ()), **given)


def defaults(function):
    """Keyword arguments with a default."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def candidates(name, made):
    """Names that the factory, the classes behind it or the records of options that they hold may take."""
    found = defaults(registry.resolve(registry.method(name).impl))
    parts = (made, *vars(made).values()) if hasattr(made, "__dict__") else (made,)
    for kind in {kind: None for part in parts for kind in type(part).__mro__ if kind.__module__.startswith("methods.")}:
        found = {**(defaults(kind.__init__) if "__init__" in vars(kind) else {}), **found}
    for part in filter(dataclasses.is_dataclass, parts):
        found = {**{one.name: getattr(part, one.name) for one in dataclasses.fields(part)}, **found}
    own = getattr(made, "hyper", None)
    return {**(own if isinstance(own, dict) else {}), **found}


def another(value):
    """A value that tells a choice from a name that is taken with its default alone; a word has none that is known."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return value / 2 or 0.5 if isinstance(value, float) else value


def taken(name, key, value):
    try:
        for one in (value, another(value)):
            build(name, **{key: one})
    except (SpeedclaimError, TypeError, ValueError, AttributeError):
        return False
    return True


@functools.cache
def unlisted(name):
    """Choices that the constructor offers and the catalogue does not."""
    known = registry.method(name).hyper
    if registry.method(name).task == "polar":  # a plain function of the matrix
        return set(defaults(registry.resolve(registry.method(name).impl))) - set(known)
    found = candidates(name, build(name))
    return {key for key, value in found.items() if key not in known and taken(name, key, value)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(names()))
def test_the_catalogue_lists_what_the_constructor_takes(name):
    if "triton" in registry.method(name).needs:
        pytest.importorskip("triton")
    allowed = set().union(*(found for begin, found in UNLISTED.items() if name.startswith(begin)))
    assert unlisted(name) <= allowed, f"{name}: its catalogue entry lists no {sorted(unlisted(name) - allowed)}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("begin", [begin for begin in UNLISTED if "triton" not in begin])
def test_no_exception_outlives_its_reason(begin):
    mine = [name for name in names() if name.startswith(begin)]
    assert UNLISTED[begin] <= set().union(*(unlisted(name) for name in mine))
