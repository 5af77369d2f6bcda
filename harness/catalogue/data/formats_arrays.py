"""More readers: colour photographs, time series of the UCR archive, and whole files as bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.catalogue.data.archive import Source
from harness.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Found = tuple[dict[str, NDArray[Any]], dict[str, Any]]


def photos(source: Source, fields: Mapping[str, Any]) -> Found:
    """Pictures as uint8 [height, width, 3], one array a member: ``members = { astronaut = "astronaut.png" }``."""
    import numpy as np
    from PIL import Image

    out: dict[str, NDArray[Any]] = {}
    for key, name in fields["members"].items():
        with Image.open(io.BytesIO(source.one(name))) as picture:
            out[key] = np.asarray(picture.convert("RGB")).copy()
    return out, {}


def ucr_series(source: Source, fields: Mapping[str, Any]) -> Found:
    """``.ts`` files of equally long univariate series: after ``@data`` one a line, ``v,v,…:label``.

    Gives ``train_x``, ``test_x`` float32 [count, length] and ``train_y``, ``test_y`` int64, the labels numbered in the
    order of the file's ``@classLabel`` line.
    """
    import numpy as np

    out: dict[str, NDArray[Any]] = {}
    classes: list[str] = []
    for split, name in fields["members"].items():
        text = source.one(name).decode("utf-8")
        head, mark, body = text.partition("@data")
        named = [line.split()[2:] for line in head.splitlines() if line.lower().startswith("@classlabel true")]
        if not mark or not named:
            raise UserError(f"{source.label}: {name} has no @data or no @classLabel line.")
        if classes and named[0] != classes:
            raise UserError(f"{source.label}: the files name different classes: {classes} and {named[0]}.")
        classes = named[0]
        rows = [line.rpartition(":") for line in body.splitlines() if line.strip()]
        lengths = {row.count(",") for row, _, _ in rows}
        if len(lengths) != 1:
            raise UserError(f"{source.label}: {name} holds series of different lengths.")
        values = np.array(",".join(row for row, _, _ in rows).split(","), dtype=np.float64)
        out[f"{split}_x"] = values.reshape(len(rows), -1).astype(np.float32)
        out[f"{split}_y"] = np.array([classes.index(label.strip()) for _, _, label in rows], np.int64)
    return out, {"classes": len(classes), "class_names": classes}


def raw_files(source: Source, fields: Mapping[str, Any]) -> Found:
    """Whole members as uint8 arrays, e.g. a file of weights."""
    import numpy as np

    return {key: np.frombuffer(source.one(name), np.uint8).copy() for key, name in fields["members"].items()}, {}
