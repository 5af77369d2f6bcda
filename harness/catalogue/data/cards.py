"""What a data card says, as types: routes, expected arrays, derivation. Reads cards; touches no bytes of data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.catalogue import dataset
from harness.errors import UserError

#: Kinds of route, in words: the client or place that a route uses.
ROUTE_KINDS = ("torchvision", "npm", "pip", "apt", "package", "folder")
#: Routes that need no download, so that ``load`` may use them by itself.
LOCAL_KINDS = ("package", "folder")
#: Kinds of data set. ``gradients`` cards describe a committed .npz and are read by the suites themselves.
#: ``arrays`` cards hold whatever their arrays' names say (series, photographs, features, a file of weights).
KINDS = ("images", "text", "labels", "folder", "gradients", "arrays")


@dataclass(frozen=True, kw_only=True)
class Route:
    """One way to the bytes.

    Attributes:
        kind: one of :data:`ROUTE_KINDS`.
        format: name of the reader in :mod:`harness.catalogue.data.formats`.
        name: package, or torchvision's data-set class, or the environment variable of a user's folder.
        version: the package's version, empty when any will do (the arrays' hashes decide).
        sha256: of the downloaded file; empty where it differs between machines.
        bytes: size of the download, for progress and the free-space check; 0 = unknown.
        fields: what else the reader needs (``members``, …).
    """

    kind: str
    format: str
    name: str
    version: str = ""
    sha256: str = ""
    bytes: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"{self.kind} {self.name}" + (f" {self.version}" if self.version else "")


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """Shape, dtype and sha256 of the C-contiguous bytes of one array; no sha256 = pinned through its source."""

    shape: tuple[int, ...]
    dtype: str
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class DataCard:
    """One data card, parsed. ``meta`` is what :func:`load` hands on beside the arrays."""

    name: str
    title: str
    licence: str
    citation: str
    version: str
    kind: str
    routes: tuple[Route, ...]
    arrays: Mapping[str, ArraySpec]
    derive: Mapping[str, Any]
    meta: Mapping[str, Any]
    card: dataset.Card

    @property
    def base(self) -> str:
        """The card this one is derived from, or the empty string."""
        return str(self.derive.get("base", ""))


def read(name: str) -> DataCard:
    """The parsed card called ``name``."""
    return parse(dataset.card(name))


def parse(card: dataset.Card) -> DataCard:
    """Check a card's fields and give them types."""
    fields = card.fields
    kind = "gradients" if "file" in fields else fields.get("kind", "")
    if kind not in KINDS:
        raise UserError(f"{card.path}: kind must be one of {', '.join(KINDS)}; got {kind!r}.")
    described = fields.get("arrays", {})
    arrays = {} if kind == "gradients" else {key: _array(value) for key, value in described.items()}
    return DataCard(
        name=card.name,
        title=card.title,
        licence=card.licence,
        citation=fields.get("citation", ""),
        version=fields.get("version", ""),
        kind=kind,
        routes=tuple(_route(card, item) for item in fields.get("routes", [])),
        arrays=arrays,
        derive=fields.get("derive", {}),
        meta=fields.get("meta", {}),
        card=card,
    )


def _array(value: Mapping[str, Any]) -> ArraySpec:
    return ArraySpec(shape=tuple(value["shape"]), dtype=value["dtype"], sha256=value.get("sha256", ""))


def _route(card: dataset.Card, item: Mapping[str, Any]) -> Route:
    known = {key: item[key] for key in ("kind", "format", "name", "version", "sha256", "bytes") if key in item}
    if item.get("kind") not in ROUTE_KINDS or not {"format", "name"} <= set(known):
        raise UserError(
            f"{card.path}: a route needs kind ({', '.join(ROUTE_KINDS)}), name and format; got {dict(item)}."
        )
    return Route(**known, fields={key: value for key, value in item.items() if key not in known})
