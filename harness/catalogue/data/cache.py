"""Decoded arrays on disk: one folder a data set, one .npy an array, and a stamp that is written last."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.catalogue.data.cards import ArraySpec, DataCard
from harness.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: A folder of already decoded arrays (a copy of the cache's ``data`` folder), looked at first.
DATA_VARIABLE = "SPEEDCLAIM_DATA"
STAMP = "stamp.json"


class NoRoom(UserError):
    """The disk is full or may not be written: no other route can help."""


def cache_folder() -> Path:
    """``$SPEEDCLAIM_CACHE``, else ``speedclaim`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    chosen = os.environ.get("SPEEDCLAIM_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "speedclaim"


def home(name: str) -> Path:
    """Where ``fetch`` puts a data set."""
    return cache_folder() / "data" / name


#: Most bytes of the header of an ``.npy`` file of a few dimensions.
HEADER = 256


def find(card: DataCard) -> Path | None:
    """The folder with this card's arrays: ``$SPEEDCLAIM_DATA`` first, then the cache; None = in neither."""
    chosen = os.environ.get(DATA_VARIABLE)
    places = [Path(chosen) / card.name] if chosen else []
    return next((place for place in [*places, home(card.name)] if fault(card, place) is None), None)


def fault(card: DataCard, place: Path) -> str | None:
    """Why a folder cannot be used, judged from its stamp and file sizes alone; None = usable."""
    try:
        stamp = json.loads((place / STAMP).read_text(encoding="utf-8"))
        for key, item in stamp["arrays"].items():
            path = place / f"{key}.npy"
            if path.stat().st_size != item["bytes"]:
                return f"{path} is cut or changed"
            spec = card.arrays.get(key)
            if spec is None or (spec.sha256 and spec.sha256 != item["sha256"]) or not _sized(spec, item["bytes"]):
                return f"{place} holds another version than the card"
        missing = set(card.arrays) - set(stamp["arrays"])
    except FileNotFoundError:
        return "not there"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{place} cannot be read: {error}"
    return f"{place} lacks {', '.join(sorted(missing))}" if missing else None


def _sized(spec: ArraySpec, stored: int) -> bool:
    """Whether a file of ``stored`` bytes holds the card's shape and dtype behind NumPy's header."""
    item = int(re.sub(r"\D", "", spec.dtype) or 8) // 8
    return 0 < stored - math.prod(spec.shape) * item <= HEADER


def damage(card: DataCard) -> str | None:
    """Why the first folder that holds this data set is unusable, when one exists; None = usable, or no folder."""
    if find(card) is not None:
        return None
    chosen = os.environ.get(DATA_VARIABLE)
    places = [Path(chosen) / card.name] if chosen else []
    return next((fault(card, place) for place in [*places, home(card.name)] if place.is_dir()), None)


def read(place: Path, mmap: bool = False) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays and ``meta`` of a folder that :func:`fault` accepted."""
    import numpy as np

    stamp = json.loads((place / STAMP).read_text(encoding="utf-8"))
    try:
        arrays = {key: np.load(place / f"{key}.npy", mmap_mode="r" if mmap else None) for key in stamp["arrays"]}
    except (ValueError, EOFError) as error:
        raise UserError(f"{place} is damaged ({error}); delete it and fetch again.") from error
    return arrays, stamp["meta"]


def write(card: DataCard, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any], source: str) -> Path:
    """Write beside the final place, then rename: a reader sees all of it or none of it."""
    import numpy as np

    from harness.catalogue.data.arrays import digest

    place = home(card.name)
    need_space(place.parent, sum(array.nbytes for array in arrays.values()), f"the arrays of {card.name!r}")
    with scratch(card.name) as temporary:
        stamp: dict[str, Any] = {"name": card.name, "source": source, "meta": dict(meta), "arrays": {}}
        for key, array in arrays.items():
            path = temporary / f"{key}.npy"
            np.save(path, np.ascontiguousarray(array))
            stamp["arrays"][key] = {"bytes": path.stat().st_size, "sha256": digest(array)}
        (temporary / STAMP).write_text(json.dumps(stamp, indent=1, ensure_ascii=False), encoding="utf-8")
        _replace(place, temporary, card)
    return place


def _replace(place: Path, temporary: Path, card: DataCard) -> None:
    """Put ``temporary`` at ``place``; a data set that another process finished meanwhile stays."""
    if place.exists() and fault(card, place) is not None:
        old = temporary.with_name(f"{temporary.name}-old")
        place.rename(old)
        shutil.rmtree(old, ignore_errors=True)
    try:
        temporary.rename(place)
    except OSError:
        if fault(card, place) is not None:
            raise


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A temporary folder in the cache's file system, gone when the block ends, however it ends."""
    parent = cache_folder() / "data"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}-{os.getpid()}-", dir=parent))
    except OSError as error:
        raise NoRoom(
            f"cannot write to {parent}: {error.strerror or error}; set $SPEEDCLAIM_CACHE to a folder you may write to."
        ) from error
    try:
        yield temporary
    except OSError as error:
        raise NoRoom(f"{error.filename or temporary}: {error.strerror or error}; nothing was kept.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove what killed processes left more than an hour ago (their number is in the folder's name)."""
    import psutil

    limit = time.time() - 3600.0

    for left in parent.glob(".*-*-*"):
        number = left.name.rsplit("-", 2)[1] if not left.name.endswith("-old") else left.name.rsplit("-", 3)[1]
        if number.isdigit() and not psutil.pid_exists(int(number)) and left.stat().st_mtime < limit:
            shutil.rmtree(left, ignore_errors=True)


def need_space(place: Path, wanted: int, what: str) -> None:
    """Refuse before the first byte when the disk cannot hold ``wanted`` bytes more."""
    there = next((parent for parent in [place, *place.parents] if parent.exists()), Path("/"))
    free = shutil.disk_usage(there).free
    if free < wanted:
        raise NoRoom(
            f"{what} need {wanted / 1e6:,.0f} MB, but {there} has {free / 1e6:,.0f} MB free; make room or set "
            "$SPEEDCLAIM_CACHE to another disk."
        )
