"""The store: append-only JSON lines, one file per invocation, readable as one pandas frame.

A file is a header line, run lines, and an end line once the invocation completed. Files merge by being copied into
one folder. A torn last line (a killed process) is ignored when reading and cut off before appending.
"""

from __future__ import annotations

import datetime
import gc
import json
import os
import statistics
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from harness.errors import BadRecord, UserError
from harness.record import folders
from harness.record.copies import distinct
from harness.record.nvidia import POWER_CAP
from harness.record.run import SCHEMA, STATUSES, Run

if TYPE_CHECKING:
    import pandas as pd

Source = str | Path | Sequence[str | Path]

COLUMNS = (
    "run",
    "phase",
    "case",
    "task",
    "method",
    "problem",
    "workload",
    "seed",
    "block",
    "arm",
    "status",
    "reason",
    "metric",
    "unit",
    "clock",
    "value",
    "samples",
    "device",
    "device_kind",
    "threads",
    "commit",
    "protocol",
    "precision",
    "discarded",
    "utc",
    "file",
    "detail",
)
#: Columns that each measurement of a run fills; ``value`` is derived, the others are the run's.
MEASURED = ("metric", "unit", "clock", "samples")
CLOCK_DROP = 0.90
#: What is read from the end of a file to find its last line; most lines are shorter.
TAIL_BYTES = 16_384


class TornLine(UserWarning):
    """The last line of a record was cut off by a killed process and is ignored."""


class Writer:
    """Appends one invocation's lines to one file, flushed per record."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: TextIO | None = None

    def __enter__(self) -> Writer:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("a", encoding="utf-8")
            _lock(self._stream, self.path)
            _cut_torn_tail(self.path)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        return self

    def __exit__(self, *exc: object) -> None:
        if self._stream is not None:
            try:
                self._stream.close()
            except OSError as error:
                raise _unwritable(self.path, error) from error

    def header(self, header: Mapping[str, Any]) -> None:
        """Write the first line."""
        self._line({"record": "header", "schema": SCHEMA, **header})

    def run(self, run: Run) -> None:
        """Write one run."""
        self._line(run.model_dump(mode="json", exclude_none=True))

    def end(self, **fields: Any) -> None:
        """Write the last line: the invocation is complete."""
        self._line({"record": "end", **fields})

    def _line(self, record: Mapping[str, Any]) -> None:
        assert self._stream is not None
        try:
            self._stream.write(json.dumps(record, allow_nan=True, separators=(",", ":")) + "\n")
            self._stream.flush()
        except OSError as error:
            raise _unwritable(self.path, error) from error


def _lock(stream: TextIO, path: Path) -> None:
    """One writer a file; the lock goes with the process. Systems without flock rely on file names."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{path} is being written by another run; wait for it or choose another --out.") from None


def in_use(path: Path) -> bool:
    """Whether another process writes this file now."""
    try:
        with path.open("a", encoding="utf-8") as stream:
            _lock(stream, path)
    except (UserError, OSError):
        return True
    return False


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write {path}: {error.strerror or error}. Every line before this one is kept; "
        f"free some space or choose another folder with --out, then run the same command to resume."
    )


def _cut_torn_tail(path: Path) -> None:
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as stream:
        data = stream.read()
        if not data.endswith(b"\n"):
            stream.truncate(data.rfind(b"\n") + 1)


