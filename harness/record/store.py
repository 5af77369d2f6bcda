"""The store: append-only JSON lines, one file per invocation, readable as one pandas frame.

A file is a header line, run lines, and an end line once the invocation completed. Files merge by being copied into
one folder. A torn last line (a killed process) is ignored when reading and cut off before appending.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from harness.errors import BadRecord, UserError
from harness.record import folders
from harness.record.checks import odd_run
from harness.record.copies import distinct
from harness.record.environment import conditions
from harness.record.lines import Source, check_header, ends, numbered, parsed, paths
from harness.record.nvidia import POWER_CAP
from harness.record.run import SCHEMA, Run

if TYPE_CHECKING:
    import pandas as pd

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
    "conditions",
    "discarded",
    "utc",
    "file",
    "detail",
)
#: Columns that each measurement of a run fills; ``value`` is derived, the others are the run's.
MEASURED = ("metric", "unit", "clock", "samples")
CLOCK_DROP = 0.90


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


def read_headers(source: Source) -> list[dict[str, Any]]:
    """The header of every file, with the extra keys ``file`` and ``complete``."""
    headers = []
    for path in distinct(paths(source)):
        first, last = ends(path)
        if first is None:
            continue
        header = parsed(path, first, "line 1")
        check_header(path, header)
        complete = parsed(path, last, "last line")["record"] == "end"
        headers.append({**header, "file": str(path), "complete": complete})
    return headers


def read_runs(source: Source) -> pd.DataFrame:
    """One row per run and metric.

    Args:
        source: a record file, a folder (recursive), or a list of these.

    Returns:
        A frame with the columns :data:`COLUMNS`; ``value`` is the median of ``samples``. A run without
        measurements is one row whose metric is None. ``conditions`` is equal where two files come from the same
        sources, machine model, limits and versions (:func:`harness.record.environment.conditions`). ``discarded`` holds
        the reason why the whole block does not count (thermal or power brake, or an SM clock under 90 % of the same
        arm's median), else None.

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
    for number, record in numbered(path):
        if record["record"] == "header":
            environment, project = record["environment"], record["project"]
            shared = {
                "device": environment.get("device_name"),
                "device_kind": environment.get("device"),
                "threads": environment.get("threads"),
                "commit": project.get("commit") or None,
                "conditions": conditions(environment, project),
                "file": file,
            }
            protocols = {s["task"]: s["protocol"] for s in record.get("plan", {}).get("suites", [])}
            continue
        if record["record"] != "run":
            continue
        detail = record.get("detail", {})
        measurements = record.get("measurements", [])
        why = odd_run(record, detail, measurements)
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
