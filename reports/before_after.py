"""Two sets of records side by side as one self-contained page: every shared case, and what else changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.errors import UserError
from reports import audit, figures, html, plain, theme

Row = dict[str, Any]
NAME = "compare.html"
CHANGED = ("faster", "slower")


def render(
    rows: list[Row], headers_a: list[dict[str, Any]], headers_b: list[dict[str, Any]], out: Path, names: tuple[str, str]
) -> Path:
    """Write ``compare.html``.

    Args:
        rows: rows of :func:`harness.judge.compare.compare` as plain dictionaries.
        headers_a: headers of the records before.
        headers_b: headers of the records after.
        out: folder, made if missing.
        names: how the two sides are called.

    Returns:
        The path of the page.

    Raises:
        UserError: the folder cannot be written.
    """
    home = "index.html" if (out / "index.html").is_file() else NAME
    links = [("index.html", "Overview")] if home != NAME else []
    differing, same = environments(headers_a, headers_b)
    metric = rows[0]["metric"] if rows else "op_s"
    text = html.page(
        "compare.j2", NAME, "Before and after", home=home, lead=sentence(rows), metric=metric,
        nav={"before": [*links, (NAME, "Before and after")], "tasks": [], "after": []},
        gain="faster" if metric.endswith("_s") else "better", rows=drawn(rows), differing=differing, same=same,
        sides=[_side("Before (A)", names[0], headers_a), _side("After (B)", names[1], headers_b)],
    )  # fmt: skip
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / NAME).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write the comparison into {out}: {error.strerror or error}; choose another folder with --out."
        ) from error
    return out / NAME


def sentence(rows: list[Row]) -> str:
    """How many cases changed, in which direction, and by how much at most."""
    counted = [(word, sum(row["word"] == word for row in rows)) for word in theme.CHANGES]
    text = f"{plain.count(len(rows), 'case')} in both: " + ", ".join(f"{count} {word}" for word, count in counted) + "."
    changed = [row for row in rows if row["word"] in CHANGED]
    if not changed:
        return f"{text} Nothing changed beyond the noise floor."
    most = max(changed, key=lambda row: abs(math.log(row["ratio"])))
    return (
        f"{text} The largest change is {most['case']}: {plain.times(most['ratio'])} "
        f"{plain.interval(most['low'], most['high'])}."
    )


def drawn(rows: list[Row]) -> list[Row]:
    """Rows as text with their interval bars on one scale, what got slower first."""
    order = {word: place for place, word in enumerate(theme.CHANGES)}
    ready = [_row(row) for row in sorted(rows, key=lambda row: (order.get(row["word"], len(order)), row["case"]))]
    scale = figures.bar_scale(ready)
    return [{**row, "bar": figures.bar(row, scale)} for row in ready]


def _row(row: Mapping[str, Any]) -> Row:
    method, _, problem = row["case"].partition("/")
    show = _shower(row["metric"])
    return {
        **row,
        "method": method,
        "problem": problem,
        "anchor": plain.anchor("compared", row["case"], row["device"]),
        "sign": theme.CHANGES.get(row["word"], theme.UNKNOWN),
        "changed": row["word"] in CHANGED,
        "claimed": None,
        "claimed_text": plain.DASH,
        "a_text": show(row["a"]),
        "b_text": show(row["b"]),
        "ratio_text": plain.times(row["ratio"]),
        "interval_text": plain.interval(plain.number(row["low"]), plain.number(row["high"])),
        "floor_text": plain.percent(row["floor"]),
        "level_text": f"{100 * row['level']:.1f} %",
    }


def _shower(metric: str) -> Callable[[float | None], str]:
    if metric.endswith("_s"):
        return plain.seconds
    return plain.size if metric.endswith("_bytes") else plain.plain


def environments(
    a: Iterable[dict[str, Any]], b: Iterable[dict[str, Any]]
) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """Fields of the two environments that differ (label, before, after) and those that are equal (label, value)."""
    before, after = _fields(a), _fields(b)
    differing, same = [], []
    for label in dict.fromkeys([*before, *after]):
        left, right = before.get(label, plain.DASH), after.get(label, plain.DASH)
        if left == right:
            same.append((label, left))
        else:
            differing.append((label, left, right))
    return differing, same


def _fields(headers: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Every recorded field of some files' environments; several values of one field stand beside each other."""
    found: dict[str, dict[str, None]] = {}
    for header in headers:
        protocols = [pair for suite in audit.protocol(header) for pair in suite["fields"] if pair[0] != "estimate"]
        commit = (header.get("project") or {}).get("commit") or ""
        for label, value in [("commit", str(commit)[:12] or plain.DASH), *audit.environment(header), *protocols]:
            found.setdefault(label, {})[value] = None
    return {label: " | ".join(values) for label, values in found.items()}


def _side(name: str, path: str, headers: list[dict[str, Any]]) -> Row:
    devices = dict.fromkeys(str(h.get("environment", {}).get("device_name") or plain.DASH) for h in headers)
    commits = dict.fromkeys(str((h.get("project") or {}).get("commit") or plain.DASH)[:12] for h in headers)
    times = sorted(str(h.get("utc", "")) for h in headers)
    facts = [
        ("records", path),
        ("files", str(len(headers))),
        ("device", ", ".join(devices)),
        ("commit", ", ".join(commits)),
        ("measured", " to ".join(dict.fromkeys((times[0], times[-1]))) if times else plain.DASH),
    ]
    return {"name": name, "facts": facts}
