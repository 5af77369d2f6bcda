"""From a route to opened bytes. Local routes here; those that download are in :mod:`harness.catalogue.data.clients`."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.catalogue.data import archive
from harness.catalogue.data.archive import Source
from harness.catalogue.data.cards import Route
from harness.errors import UserError


def refusal(route: Route) -> str | None:
    """Why a local route cannot be used now, without opening anything; None = it can."""
    if route.kind == "package":
        module = str(route.fields["module"])
        if importlib.util.find_spec(module) is None:
            return f"the package {route.name} is not installed: pip install {route.name}"
        return None
    chosen = os.environ.get(route.name)
    if not chosen:
        return f"set {route.name}={route.fields.get('expects', '/path/to/the/data')}"
    if not Path(chosen).is_dir():
        return f"{route.name}={chosen} is not a folder; it should be {route.fields.get('expects', 'the data')}"
    return None


@contextmanager
def local(route: Route) -> Iterator[Source]:
    """The source of a ``package`` or ``folder`` route that :func:`refusal` accepted."""
    if route.kind == "folder":
        root = Path(os.environ[route.name])
        yield archive.folder(root, f"{route.name}={root}")
        return
    spec = importlib.util.find_spec(str(route.fields["module"]))
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {route.name} is not installed: pip install {route.name}.")
    root = Path(next(iter(spec.submodule_search_locations)))
    inside = str(route.fields.get("inside", "."))
    yield archive.folder(root / inside, f"the installed package {route.name}")


def check_download(path: Path, route: Route) -> None:
    """The file's sha256 against the card's."""
    if not route.sha256:
        return
    got = sha256(path)
    if got != route.sha256:
        raise UserError(
            f"{route.label}: the downloaded {path.name} has sha256 {got[:16]}…, the card pins {route.sha256[:16]}… "
            "(a cut or altered download)"
        )


def sha256(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
