"""What the linear methods share: checked inputs, the fitted operator, saving and loading.

``make(**hyper)`` gives an :class:`Estimator`; ``fit(a_train, b)`` learns from B and the training rows and gives an
:class:`Op`; ``op(a)`` approximates ``a @ b``. What is learned is a dictionary of plain tensors (``state``); whatever
a library wants on top of it (transposed copies, narrow dtypes) is rebuilt from it by :meth:`Op.prepare`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from harness.errors import UserError
from methods.approximate_matmul import consistent
from methods.approximate_matmul.checks import BYTES, DTYPES, answer_dtype, matrix
from methods.approximate_matmul.files import DAMAGE, damaged, load_as, place, read

State = dict[str, Tensor]


@dataclass
class Fit:
    """What fit notes beside the state.

    Attributes:
        times: seconds on the training rows (``train_s``) and on B (``table_s``).
        choices: what fit decided by measuring, as plain JSON values.
    """

    times: dict[str, float] = field(default_factory=lambda: {"train_s": 0.0, "table_s": 0.0})
    choices: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def clock(self, key: str) -> Iterator[None]:
        """Add the seconds of a ``with`` block to ``times[key]``; no measurement reads it."""
        start = time.perf_counter()
        yield
        self.times[key] += time.perf_counter() - start


class Op(ABC):
    """A fitted product. ``op(a)`` returns a new [N, M] tensor in a's dtype on a's device and leaves a untouched.

    Attributes:
        hyper: the options that it was made with.
        state: what was learned, as plain tensors.
        dtype: dtype of the training rows.
        times: seconds spent on the training rows (``train_s``) and on B (``table_s``).
        choices: what fit decided by measuring.
    """

    method: ClassVar[str]
    #: "module:function" that reads what :meth:`save` wrote, called with path and device
    loader: ClassVar[str | None] = "methods.approximate_matmul.linear.base:load"
    #: why :meth:`encode` refuses, where it does
    codeless: ClassVar[str] = "it multiplies the rows of A as they are"
    #: half inputs are computed in float32 unless a method says otherwise
    native_half: ClassVar[bool] = False

    def __init__(
        self, hyper: Mapping[str, Any], state: State, dtype: torch.dtype, shape: tuple[int, int], fit: Fit
    ) -> None:
        self.hyper = dict(hyper)
        self.state = state
        self.dtype = dtype
        self.inner, self.outer = shape
        self.times, self.choices = fit.times, fit.choices
        self.prepare()

    @classmethod
    @abstractmethod
    def learn(cls, a_train: Tensor, b: Tensor, hyper: Mapping[str, Any], fit: Fit) -> State:
        """What fit computes, from checked inputs in the working dtype."""

    def prepare(self) -> None:  # noqa: B027 (a hook: many operators need no more than their state)
        """Build what :meth:`product` needs from ``state``."""

    @abstractmethod
    def product(self, a: Tensor) -> Tensor:
        """The approximate product of a checked [N, D] tensor in the working dtype."""

    @property
    def work(self) -> torch.dtype:
        """The dtype in which A enters the arithmetic."""
        return working(self.dtype, self.native_half)

    @property
    def device(self) -> torch.device:
        """Where the operator was fitted."""
        return next(iter(self.state.values())).device

    @torch.no_grad()
    def __call__(self, a: Tensor) -> Tensor:
        """Approximate ``a @ b``.

        Raises:
            UserError: a is no matrix of floats or bytes of the fitted width on the fitted device.
        """
        rows = self._rows(a)
        dtype = answer_dtype(a)
        return self.product(rows).to(dtype) if len(a) else a.new_empty((0, self.outer), dtype=dtype)

    @torch.no_grad()
    def encode(self, a: Tensor) -> Tensor:
        """The narrow form of A that the product multiplies, one row for each of ``a``'s; see :meth:`narrow`.

        Raises:
            UserError: as :meth:`__call__`, or the method has no such form: then it says why.
        """
        rows = self._rows(a)
        return self.narrow(rows) if len(a) else self.narrow(rows.new_zeros((1, self.inner)))[:0]

    def narrow(self, a: Tensor) -> Tensor:
        """What :meth:`encode` gives for checked rows in the working dtype.

        Raises:
            UserError: there is no such form.
        """
        raise UserError(f"{self.method} has no codes: {self.codeless}; op(a) gives the product.")

    def _rows(self, a: Tensor) -> Tensor:
        matrix(a, "a", self.method, BYTES)
        if a.shape[1] != self.inner:
            raise UserError(
                f"{self.method}: a must have the {self.inner} columns it was fitted with, got {a.shape[1]}."
            )
        if a.device != self.device:
            raise UserError(f"{self.method}: fitted on {self.device}, but a is on {a.device}; move a or fit there.")
        return a.to(self.work)

    def describe(self) -> dict[str, Any]:
        """What really runs: back-end, level, threads and dtype of the arithmetic."""
        return {
            "method": self.method,
            "backend": "torch",
            "level": "library",
            "device": str(self.device),
            "threads": torch.get_num_threads() if self.device.type == "cpu" else 1,
            "dtype": str(self.work).removeprefix("torch."),
            "hyper": self.hyper,
        }

    def multiplies(self, n: int) -> float:
        """Multiply-adds of one call on n rows."""
        return float(n) * self.inner * self.outer

    def bytes_read(self, n: int) -> float:
        """Bytes of A and of the learned arrays, each read once; all of A, so that its layout makes no difference."""
        item = torch.empty((), dtype=self.dtype).element_size()
        return float(n) * self.inner * item + float(sum(t.numel() * t.element_size() for t in self.state.values()))

    def save(self, path: str | Path) -> None:
        """Write ``state`` as an .npz of plain arrays, with the method's name and options as JSON; see :meth:`load`."""
        arrays = {f"state_{key}": plain(value) for key, value in self.state.items()}
        dtype = str(self.dtype).removeprefix("torch.")
        about = {"dtype": dtype, "shape": [self.inner, self.outer], "choices": self.choices}
        with Path(path).open("wb") as file:
            np.savez(
                file,
                method=np.array(self.method),
                module=np.array(type(self).__module__),
                hyper=np.array(json.dumps(self.hyper)),
                about=np.array(json.dumps(about)),
                times=np.array(json.dumps(self.times)),
                **arrays,  # type: ignore[arg-type]
            )

    @classmethod
    def load(cls, path: str | Path, device: str | None = None) -> Self:
        """What :meth:`save` wrote; :func:`methods.approximate_matmul.load` reads any method's file.

        Raises:
            UserError: the file is damaged, or holds another kind of operator.
        """
        return load_as(cls, path, device)

    @classmethod
    def arrays(cls, hyper: Mapping[str, Any]) -> dict[str, str]:
        """Sides of every array of ``state``, floating unless a dtype follows: D columns of A, M of B, others free."""
        return {"b": "D M"}


