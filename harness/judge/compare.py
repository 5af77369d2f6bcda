"""Two sets of stored runs side by side: the speed-up of B over A for each case that both hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from harness.judge import stats
from harness.judge.evidence import IDENTITY, Row, absent, complete, values
from harness.judge.stats import RatioEstimate

if TYPE_CHECKING:
    import pandas as pd

CompareWord = Literal["faster", "slower", "no difference", "inconclusive"]
#: An interval inside [1/1.05, 1.05] is called "no difference": the equivalence margin of claims.
MARGIN = 1.05
#: Columns of the frame in which two environments may differ; the commit may differ, that is what one compares.
ENVIRONMENT = ("device", "device_kind", "threads", "precision", "protocol")
_HEADER_FIELDS = ("host", "cpu", "os", "python", "torch", "triton", "numpy", "cores_physical")


class ComparisonRow(BaseModel):
    """One case: ``ratio`` is A ÷ B, so over 1 means that B is faster (or smaller)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    case: str
    device: str
    metric: str
    clock: str | None
    word: CompareWord
    reason: str
    ratio: float
    low: float
    high: float
    level: float
    floor: float
    n: int
    paired: bool
    a: float
    b: float
    differences: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """A JSON-ready copy with the same keys in the same order."""
        return self.model_dump(mode="json")


def compare(
    a: pd.DataFrame,
    b: pd.DataFrame,
    metric: str = "op_s",
    headers_a: Iterable[Mapping[str, Any]] = (),
    headers_b: Iterable[Mapping[str, Any]] = (),
) -> list[ComparisonRow]:
    """Compare every case that both frames measured.

    Blocks are paired when both sides hold the same block numbers in the same environment (an interleaved run);
    otherwise the exact rank-sum interval of unpaired blocks is taken. Each side uses its newest file per case.
    """
    left, right = _newest(a, metric), _newest(b, metric)
    files_a, files_b = ({str(h.get("file")): h for h in headers} for headers in (headers_a, headers_b))
    rows = []
    for case in sorted(set(left) & set(right)):
        first, second = left[case], right[case]
        method = first[0]["method"]
        x, y = values(first, method, metric), values(second, method, metric)
        differences = _differences(first[0], second[0], files_a, files_b)
        paired = not differences and set(x) == set(y)
        estimate = stats.paired_ratio(x, y) if paired else stats.unpaired_ratio([*x.values()], [*y.values()])
        floors = [f for f in (_floor(a, first[0], metric), _floor(b, second[0], metric)) if f is not None]
        floor = max(floors, default=stats.MIN_FLOOR)
        word, reason = _word(estimate, floor, bool(floors) or not metric.endswith("_s"))
        if first[0]["protocol"] != second[0]["protocol"]:
            word, reason = "inconclusive", "the protocols differ, so the numbers do not compare"
        elif _clock(first, metric) != _clock(second, metric):
            word, reason = "inconclusive", "the clocks differ, so the numbers do not compare"
        rows.append(
            ComparisonRow(
                case=case,
                device=_devices(first[0], second[0]),
                metric=metric,
                clock=_clock(first, metric),
                word=word,
                reason=reason,
                ratio=estimate.ratio,
                low=estimate.low,
                high=estimate.high,
                level=estimate.level,
                floor=floor,
                n=estimate.n,
                paired=paired,
                a=_middle(x),
                b=_middle(y),
                differences=differences,
            )
        )
    return rows


def _word(estimate: RatioEstimate, floor: float, has_aa: bool) -> tuple[CompareWord, str]:
    if not estimate.enough:
        return "inconclusive", f"too few blocks: a level of {estimate.level:.1%}"
    if not has_aa:
        return "inconclusive", "no A/A arm on this problem: the noise floor is unknown"
    if estimate.low > 1 + floor:
        return "faster", ""
    if estimate.high < 1 / (1 + floor):
        return "slower", ""
    if stats.equivalent(estimate, MARGIN):
        return "no difference", f"inside {MARGIN - 1:.0%}"
    return "inconclusive", "direction open"


def _newest(runs: pd.DataFrame, metric: str) -> dict[str, list[Row]]:
    """Rows of each case's own arm that carry the metric and count, from the newest file and environment."""
    runs = complete(runs)
    runs = runs[(runs["metric"] == metric) & (runs["arm"] == runs["method"])]
    found: dict[str, dict[tuple[str, ...], list[Row]]] = {}
    for raw in runs.to_dict("records"):
        row: dict[str, Any] = {str(key): None if absent(value) else value for key, value in raw.items()}
        if row["discarded"] or (metric.endswith("_s") and row["status"] != "passed"):
            continue
        identity = tuple(str(row[name]) for name in IDENTITY)
        found.setdefault(row["case"], {}).setdefault(identity, []).append(row)
    return {case: max(sets.values(), key=lambda rows: max(str(r["utc"]) for r in rows)) for case, sets in found.items()}


def _floor(runs: pd.DataFrame, like: Row, metric: str) -> float | None:
    """Noise floor of the same problem in the same file; None without an A/A arm."""
    runs = complete(runs)
    near = runs[(runs["file"] == like["file"]) & (runs["problem"] == like["problem"]) & (runs["metric"] == metric)]
    rows: list[Row] = [
        {str(key): None if absent(value) else value for key, value in row.items()} for row in near.to_dict("records")
    ]
    rows = [row for row in rows if not row["discarded"]]
    alias = next((row["arm"] for row in rows if str(row["arm"]).endswith("#aa")), None)
    if alias is None:
        return None
    first, second = values(rows, alias.removesuffix("#aa"), metric), values(rows, alias, metric)
    return stats.noise_floor(first, second) if set(first) & set(second) else None


def _differences(
    a: Row, b: Row, headers_a: Mapping[str, Mapping[str, Any]], headers_b: Mapping[str, Mapping[str, Any]]
) -> tuple[str, ...]:
    found = [f"{name}: {a[name]} → {b[name]}" for name in ENVIRONMENT if a[name] != b[name]]
    left, right = (h.get(str(row["file"]), {}).get("environment") for h, row in ((headers_a, a), (headers_b, b)))
    if left and right:
        found += [
            f"{name}: {left.get(name)} → {right.get(name)}"
            for name in _HEADER_FIELDS
            if left.get(name) != right.get(name)
        ]
    return tuple(found)


def _devices(a: Row, b: Row) -> str:
    names = dict.fromkeys(str(row["device"] or "") for row in (a, b))
    return " → ".join(names)


def _clock(rows: Sequence[Row], metric: str) -> str | None:
    return next((row["clock"] for row in rows if row["metric"] == metric), None)


def _middle(found: Mapping[Any, float]) -> float:
    ordered = sorted(found.values())
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
