"""What no writer of this schema would have stored: the reasons for which a header or a run is refused."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from harness.record.run import PHASES, STATUSES


def odd_header(header: Mapping[str, Any]) -> str | None:
    """What no writer of this schema would have stored; None when the header is sound."""
    for name in ("environment", "project", "plan"):
        if not isinstance(header.get(name), dict):
            return f"has no object under {name!r}"
    for name in ("device", "device_name"):
        if not isinstance(header["environment"].get(name), str):
            return f"has no text under {name!r} of its environment"
    suites = header["plan"].get("suites", [])
    if not isinstance(suites, list) or not all(
        isinstance(one, dict) and isinstance(one.get("task"), str) and isinstance(one.get("protocol"), dict)
        for one in suites
    ):
        return "has no list of suites with their task and protocol in its plan"
    if "utc" in header and not _is_time(header["utc"]):
        return f"has the time {header['utc']!r}, expected one such as 2026-11-23T12:00:00Z"
    return None


def _is_time(text: Any) -> bool:
    try:
        return isinstance(text, str) and "T" in text and bool(datetime.datetime.fromisoformat(text))
    except ValueError:
        return False


def odd_run(record: Mapping[str, Any], detail: Any, measurements: Any) -> str | None:
    """What no writer of this schema would have stored; None when the record is sound."""
    if not (isinstance(detail, dict) and isinstance(measurements, list)):
        return "has no list of measurements or no detail object"
    for name in ("run", "case", "task", "method", "arm", "status", "phase"):
        if not isinstance(record.get(name), str):
            return f"has no text under {name!r}"
    if record["status"] not in STATUSES:
        return f"has the unknown status {record['status']!r}, expected one of {', '.join(STATUSES)}"
    if record["phase"] not in PHASES:
        return f"has the unknown phase {record['phase']!r}, expected one of {', '.join(PHASES)}"
    if (utc := record.get("utc")) and not _is_time(utc):
        return f"has the time {utc!r}, expected one such as 2026-11-23T12:00:00Z"
    if not isinstance(record.get("block"), int | None) or (record["phase"] == "block" and record.get("block") is None):
        return f"has the block {record.get('block')!r}, expected a number"
    for measurement in measurements:
        if not isinstance(measurement, dict):
            return "has a measurement that is no object"
        samples, metric, unit = measurement.get("samples"), measurement.get("metric"), measurement.get("unit")
        if not (isinstance(metric, str) and isinstance(unit, str)):
            return f"has a measurement of {metric!r} in {unit!r}, expected the names of a metric and of its unit"
        if metric.endswith("_s") and unit != "s":
            return f"has {metric!r} in {unit!r}, expected seconds (s)"
        if not (samples and all(type(x) in (int, float) for x in samples)):
            return f"has samples of {metric!r} that are not numbers"
        if unit == "s" and not all(_sound(x, record["phase"]) for x in samples):
            return f"has a time of {metric!r} that is not positive and finite"
    return None


def _sound(seconds: float, phase: str) -> bool:
    """Whether a time may stand: positive and finite; zero too where training starts its curve or skips a bucket."""
    return 0 < seconds < float("inf") or (phase == "training" and seconds == 0)