@contextlib.contextmanager
def factorising(a: Tensor, method: str) -> Iterator[None]:
    """Turn a library's failed factorisation of something made of ``a`` into words; nothing is read while it works.

    Raises:
        UserError: the factorisation did not come to an end.
    """
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        bad = int((~torch.isfinite(a)).any(dim=1).sum())
        if bad:
            told = f"{bad} of its {len(a)} rows have NaN or infinite entries; leave them out or mend them"
        else:
            largest = float(a.abs().max())
            told = (
                f"it has entries up to {largest:.0e}, whose squares may not fit {a.dtype}; scale a down or use float64"
            )
        raise UserError(f"{method} factorises a at run time, which failed: {told}.") from error


class Estimator:
    """An unfitted method: ``fit`` gives the operator."""

    def __init__(self, kind: type[Op], hyper: Mapping[str, Any]) -> None:
        self.kind, self.hyper = kind, dict(hyper)

    @torch.no_grad()
    def fit(self, a_train: Tensor, b: Tensor) -> Op:
        """Learn from training rows ``a_train`` [N', D] and the known ``b`` [D, M].

        Raises:
            UserError: the matrices do not fit each other, are empty, not floating or not finite.
        """
        checked(a_train, b, self.kind.method)
        fit = Fit()
        work = working(a_train.dtype, self.kind.native_half)
        state = self.kind.learn(a_train.detach().to(work), b.detach().to(work), self.hyper, fit)
        return self.kind(self.hyper, state, a_train.dtype, (int(b.shape[0]), int(b.shape[1])), fit)

    def __call__(self, a: Tensor) -> Tensor:
        """Refuse: there is no B yet."""
        raise UserError(f"{self.kind.method} is not fitted: call fit(a_train, b) and use the operator that it returns.")

    encode = __call__

    def save(self, path: str | Path) -> None:
        """Refuse: there is nothing to write yet."""
        raise UserError(
            f"{self.kind.method} is not fitted, so {path} was not written: call fit(a_train, b) and save the operator "
            "that it returns."
        )


