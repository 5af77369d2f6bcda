"""Approximate products in a report: families, sizes, ablations and the published points, read off stored cases."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.judge import stats
from reports import plain
from reports.cases import Case
from reports.tables import SIDES, describe_problem

Row = dict[str, Any]
TASK = "approximate_matmul"
#: The method whose options are varied.
PLAIN = f"{TASK}.maddness"
#: Family -> methods of it (without the task), and their colour; a name's beginning decides where it is not listed.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "exact": ("exact",),
    "look-ups by trees": ("maddness",),
    "look-ups by centroids": ("bolt", "pq", "opq"),
    "fewer bits": ("int8", "int8-torch", "int8-static", "bf16", "fp8"),
    "low rank": ("pca", "sparse-pca", "svd", "fd-amm", "cooccur"),
    "random sketches": ("fast-jl", "hash-jl", "osnap", "rademacher", "gauss", "sampling"),
}
OTHER = "other"
#: Variants of the plain method in one option: rows of the table of options, and in no figure, where they would lie on
#: top of the plain method.
VARIANTS = tuple(
    f"{PLAIN}-{option}"
    for option in ("candidates", "int8-splits", "strict", "shared-scale", "power-scale", "float-tables", "ridge100")
)
#: Sections of a task's page that a product's page tells in its own way, or that mean nothing for it.
REPLACED = ("Error against time", "Singular values of the outputs")
#: Rows that the ablation table shows.
ABLATIONS = 300


@dataclass(frozen=True, kw_only=True)
class Published:
    """One curve of the paper's figure: speed-up over its float32 product and accuracy, by codebooks."""

    label: str
    shape: tuple[int, ...]
    exact: float
    points: tuple[tuple[int, float, float], ...]


#: D. Blalock and J. Guttag, Multiplying Matrices Without Multiplying, ICML 2021 (arXiv 2106.10860), the authors'
#: poster: codebooks, speed-up, accuracy, read off the plot to 3 %. One thread of their CPU, features of their networks.
#: The exact accuracies belong to the outputs published beside the code.
PUBLISHED = (
    Published(
        label="CIFAR-10",
        shape=(10_000, 512, 10),
        exact=0.9359,
        points=((64, 7.3, 0.932), (32, 15.8, 0.930), (16, 40.8, 0.932), (8, 90.6, 0.927), (4, 148, 0.926),
                (2, 254, 0.917)),
    ),
    Published(
        label="CIFAR-100",
        shape=(10_000, 512, 100),
        exact=0.7048,
        points=((64, 11.0, 0.706), (32, 22.3, 0.704), (16, 55.0, 0.697), (8, 114, 0.661), (4, 156, 0.553),
                (2, 177, 0.293)),
    ),
)  # fmt: skip
#: Kinds of problem that stand beside the published points: A column by column as there, and row by row.
PUBLISHED_KINDS = ("cifar10_net_columns", "cifar10_net")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Problems of one matrix that differ only in how many codebooks approximate it.

    Attributes:
        name: kind without the codebooks.
        shape: N, D, M.
        dtype: of A.
        sizes: problem id -> codebooks; 0 where it is not told.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    sizes: Mapping[str, int]

    @property
    def label(self) -> str:
        """``digits 355 × 64 × 10 float32``."""
        return f"{self.name.replace('_', ' ')} {' × '.join(map(str, self.shape))} {self.dtype}"

    @property
    def published(self) -> Published | None:
        """The paper's curve of the same shape and data set; None for all other problems."""
        if self.name not in PUBLISHED_KINDS or self.dtype != "float32":
            return None
        return next((curve for curve in PUBLISHED if curve.shape == self.shape), None)


def groups(cases: list[Case], problems: Mapping[str, Row]) -> list[Group]:
    """Groups in the order of the cases."""
    found: dict[tuple[str, tuple[int, ...], str], dict[str, int]] = {}
    for case in cases:
        row = describe_problem(case.problem, problems)
        name, size = _kind(str(row["kind"]))
        hyper = row["params"].get("hyper")
        told = plain.number(hyper.get("codebooks")) if isinstance(hyper, Mapping) else None
        key = (name, tuple(row["shape"]), str(row["dtype"]))
        found.setdefault(key, {})[case.problem] = size if told is None else int(told)
    return [Group(name=name, shape=shape, dtype=dtype, sizes=sizes) for (name, shape, dtype), sizes in found.items()]


def _kind(kind: str) -> tuple[str, int]:
    found = re.fullmatch(r"(.+)_c(\d+)", kind)
    return (found.group(1), int(found.group(2))) if found else (kind, 0)


def family(method: str) -> str:
    """What kind of approximation a method is, by its name."""
    name = method.split(".", 1)[-1]
    for label, names in FAMILIES.items():
        if name in names:
            return label
    for label, names in FAMILIES.items():
        if any(name.startswith(f"{known}-") for known in names):
            return label
    return OTHER


def short(method: str) -> str:
    """A method's name without its task."""
    return method.split(".", 1)[-1] or method


