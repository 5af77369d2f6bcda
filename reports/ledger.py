"""Judged claims as plain rows, each number written in the sense of its claim's kind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from reports import plain, theme

Row = dict[str, Any]


def rows(verdicts: Iterable[Mapping[str, Any]]) -> list[Row]:
    """One row per claim and device, numbers as numbers and as text."""
    return [_ledger_row(verdict) for verdict in verdicts]


def by_verdict(ledger: list[Row]) -> list[Row]:
    """Tested rows in the order of the legend; within one word the device with most decided claims comes first."""
    order = {word: place for place, word in enumerate(theme.VERDICTS)}
    rank = {device: place for place, device in enumerate(devices(ledger))}
    tested = [row for row in ledger if row["verdict"] != UNTESTED]
    return sorted(tested, key=lambda row: (order.get(row["verdict"], len(order)), rank[row["device"]]))


def devices(ledger: list[Row]) -> list[str]:
    """Devices of the ledger, the one with most decided claims first."""
    decided = dict.fromkeys((row["device"] for row in ledger), 0)
    for row in ledger:
        decided[row["device"]] += row["verdict"] in DECIDED
    return sorted(decided, key=lambda device: -decided[device])


def untested(ledger: list[Row]) -> list[Row]:
    """Claims that could not be tested, grouped by the reason; the largest group first."""
    groups: dict[str, list[Row]] = {}
    for row in ledger:
        if row["verdict"] == UNTESTED:
            groups.setdefault(row["reason"] or row["phrase"] or "no reason was recorded", []).append(row)
    found = [{"reason": reason, "rows": rows, "count": len(rows)} for reason, rows in groups.items()]
    return sorted(found, key=lambda group: -group["count"])


UNTESTED = "not testable here"
DECIDED = ("reproduced", "partly", "not reproduced")
TEXTS = (
    *("id", "phrase", "reason", "command", "group", "title", "words", "source", "kind", "metric", "candidate"),
    *("baseline", "likeness", "note", "hardware"),
)


def _ledger_row(verdict: Mapping[str, Any]) -> Row:
    word = str(verdict.get("verdict", "inconclusive"))
    numbers = {name: plain.number(verdict.get(name)) for name in ("claimed", "ratio", "low", "high", "floor", "level")}
    texts = {name: str(verdict.get(name) or "") for name in TEXTS}
    device = str(verdict.get("device") or "")
    ratio, kind, blocks = numbers["ratio"], texts["kind"], plain.number(verdict.get("n")) or None
    return {
        **texts,
        **numbers,
        "anchor": plain.anchor("claim", texts["id"], device),
        "title": texts["title"] or texts["words"] or texts["id"],
        "verdict": word,
        "sign": theme.VERDICTS.get(word, theme.UNKNOWN),
        "device": device or "no device",
        "authors": _authors(verdict.get("authors")),
        "file": plain.base(verdict.get("file")),
        "counter": bool(verdict.get("counter")),
        "n": blocks,
        "quantity": {"growth": "exponent", "often": "rate", "only-reaches": "rate"}.get(kind, "ratio"),
        "claimed_text": claimed_text(kind, numbers["claimed"]),
        "ratio_text": quantity(kind, ratio),
        "interval_text": _claim_interval(kind, numbers["low"], numbers["high"]) if ratio is not None else "",
        "floor_text": plain.percent(numbers["floor"]),
        "blocks_text": f"{blocks:.0f}" if blocks else plain.DASH,
        "level_text": f"{100 * numbers['level']:.1f} %" if numbers["level"] is not None else "",
        "phrase": _phrase(word, texts["phrase"]),
        "brief": _brief(word, texts["phrase"], device),
        "likeness": "likeness unknown" if texts["likeness"] == "unknown" else texts["likeness"],
        "own": texts["likeness"] if texts["likeness"] != "unknown" else "",
        "why": _beyond(texts["phrase"], texts["reason"]),
        "problems": [_claim_cell(cell) for cell in verdict.get("problems") or []],
    }


def _authors(authors: Any) -> str:
    if isinstance(authors, Mapping):
        if len(authors) > 1 and len(set(authors.values())) == 1:
            return f"both: {next(iter(authors.values()))}"
        return "; ".join(f"{side}: {who}" for side, who in authors.items())
    return str(authors or "")


def _phrase(word: str, phrase: str) -> str:
    """The phrase without the verdict word that already stands beside it."""
    if not re.match(rf"{re.escape(word)}(:| \(|$)", phrase):
        return phrase
    rest = phrase.removeprefix(word).removeprefix(":").strip()
    return rest[1:-1] if rest.startswith("(") and rest.endswith(")") else rest


def _brief(word: str, phrase: str, device: str) -> str:
    """The phrase beside a verdict word and a device: neither is said again."""
    text = _phrase(word, phrase)
    text = re.sub(r"^too few (\w+): (\d+) give a level of [^,]+, (\d+) are needed.*", r"too few \1: \2 of \3", text)
    carried = re.match(rf"(?:partly )?(?:holds on|does not carry over to) {re.escape(device)} \((.*)\)$", text)
    return carried.group(1) if carried else text


def _beyond(phrase: str, reason: str) -> str:
    """What the reason says that the phrase does not."""
    return "; ".join(part for part in reason.split("; ") if part and part not in phrase)


def quantity(kind: str, value: float | None) -> str:
    """A claim's measured number in the sense of its kind: a ratio, an exponent or a rate."""
    if value is None:
        return plain.DASH
    if kind == "growth":
        return f"{value:.3g}"
    return plain.percent(value) if kind in ("often", "only-reaches") else plain.times(value)


def _claim_interval(kind: str, low: float | None, high: float | None) -> str:
    if kind in ("often", "only-reaches"):
        return f"[{plain.percent(low)}, {plain.percent(high)}]"
    return plain.interval(low, high)


def claimed_text(kind: str, claimed: float | None) -> str:
    """A claimed number in the sense of its kind: a limit, an exponent, a ratio, or only a direction."""
    if claimed is None or (kind == "on-par" and claimed == 1):
        return {"on-par": "on par", "metric-better": "better"}.get(kind, plain.DASH)
    prefix = {"at-most": "≤ ", "speedup-up-to": "up to "}.get(kind, "")
    return f"exponent ≤ {claimed:.3g}" if kind == "growth" else prefix + plain.times(claimed)


def _claim_cell(cell: Mapping[str, Any]) -> Row:
    ratio, low, high, floor = (plain.number(cell.get(name)) for name in ("ratio", "low", "high", "floor"))
    return {
        "problem": str(cell.get("problem", "")),
        "ratio": ratio,
        "low": low,
        "high": high,
        "floor": floor,
        "ratio_text": plain.times(ratio),
        "interval_text": plain.interval(low, high),
        "floor_text": plain.percent(floor),
    }


def counts(ledger: list[Row]) -> list[Row]:
    """Every verdict word with its count, in the order of the legend."""
    words = [*theme.VERDICTS, *sorted({row["verdict"] for row in ledger} - set(theme.VERDICTS))]
    return [
        {
            "word": word,
            "sign": theme.VERDICTS.get(word, theme.UNKNOWN),
            "count": sum(row["verdict"] == word for row in ledger),
        }
        for word in words
    ]