def working(dtype: torch.dtype, native_half: bool = False) -> torch.dtype:
    """Float64 stays, float32 stays, half dtypes become float32 unless the method computes in them."""
    return dtype if native_half or dtype == torch.float64 else torch.float32


def checked(a_train: Tensor, b: Tensor, method: str) -> None:
    """Check what fit is given."""
    matrix(a_train, "a_train", method)
    matrix(b, "b", method)
    if a_train.shape[1] != b.shape[0]:
        raise UserError(
            f"{method}: a_train has {a_train.shape[1]} columns but b has {b.shape[0]} rows; they must be equal."
        )
    if a_train.device != b.device:
        raise UserError(f"{method}: a_train is on {a_train.device} and b on {b.device}; put both on one device.")
    for name, value in (("a_train", a_train), ("b", b)):
        if not value.numel():
            raise UserError(f"{method}: {name} is empty (shape {tuple(value.shape)}); at least one row and column.")
        if not bool(torch.isfinite(value).all()):
            raise UserError(f"{method}: {name} has NaN or infinite entries; remove those rows or mend the data.")


def limited_rank(rank: int, inner: int, outer: int, method: str) -> None:
    """A factorisation through ``rank`` columns saves work only below both D and M (the limit of the published sweep).

    Raises:
        UserError: naming the limit.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise UserError(f"{method}: rank must be an integer of at least 1, got {rank!r}.")
    if rank >= inner or rank >= outer:
        limit = min(inner, outer) - 1
        raise UserError(
            f"{method}: rank {rank} must be below both D = {inner} and M = {outer}; use at most {limit}"
            + (" (no rank fits this shape)." if limit < 1 else ".")
        )


def choice(value: str, known: tuple[str, ...], name: str, method: str) -> str:
    """Check an option that names one of a few things."""
    if value not in known:
        raise UserError(f"{method}: {name} must be one of {', '.join(known)}; got {value!r}.")
    return value


def plain(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A NumPy copy; dtypes that NumPy lacks are widened to float32, which is exact."""
    host = tensor.detach().cpu()
    known = (torch.float32, torch.float64, torch.float16, torch.int8, torch.int32, torch.int64, torch.uint8)
    return (host if host.dtype in known else host.float()).numpy().copy()


def load(path: str | Path, device: str = "cpu") -> Op:
    """Read an operator that :meth:`Op.save` wrote.

    Raises:
        UserError: the file is not such an operator, is damaged, or its arrays and options do not fit each other.
    """
    files = read(path, "product")
    where = place(device)
    try:
        module, hyper, about = str(files["module"]), json.loads(str(files["hyper"])), json.loads(str(files["about"]))
        times = dict(json.loads(str(files["times"])))
        if not module.startswith(f"{__package__}."):
            raise UserError(f"{path}: saved by {module!r}; load it with that module.")
        home = importlib.import_module(module)
        kind: type[Op] = home.KIND
        # The factory checks options, and knows those that the file is too old to name.
        hyper = home.make(**hyper).hyper
        inner, outer = (int(side) for side in about["shape"])
        dtype = {str(known).removeprefix("torch."): known for known in DTYPES}[about["dtype"]]
        state = _state(files, kind.arrays(hyper), inner, outer)
        return kind(
            hyper,
            {key: value.to(where) for key, value in state.items()},
            dtype,
            (inner, outer),
            Fit(times, dict(about["choices"])),
        )
    except (*DAMAGE, ImportError) as error:
        raise damaged(path, "product", error) from error


def _state(files: Mapping[str, np.ndarray[Any, Any]], patterns: Mapping[str, str], inner: int, outer: int) -> State:
    found = {key.removeprefix("state_"): value for key, value in files.items() if key.startswith("state_")}
    if found.keys() != patterns.keys():
        raise ValueError(f"expected the arrays {', '.join(patterns)}, got {', '.join(found) or 'none'}")
    consistent.sides({key: (found[key], patterns[key]) for key in patterns}, {"D": inner, "M": outer})
    return {key: torch.from_numpy(value) for key, value in found.items()}