def size(case: Case) -> int | None:
    """Codebooks, or rank, that the method ran with; None for a method that takes no size."""
    hyper = case.detail.get("hyper")
    told = (plain.number(hyper.get(name)) for name in ("codebooks", "rank")) if isinstance(hyper, Mapping) else ()
    return next((int(value) for value in told if value is not None), None)


def ran(case: Case) -> str:
    """What really ran, as the method told it at the gate."""
    told = case.detail.get("runs")
    if not isinstance(told, Mapping):
        return ""
    keys = ("backend", "level", "threads", "dtype")
    texts = {key: str(told[key]) for key in keys if told.get(key) not in (None, "")}
    if "threads" in texts:
        texts["threads"] = plain.count(int(texts["threads"]), "thread") if texts["threads"].isdigit() else ""
    return ", ".join(text for text in texts.values() if text)


def implementations(cases: list[Case]) -> list[tuple[str, str]]:
    """Method -> what really ran, with how many problems where it differs; and why it was not the native kernel."""
    found: dict[str, dict[str, int]] = {}
    for case in cases:
        told, text = case.detail.get("runs"), ran(case)
        why = told.get("not_native_because") if isinstance(told, Mapping) else None
        if text:
            text = f"{text} ({why})" if why else text
            texts = found.setdefault(short(case.method), {})
            texts[text] = texts.get(text, 0) + 1
    return [
        (method, "; ".join(f"{text} [{plain.count(n, 'problem')}]" if len(texts) > 1 else text
                           for text, n in texts.items()))
        for method, texts in found.items()
    ]  # fmt: skip


def ablation(cases: list[Case]) -> list[Row]:
    """Variants of MADDNESS beside it, problem by problem; a time ratio only where one file holds both.

    What was never tried has no row here; the table of cases says why.
    """
    at = {(case.problem, case.method): case for case in cases}
    rows = []
    for case in cases:
        if family(case.method) != family(PLAIN) or case.status == "unsupported":
            continue
        rows.append(_ablation_row(case, at.get((case.problem, PLAIN))))
    return rows[:ABLATIONS]


def _ablation_row(case: Case, base: Case | None) -> Row:
    is_base = case.method == PLAIN
    nmse, ratio, low, high, side = case.errors.get("nmse"), None, None, None, "open"
    if base is not None and not is_base and base.file == case.file and base.blocks.keys() & case.blocks.keys():
        found = stats.paired_ratio(
            {block: value[0] for block, value in base.blocks.items()},
            {block: value[0] for block, value in case.blocks.items()},
        )
        ratio, low, high = found.ratio, found.low, found.high
        noise = case.noise
        if found.enough and noise is not None:
            side = "faster" if low > 1 + noise else "slower" if high < 1 / (1 + noise) else "level"
    before = base.errors.get("nmse") if base is not None else None
    change = nmse / before if nmse is not None and before and not is_base else None
    effect, kept = case.effect, case.errors.get("accuracy_retained")
    return {
        "method": short(case.method),
        "problem": case.problem,
        "anchor": case.anchor,
        "option": "the plain method" if is_base else changed(case, base),
        "nmse": nmse,
        "nmse_text": plain.plain(nmse),
        "change_text": f"{change:.3g} of plain's" if change is not None else "",
        "retained": kept,
        "retained_text": plain.DASH if kept is None else f"{100 * kept:.1f} %",
        "speedup": effect.ratio if effect else None,
        "speedup_text": plain.times(effect.ratio) if effect else plain.DASH,
        "ratio": ratio,
        "ratio_text": "plain" if is_base else f"{SIDES[side][0]} {plain.times(ratio)}" if ratio else plain.DASH,
        "interval_text": plain.interval(low, high) if ratio else "",
        "train": case.times.get("train_s"),
        "train_text": plain.seconds(case.times.get("train_s")),
        "why": case.reason or "",
    }


def changed(case: Case, base: Case | None) -> str:
    """Options in which a method differs from plain MADDNESS, as the gate recorded both."""
    own, other = case.detail.get("hyper"), base.detail.get("hyper") if base is not None else None
    if not isinstance(own, Mapping):
        return "options not recorded"
    if not isinstance(other, Mapping):
        return "plain MADDNESS was not recorded here"
    texts = [f"{name} {_text(own[name])}" for name in own if name in other and own[name] != other[name]]
    texts += [f"{name} {_text(own[name])}" for name in own if name not in other]
    return ", ".join(texts) or "same options, another implementation"


def _text(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def theorem(cases: list[Case]) -> list[Row]:
    """Measured gap between test and training loss beside the bound of the paper's theorem 4.1."""
    rows: list[Row] = []
    for case in cases:
        told = case.detail.get("theorem")
        values = {name: plain.number(told.get(name)) for name in THEOREM} if isinstance(told, Mapping) else {}
        if not values or any(value is None for value in values.values()):
            continue
        texts = {f"{name}_text": plain.amount(value) for name, value in values.items()}
        rows.append({"method": short(case.method), "problem": case.problem, **values, **texts})
    return rows


THEOREM = ("train_loss", "test_loss", "gap", "bound")