def paths(source: Source) -> list[Path]:
    """The record files behind a file, a folder (searched recursively) or a list of these."""
    found: list[Path] = []
    for item in [source] if isinstance(source, str | Path) else source:
        path = Path(item)
        if path.is_dir():
            found.extend(sorted(path.rglob("*.jsonl")))
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"no record at {path}: expected a .jsonl file or a folder of them.")
    return list(dict.fromkeys(found))


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Every complete record of one file, the header first."""
    for _, record in _numbered(path):
        yield record


def _numbered(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every complete record with its line's number."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRecord(f"{path} cannot be read as a record: {error}.") from error
    lines = text.split("\n")
    torn = lines.pop() if lines and not text.endswith("\n") else None
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        record = _parsed(path, line, f"line {number}")
        if number == 1:
            _check_header(path, record)
        elif record["record"] not in ("run", "end"):
            got = "a second header" if record["record"] == "header" else repr(record["record"])
            raise BadRecord(
                f"{path}, line {number}: expected a run or the end, got {got}; restore the file or delete that line."
            )
        yield number, record
    if torn:
        warnings.warn(f"{path}: the torn last line is ignored (the run was killed).", TornLine, stacklevel=3)


def _parsed(path: Path, line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadRecord(f"{path}, {where}: not valid JSON ({error}); restore the file or delete the line.") from error
    if not isinstance(record, dict) or "record" not in record:
        raise BadRecord(f"{path}, {where}: expected a record object with the key 'record'.")
    return record


def _check_header(path: Path, record: Mapping[str, Any]) -> None:
    if record["record"] != "header":
        raise BadRecord(f"{path}: expected a header in the first line, got {record['record']!r}.")
    if record.get("schema") != SCHEMA:
        raise BadRecord(
            f"{path}: schema {record.get('schema')!r}, this version reads {SCHEMA}; use the release that wrote it."
        )
    if why := _odd_header(record):
        raise BadRecord(f"{path}, line 1: the header {why}; restore the file or measure again.")


def _odd_header(header: Mapping[str, Any]) -> str | None:
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


def read_headers(source: Source) -> list[dict[str, Any]]:
    """The header of every file, with the extra keys ``file`` and ``complete``."""
    headers = []
    for path in distinct(paths(source)):
        first, last = _ends(path)
        if first is None:
            continue
        header = _parsed(path, first, "line 1")
        _check_header(path, header)
        complete = _parsed(path, last, "last line")["record"] == "end"
        headers.append({**header, "file": str(path), "complete": complete})
    return headers


def _ends(path: Path) -> tuple[str | None, str]:
    """The first and the last complete line, without reading what lies between; None for a file without any."""
    try:
        with path.open("rb") as stream:
            first = stream.readline()
            if not first.endswith(b"\n"):
                tail, torn = b"", first
            else:
                tail, torn = _tail(stream)
        texts = (first if first.endswith(b"\n") else b"").decode(), tail.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BadRecord(f"{path} cannot be read as a record: {error}.") from error
    if torn:
        warnings.warn(f"{path}: the torn last line is ignored (the run was killed).", TornLine, stacklevel=4)
    return texts[0] or None, texts[1]


def _tail(stream: BinaryIO) -> tuple[bytes, bytes]:
    """The last complete line that is not empty, and what stands after the last line break."""
    end = stream.seek(0, os.SEEK_END)
    size = TAIL_BYTES
    while True:
        start = max(0, end - size)
        stream.seek(start)
        lines = stream.read(end - start).split(b"\n")
        torn, whole = lines.pop(), [line for line in (lines if start == 0 else lines[1:]) if line]
        if whole or start == 0:
            return (whole[-1] if whole else b""), torn
        size *= 8


def read_runs(source: Source) -> pd.DataFrame:
    """One row per run and metric.

    Args:
        source: a record file, a folder (recursive), or a list of these.

    Returns:
        A frame with the columns :data:`COLUMNS`; ``value`` is the median of ``samples``. A run without
        measurements is one row whose metric is None. ``discarded`` holds the reason why the whole block does
        not count (thermal or power brake, or an SM clock under 90 % of the same arm's median), else None.

    Raises:
        UserError: nothing at ``source``. BadRecord: a file that is no record.
    """
    import pandas as pd

    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    with _no_collection():
        for path in distinct(paths(source)):
            _append(columns, path)
        frame = pd.DataFrame(columns, columns=list(COLUMNS))
        return _discard_slow_clocks(frame)


def _append(columns: dict[str, list[Any]], path: Path) -> None:
    shared: dict[str, Any] = {}
    protocols: dict[str, dict[str, Any]] = {}
    file = str(path)
    of_measurement = [(name, columns[name]) for name in MEASURED]
    of_run = [(name, columns[name]) for name in COLUMNS if name not in (*MEASURED, "value")]
    medians = columns["value"]
    seen: set[tuple[Any, Any]] = set()
    for number, record in _numbered(path):
        if record["record"] == "header":
            environment, project = record["environment"], record["project"]
            shared = {
                "device": environment.get("device_name"),
                "device_kind": environment.get("device"),
                "threads": environment.get("threads"),
                "commit": project.get("commit") or None,
                "file": file,
            }
            protocols = {s["task"]: s["protocol"] for s in record.get("plan", {}).get("suites", [])}
            continue
        if record["record"] != "run":
            continue
        detail = record.get("detail", {})
        measurements = record.get("measurements", [])
        why = _odd(record, detail, measurements)
        if why is None and (key := (record["run"], record["case"])) in seen:
            why = "stands in the file already, with the same case"
        if why is not None:
            raise BadRecord(
                f"{path}, line {number}: run {record.get('run')!r} {why}; restore the file or delete that line."
            )
        seen.add(key)
        measurements = measurements or [{}]
        protocol = protocols.get(record["task"], {})
        common = {
            **record,
            **shared,
            "protocol": protocol.get("version"),
            "precision": protocol.get("precision"),
            "discarded": detail.get("discarded"),
            "detail": detail,
        }
        for name, values in of_run:
            values.extend([common.get(name)] * len(measurements))
        for name, values in of_measurement:
            values.extend([measurement.get(name) for measurement in measurements])
        medians.extend([_median(measurement.get("samples")) for measurement in measurements])


def _odd(record: Mapping[str, Any], detail: Any, measurements: Any) -> str | None:
    """What no writer of this schema would have stored; None when the record is sound."""
    if not (isinstance(detail, dict) and isinstance(measurements, list)):
        return "has no list of measurements or no detail object"
    for name in ("run", "case", "task", "method", "arm", "status", "phase"):
        if not isinstance(record.get(name), str):
            return f"has no text under {name!r}"
    if record["status"] not in STATUSES:
        return f"has the unknown status {record['status']!r}, expected one of {', '.join(STATUSES)}"
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


def _median(samples: Sequence[float] | None) -> float | None:
    return statistics.median(samples) if samples else None


@contextmanager
def _no_collection() -> Iterator[None]:
    """Parsed records form no cycles: searching them for cycles took a third of the reading time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _discard_slow_clocks(frame: pd.DataFrame) -> pd.DataFrame:
    """Mark every arm of a (file, problem, block) in which one arm ran under 90 % of its own median SM clock.

    A clock lowered by the software power cap does not count: drawing that power is part of the kernel's performance.
    """
    if frame.empty:
        return frame
    clocks = frame["detail"].map(_uncapped_clock)
    if not clocks.notna().any():
        return frame
    known = frame.assign(sm_mhz=clocks.astype(float))[clocks.notna() & frame["block"].notna()]
    median = known.groupby(["file", "problem", "arm"])["sm_mhz"].transform("median")
    slow = known[known["sm_mhz"] < CLOCK_DROP * median]
    keys = set(zip(slow["file"], slow["problem"], slow["block"], strict=True))
    if keys:
        hit = [key in keys for key in zip(frame["file"], frame["problem"], frame["block"], strict=True)]
        mask = pd_mask(frame, hit)
        frame.loc[mask, "discarded"] = f"SM clock under {CLOCK_DROP:.0%} of the same arm's median"
    return frame


def _uncapped_clock(detail: Any) -> float | None:
    if not isinstance(detail, dict) or POWER_CAP in (detail.get("throttle") or ()):
        return None
    return detail.get("sm_mhz")


def discarded_blocks(source: Source) -> dict[str, set[int]]:
    """Blocks that do not count, by problem."""
    frame = read_runs(source)
    lost = frame[frame["discarded"].notna() & frame["block"].notna()]
    found: dict[str, set[int]] = {}
    for problem, block in zip(lost["problem"], lost["block"], strict=True):
        found.setdefault(str(problem), set()).add(int(block))
    return found


def pd_mask(frame: pd.DataFrame, hit: Iterable[bool]) -> pd.Series[bool]:
    """Rows in ``hit`` that are not discarded already."""
    import pandas as pd

    return pd.Series(list(hit), index=frame.index) & frame["discarded"].isna()


def export(source: Source, to: str, out: Path) -> Path:
    """Write every run as one table.

    Args:
        source: as in :func:`read_runs`.
        to: ``parquet`` or ``csv``; nested fields are JSON text in CSV.
        out: the file to write.

    Returns:
        The path written; it appears only when complete.
    """
    if to not in ("parquet", "csv"):
        raise UserError(f"cannot export to {to!r}: expected parquet or csv.")
    if out.exists() and (not out.is_file() or out.suffix != f".{to}"):
        raise UserError(f"{out} exists and is no .{to} file; choose another file with --out.")
    folders.check(out.parent, "the table")
    frame = read_runs(source)
    frame["detail"] = frame["detail"].map(json.dumps)
    partial = out.with_name(out.name + ".partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if to == "csv":
            frame.assign(samples=frame["samples"].map(json.dumps)).to_csv(partial, index=False)
        else:
            frame.to_parquet(partial, index=False)
        os.replace(partial, out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write {out}: {error.strerror or error}; choose another file with --out.") from error
    return out
