"""The public verbs. numpy is imported only where arrays are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.catalogue import dataset
from harness.catalogue.data import arrays as hashing
from harness.catalogue.data import cache, cards, derive, routes
from harness.catalogue.data.archive import DAMAGED, Source
from harness.catalogue.data.arrays import Arrays
from harness.catalogue.data.cards import LOCAL_KINDS, DataCard, Route
from harness.errors import MissingDependency, Unavailable, UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: ``progress(name, text, done_bytes, total_bytes or None)``, called now and then while something is fetched.
Progress = Callable[[str, str, int, int | None], None]


def names() -> list[str]:
    """Every card that :func:`load` understands."""
    return [name for name, card in dataset.cards().items() if "file" not in card.fields]


def status(name: str) -> str | None:
    """None when ``load(name)`` would work now, else what to do, in one line. Imports no numpy and opens no data."""
    card = cards.read(name)
    if card.kind == "gradients":
        return None if (card.card.path.parent / card.card.fields["file"]).is_file() else "its .npz is missing"
    if card.base:
        reason = status(card.base)
        if reason is not None or not card.routes:
            return reason
    if cache.find(card) is not None or any(routes.refusal(route) is None for route in _local(card)):
        return None
    return _advice(card)


def load(name: str, **options: Any) -> Arrays:
    """The arrays of a data set that is on this machine; nothing is ever downloaded here.

    Args:
        name: of the card.
        options: ``mmap=True`` (read-only, memory-mapped), ``labels="worse"`` (cifar10n: CIFAR-10 with these training
            labels), ``partial=True`` (folder data sets: accept another number of pictures than the card's).

    Raises:
        Unavailable: it is not here; the text names the command or the variable that mends it.
        UserError: unknown name or option, or bytes that are not those of the card.
    """
    card = cards.read(name)
    unknown = (
        set(options)
        - {"mmap", *(["labels"] if card.kind == "labels" else [])}
        - ({"partial"} if card.kind == "folder" else set())
    )
    if unknown:
        raise UserError(f"data set {name!r} has no option {', '.join(sorted(unknown))}.")
    if card.kind == "gradients":
        raise UserError(f"{name!r} holds captured gradients for the polar suite; it is not a data set to load.")
    if "keep" in card.derive:
        return derive.long_tailed(card, load(card.base, **options))
    found = _load(card, **options)
    if options.get("labels"):
        return derive.relabelled(card, found, load(card.base, mmap=bool(options.get("mmap"))), str(options["labels"]))
    return found


def _load(card: DataCard, mmap: bool = False, partial: bool = False, **_: Any) -> Arrays:
    place = cache.find(card)
    if place is not None:
        arrays, meta = cache.read(place, mmap)
        return Arrays(card.name, card.kind, arrays, {**card.meta, **meta})
    for route in _local(card):
        if routes.refusal(route) is None:
            try:
                with routes.local(route) as source:
                    arrays, meta = decode(card, route, source, partial)
            except UserError as error:
                if route.kind == "folder":
                    raise
                raise Unavailable(f"{error} Instead {_advice(card)}.") from error
            return Arrays(card.name, card.kind, arrays, {**card.meta, **meta})
    damage = cache.damage(card)
    raise Unavailable(
        f"data set {card.name!r} is not on this machine: {f'{damage}; ' if damage else ''}{_advice(card)}."
    )


def decode(
    card: DataCard, route: Route, source: Source, partial: bool = False
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read a source with the route's reader and check the result against the card."""
    from harness.catalogue.data import formats

    lack = formats.lacking(route.format)
    if lack is not None:
        raise MissingDependency(f"{lack}.")
    try:
        found, meta = formats.READERS[route.format](source, route.fields)
    except DAMAGED as error:
        raise UserError(f"{source.label} is damaged or cut: {error}.") from error
    if card.kind == "folder":
        derive.check_counts(card, found, meta, source.label, partial)
    else:
        hashing.check(card, found, source.label)
    return found, meta


def _local(card: DataCard) -> list[Route]:
    return [route for route in card.routes if route.kind in LOCAL_KINDS]


def _advice(card: DataCard) -> str:
    """What to do about an absent data set."""
    if "command" in card.card.fields and not card.routes:
        return f"run `{card.card.fields['command']}`"
    advice = []
    if any(route.kind not in LOCAL_KINDS for route in card.routes):
        advice.append(f"run `speedclaim data fetch {card.name}`")
    advice += [str(routes.refusal(route)) for route in _local(card) if route.kind == "folder" or not advice]
    return ", or ".join(advice) or "its card has no route"


def path(name: str) -> Path:
    """The folder of a data set's arrays here (of its base, for a derived one)."""
    card = cards.read(name)
    if card.kind == "gradients":
        return card.card.file(card.card.fields["file"])
    if "keep" in card.derive:
        return path(card.base)
    place = cache.find(card)
    if place is not None:
        return place
    for route in _local(card):
        if routes.refusal(route) is None:
            with routes.local(route) as source:
                if source.root is not None:
                    return source.root
    raise Unavailable(f"data set {name!r} is not on this machine: {_advice(card)}.")


def fetch(name: str, progress: Progress | None = None) -> Path | None:
    """Bring a data set here by the first route that works; returns its folder. Done at once when it is here."""
    from harness.catalogue.data import fetching

    return fetching.fetch(cards.read(name), progress)


def verify(name: str) -> dict[str, Any]:
    """Hash every array again: ``{name, kind, ok, reason, arrays: {train, test, …: sha256}}``."""
    from harness.catalogue.data import fetching

    return fetching.verify(cards.read(name))


def hashes(found: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """sha256 by public name."""
    return {hashing.PUBLIC_NAMES.get(key, key): hashing.digest(array) for key, array in found.items()}
