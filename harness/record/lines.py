"""Record files as lines: which files there are, plain or packed, and their complete records.

``gzip -9n FILE.jsonl`` packs a finished file to about a seventh; ``FILE.jsonl.gz`` is read as the file itself.
"""

from __future__ import annotations

import gzip
import json
import os
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from harness.errors import BadRecord, UserError
from harness.record.checks import odd_header
from harness.record.run import SCHEMA

Source = str | Path | Sequence[str | Path]

#: How record files end, plain and packed.
ENDINGS = (".jsonl", ".jsonl.gz")
#: What is read from the end of a file to find its last line; most lines are shorter.
TAIL_BYTES = 16_384
#: What reading bytes that are no record, or a damaged packed one, raises.
UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError)


class TornLine(UserWarning):
    """The last line of a record was cut off by a killed process and is ignored."""


def opened(path: Path) -> BinaryIO:
    """The bytes of a record file, unpacked."""
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def paths(source: Source) -> list[Path]:
    """The record files behind a file, a folder (searched recursively) or a list of these."""
    found: list[Path] = []
    for item in [source] if isinstance(source, str | Path) else source:
        path = Path(item)
        if path.is_dir():
            found.extend(sorted(file for ending in ENDINGS for file in path.rglob(f"*{ending}")))
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"no record at {path}: expected a .jsonl or .jsonl.gz file, or a folder of them.")
    return list(dict.fromkeys(found))


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Every complete record of one file, the header first."""
    for _, record in numbered(path):
        yield record


def numbered(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every complete record with its line's number."""
    try:
        with opened(path) as stream:
            text = stream.read().decode()
    except UNREADABLE as error:
        raise BadRecord(f"{path} cannot be read as a record: {error}.") from error
    lines = text.split("\n")
    torn = lines.pop() if lines and not text.endswith("\n") else None
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        record = parsed(path, line, f"line {number}")
        if number == 1:
            check_header(path, record)
        elif record["record"] not in ("run", "end"):
            got = "a second header" if record["record"] == "header" else repr(record["record"])
            raise BadRecord(
                f"{path}, line {number}: expected a run or the end, got {got}; restore the file or delete that line."
            )
        yield number, record
    if torn:
        warnings.warn(f"{path}: the torn last line is ignored (the run was killed).", TornLine, stacklevel=3)


def parsed(path: Path, line: str, where: str) -> dict[str, Any]:
    """One line as a record.

    Raises:
        BadRecord: it is no JSON object that says what it records.
    """
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadRecord(f"{path}, {where}: not valid JSON ({error}); restore the file or delete the line.") from error
    if not isinstance(record, dict) or "record" not in record:
        raise BadRecord(f"{path}, {where}: expected a record object with the key 'record'.")
    return record


def check_header(path: Path, record: Mapping[str, Any]) -> None:
    """Refuse a first line that is no sound header of this schema, by :class:`BadRecord`."""
    if record["record"] != "header":
        raise BadRecord(f"{path}: expected a header in the first line, got {record['record']!r}.")
    if record.get("schema") != SCHEMA:
        raise BadRecord(
            f"{path}: schema {record.get('schema')!r}, this version reads {SCHEMA}; use the release that wrote it."
        )
    if why := odd_header(record):
        raise BadRecord(f"{path}, line 1: the header {why}; restore the file or measure again.")


def ends(path: Path) -> tuple[str | None, str]:
    """The first and the last complete line, without reading what lies between; None for a file without any."""
    try:
        with opened(path) as stream:
            first = stream.readline()
            if not first.endswith(b"\n"):
                tail, torn = b"", first
            else:
                tail, torn = _packed_tail(stream, first) if path.suffix == ".gz" else _tail(stream)
        texts = (first if first.endswith(b"\n") else b"").decode(), tail.decode()
    except UNREADABLE as error:
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


def _packed_tail(stream: BinaryIO, first: bytes) -> tuple[bytes, bytes]:
    """As :func:`_tail`, of a packed file whose first line was read: its end is found by reading on."""
    last, torn = first, b""
    for line in stream:
        if not line.endswith(b"\n"):
            torn = line
        elif line != b"\n":
            last = line
    return last.removesuffix(b"\n"), torn
