"""Copies of one record file in several folders count once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

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
        with path.open("rb") as stream:
            return stream.readline()
    except OSError:
        return b""


def _copies(group: Sequence[Path]) -> list[Path]:
    """Files of a group that another, longer or earlier one contains from its start."""
    longest_first = sorted(group, key=lambda path: -path.stat().st_size)
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
        with whole.open("rb") as one, part.open("rb") as other:
            while piece := other.read(CHUNK):
                if one.read(len(piece)) != piece:
                    return False
    except OSError:
        return False
    return True
