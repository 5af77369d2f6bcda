"""The figures of :mod:`methods.kfac._bench` as lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Width of the table's first column.
ARM = 55


def summary(entry: Mapping[str, Any]) -> str:
    """One arm in one line."""
    parts = " ".join(f"{k} {v:.2f}" for k, v in entry.get("parts", {}).items())
    kept = ("mean", "longest", "host", "launch", "held_before", "peak", "state")
    figures = " ".join(f"{k} {entry[k]:.2f}" for k in kept if k in entry)
    error = f"error {entry['error']:.1e} " if "error" in entry else ""
    graphs = entry.get("graphs", {})
    told = f"graphs {graphs['captured']}/{graphs['replayed']} {graphs.get('why', '')}" if graphs else ""
    return f"{error}{figures} {f'[{parts}]' if parts else ''} {told} {entry.get('counters') or ''}".rstrip()


def table(results: Mapping[str, Any]) -> str:
    """The short table: milliseconds a step and MiB."""
    columns = ("mean", "median", "longest", "host", "launch", "peak", "state")
    lines = [f"{'arm':{ARM}}{'error':>9}" + "".join(f"{c:>9}" for c in columns) + f"{'plain/x':>9}  parts"]
    plain = results.get("plain inverse", {}).get("mean")
    for name, entry in results.items():
        if "failed" in entry:
            lines.append(f"{name:{ARM}}{'failed':>9}")
            continue
        error = f"{entry['error']:9.1e}" if "error" in entry else f"{'':9}"
        figures = "".join(f"{entry[c]:9.2f}" if c in entry else f"{'':9}" for c in columns)
        ratio = f"{plain / entry['mean']:9.2f}" if plain and "mean" in entry else f"{'':9}"
        parts = " ".join(f"{k} {v:.2f}" for k, v in entry.get("parts", {}).items())
        lines.append(f"{name:{ARM}}{error}{figures}{ratio}  {parts}")
    return "\n".join(lines)
