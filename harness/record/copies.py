"""Copies of one record file in several folders, packed or not, count once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from harness.record.lines import UNREADABLE, opened

#: Bytes that are compared at a time.
CHUNK = 1 << 20


def distinct(found: Sequence[Path]) -> list[Path]:
    """The files without those whose bytes are the beginning of another one (a copy, or a copy made while it grew).

    Of equal files the first stays. Headers hold the start in microseconds, so that only files with the same first line
    are read further; a file that cannot be read stays, for whoever reads it to say so.
    """
    groups: dict[bytes, list[Path]] = defaultdict(list)
    for path in found:
        if first := _first_line(path):
            groups[first].append(path)
    dropped = {path for group in groups.values() if len(group) > 1 for path in _copies(group)}
    return [path for path in found if path not in dropped]


def _first_line(path: Path) -> bytes:
    try:
        with opened(path) as stream:
            return stream.readline()
    except UNREADABLE:
        return b""


def _copies(group: Sequence[Path]) -> list[Path]:
    """Files of a group that another, longer or earlier one contains from its start."""
    longest_first = sorted(group, key=lambda path: -_length(path))
    kept: list[Path] = []
    dropped = []
    for path in longest_first:
        if any(_begins(whole, path) for whole in kept):
            dropped.append(path)
        else:
            kept.append(path)
    return dropped


def _begins(whole: Path, part: Path) -> bool:
    try:
        with opened(whole) as one, opened(part) as other:
            while piece := other.read(CHUNK):
                if one.read(len(piece)) != piece:
                    return False
    except UNREADABLE:
        return False
    return True


def _length(path: Path) -> int:
    """Bytes of a file, unpacked; 0 for one that cannot be read."""
    if path.suffix != ".gz":
        return path.stat().st_size
    try:
        with opened(path) as stream:
            return sum(len(piece) for piece in iter(lambda: stream.read(CHUNK), b""))
    except UNREADABLE:
        return 0
