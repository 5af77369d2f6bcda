"""Fetching by the first route that works, and hashing again what is here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.catalogue.data import arrays as hashing
from harness.catalogue.data import cache, clients, formats, library, routes
from harness.catalogue.data.archive import DAMAGED, opened
from harness.catalogue.data.cards import LOCAL_KINDS, DataCard, Route
from harness.errors import MissingDependency, Unavailable, UserError

if TYPE_CHECKING:
    from harness.catalogue.data.library import Progress


def fetch(card: DataCard, progress: Progress | None = None) -> Path | None:
    """Every route in the card's order until one gives the card's arrays; nothing half-written stays behind."""
    if card.kind == "gradients":
        return library.path(card.name)
    if card.base:
        library.fetch(card.base, progress)
        if "keep" in card.derive:
            library.load(card.name, mmap=True)  # checks the hashes of the derived arrays
            return library.path(card.name)
    there = cache.find(card)
    if there is not None:
        return there
    if "command" in card.card.fields and not card.routes:
        raise Unavailable(f"{card.name!r} is computed, not fetched: run `{card.card.fields['command']}`.")
    failed = []
    for route in card.routes:
        try:
            return _by(card, route, progress)
        except cache.NoRoom:
            raise
        except UserError as error:
            failed.append(f"{route.label}: {str(error).removeprefix(f'{route.label}: ').rstrip('.')}")
            if progress and (route.kind != "folder" or os.environ.get(route.name)):
                progress(card.name, f"no: {failed[-1]}", 0, None)
    raise Unavailable(f"cannot fetch {card.name!r}. {'; '.join(failed) or 'its card has no route'}.")


def _by(card: DataCard, route: Route, progress: Progress | None) -> Path | None:
    """One route: source, decoding, hashes, cache. Folder data sets stay where the user has them."""
    if route.kind in LOCAL_KINDS:
        reason = routes.refusal(route)
        if reason is not None:
            raise Unavailable(reason)
        with routes.local(route) as source:
            arrays, meta = library.decode(card, route, source)
            if card.kind == "folder":
                return source.root
        return cache.write(card, arrays, meta, route.label)
    lack = formats.lacking(route.format)
    if lack is not None:
        raise MissingDependency(lack)
    if progress:
        progress(card.name, route.label, 0, route.bytes or None)
    copies = 2 if route.kind in ("npm", "torchvision") else 1  # npm's own cache; torchvision unpacks its archive
    cache.need_space(cache.home(card.name), copies * route.bytes + _size(card), f"{route.label} and its arrays")
    with cache.scratch(card.name) as stage:
        file = clients.download(route, stage, lambda done: _tell(progress, card, route, done))
        routes.check_download(file, route)
        if progress:
            progress(card.name, f"decoding {route.label}", route.bytes, route.bytes or None)
        try:
            with opened(file, route.label) as source:
                arrays, meta = library.decode(card, route, source)
        except DAMAGED as error:
            raise UserError(f"{file.name} is damaged or cut: {error}") from error
        return cache.write(card, arrays, meta, route.label)


def _tell(progress: Progress | None, card: DataCard, route: Route, done: int) -> None:
    if progress:
        progress(card.name, route.label, min(done, route.bytes or done), route.bytes or None)


def _size(card: DataCard) -> int:
    """Bytes of the decoded arrays (every dtype's name ends in its bits)."""
    total = 0
    for spec in card.arrays.values():
        bits = int("".join(filter(str.isdigit, spec.dtype)) or 64)
        count = 1
        for length in spec.shape:
            count *= length
        total += count * bits // 8
    return total


def verify(card: DataCard) -> dict[str, Any]:
    """``{name, kind, ok, reason, arrays}``; ok is False when bytes here are not the card's. Raises when absent."""
    if card.kind == "gradients":
        got = routes.sha256(library.path(card.name))
        good = got == card.card.fields["sha256"]
        reason = None if good else f"the card pins {card.card.fields['sha256'][:16]}…; restore the file with git"
        return {"name": card.name, "kind": card.kind, "ok": good, "reason": reason, "arrays": {"npz": got}}
    damage = cache.damage(card)
    if damage is not None:
        return _result(card, f"{damage}; delete it and run `speedclaim data fetch {card.name}`", {})
    try:
        found = library.load(card.name).arrays
    except Unavailable:
        raise
    except UserError as error:
        return _result(card, str(error), {})
    wrong = hashing.differences(card, found) if card.kind != "folder" else []
    return _result(card, "; ".join(wrong) or None, library.hashes(found))


def _result(card: DataCard, reason: str | None, arrays: dict[str, str]) -> dict[str, Any]:
    return {"name": card.name, "kind": card.kind, "ok": reason is None, "reason": reason, "arrays": arrays}
