"""Readers, one per *format*: the members of a source in, named numpy arrays out. None knows a data set by name."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from harness.catalogue.data import formats_arrays, pickles
from harness.catalogue.data.archive import Source
from harness.errors import MissingDependency, UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Found = tuple[dict[str, NDArray[Any]], dict[str, Any]]

#: A reader: source and the route's fields in; arrays by name and extra ``meta`` out.
Reader = Callable[[Source, Mapping[str, Any]], "Found"]


def digits_csv(source: Source, fields: Mapping[str, Any]) -> Found:
    """Rows of 64 pixels (0..16) and a label, gzipped; within each class the rows 4, 9, 14, … are the test set.

    The table has no split of its own (it is itself the test part of a larger set); this one is ours.
    """
    import numpy as np

    raw = source.one(fields["members"]["table"])
    table = np.loadtxt(io.BytesIO(gzip.decompress(raw)), delimiter=",", dtype=np.int64)
    pixels = table[:, :-1].astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = table[:, -1].copy()
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        held[np.flatnonzero(labels == label)[4::5]] = True
    return {"train_x": pixels[~held], "train_y": labels[~held], "test_x": pixels[held], "test_y": labels[held]}, {}


def idx(source: Source, fields: Mapping[str, Any]) -> Found:
    """MNIST's IDX files, plain or gzipped: big-endian header 0, 0, type 8, dimensions, sizes; then uint8 values."""
    import numpy as np

    out: dict[str, NDArray[Any]] = {}
    for key, name in fields["members"].items():
        raw = source.one(name if name in source.names else f"{name}.gz")
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        if len(raw) < 8 or raw[:3] != b"\0\0\x08":
            raise UserError(f"{source.label}: {name} is not an IDX file of bytes.")
        sizes = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
        values = np.frombuffer(raw, np.uint8, offset=4 + 4 * len(sizes))
        if values.size != int(np.prod(sizes)):
            raise UserError(f"{source.label}: {name} should hold {sizes} values, holds {values.size}.")
        shaped = values.reshape(sizes)
        out[key] = shaped[..., None].copy() if key.endswith("_x") else shaped.astype(np.int64)
    return out, {}


def png_strips(source: Source, fields: Mapping[str, Any]) -> Found:
    """Images packed into lossless RGB strips: row r of a PNG is image r, its pixels row by row; labels as JSON."""
    import numpy as np

    lack = lacking("png-strips")
    if lack is not None:
        raise MissingDependency(f"{lack}.")
    from PIL import Image

    side = fields["side"]
    out: dict[str, NDArray[Any]] = {}
    for split in ("train", "test"):
        parts = []
        for name in fields["members"][f"{split}_x"]:
            with Image.open(io.BytesIO(source.one(name))) as picture:
                if picture.mode != "RGB" or picture.width != side * side:
                    raise UserError(
                        f"{source.label}: {name} should be an RGB strip {side * side} wide, is {picture.mode} "
                        f"{picture.width} wide."
                    )
                parts.append(np.asarray(picture).reshape(-1, side, side, 3))
        labels = [json.loads(source.one(name)) for name in fields["members"][f"{split}_y"]]
        out[f"{split}_x"] = np.concatenate(parts)
        out[f"{split}_y"] = np.array([label for part in labels for label in part], np.int64)
    return out, {}


def cifar_pickles(source: Source, fields: Mapping[str, Any]) -> Found:
    """The official python pickles: ``data`` uint8 [N, 3072] channel by channel, labels under ``fields["labels"]``."""
    import numpy as np

    out: dict[str, NDArray[Any]] = {}
    for split in ("train", "test"):
        batches = [pickles.loads(_pinned(source, name, fields)) for name in fields["members"][split]]
        data = np.concatenate([np.asarray(batch["data"], np.uint8) for batch in batches])
        out[f"{split}_x"] = np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        out[f"{split}_y"] = np.concatenate([np.asarray(batch[fields["labels"]], np.int64) for batch in batches])
    return out, {}


def _pinned(source: Source, name: str, fields: Mapping[str, Any]) -> bytes:
    """A member whose MD5 the card pins, found in the folder itself or one folder below."""
    import hashlib

    found = next((item for item in source.names if item == name or item.endswith(f"/{name}")), name)
    raw = source.one(found)
    wanted = fields.get("md5", {}).get(name)
    if wanted and (got := hashlib.md5(raw, usedforsecurity=False).hexdigest()) != wanted:
        raise UserError(f"{source.label}: {found} should have MD5 {wanted}, has {got}.")
    return raw


def label_pickles(source: Source, fields: Mapping[str, Any]) -> Found:
    """A zip inside the source that holds a torch.save file whose pickle is a dict of integer arrays."""
    import zipfile

    import numpy as np

    with zipfile.ZipFile(io.BytesIO(source.one(fields["members"]["zip"]))) as outer:
        saved = outer.read(fields["members"]["saved"])
    with zipfile.ZipFile(io.BytesIO(saved)) as inner:
        name = next(item for item in inner.namelist() if item.endswith("data.pkl"))
        table = pickles.loads(inner.read(name))
    return {key: np.asarray(table[label], np.int64).copy() for key, label in fields["labels"].items()}, {}


def text_files(source: Source, fields: Mapping[str, Any]) -> Found:
    """UTF-8 texts sorted by name, joined by two newlines, as character ids; index % 20 == 10 is the test set.

    The vocabulary is the sorted set of characters of both parts; ids are uint8, or uint16 above 256 characters.
    """
    import hashlib

    import numpy as np

    names = [name for name in source.matching(fields["pattern"]) if name.rsplit("/", 1)[-1] >= fields.get("since", "")]
    texts = [source.read(name).decode("utf-8") for name in names]
    parts = {
        "train": "\n\n".join(text for i, text in enumerate(texts) if i % 20 != 10),
        "test": "\n\n".join(text for i, text in enumerate(texts) if i % 20 == 10),
    }
    for split, wanted in fields.get("text_sha256", {}).items():
        if (got := hashlib.sha256(parts[split].encode()).hexdigest()) != wanted:
            raise UserError(
                f"{source.label}: the {split} text should have sha256 {wanted[:16]}…, has {got[:16]}… "
                f"({len(names)} files match {fields['pattern']!r})."
            )
    vocabulary = sorted(set(parts["train"]) | set(parts["test"]))
    points = np.array([ord(character) for character in vocabulary], np.uint32)
    dtype = np.uint8 if len(vocabulary) <= 256 else np.uint16
    arrays: dict[str, NDArray[Any]] = {
        split: np.searchsorted(points, np.frombuffer(text.encode("utf-32-le"), np.uint32)).astype(dtype)
        for split, text in parts.items()
    }
    return arrays, {"vocabulary": vocabulary, "documents": len(names)}


def image_folder(source: Source, fields: Mapping[str, Any]) -> Found:
    """A tree ``train/<class>/*`` and ``val/<class>/*``: paths and labels only, classes sorted; no picture is opened."""
    import numpy as np

    kinds = tuple(fields.get("suffixes", (".jpeg", ".jpg", ".png")))
    found: dict[str, list[tuple[str, str]]] = {"train": [], "val": []}
    for name in source.names:
        split, _, rest = name.partition("/")
        label, slash, _ = rest.partition("/")
        if split in found and slash and name.lower().endswith(kinds):
            found[split].append((name, label))
    classes = sorted({label for _, label in found["train"]})
    number = {label: index for index, label in enumerate(classes)}
    strange = sorted({label for _, label in found["val"]} - set(classes))
    if not classes or not found["val"] or strange:
        raise UserError(
            f"{source.label}: expected train/<class>/* and val/<class>/* with the same classes; found "
            f"{len(classes)} training classes, {len(found['val'])} validation pictures"
            + (f", and val classes without training pictures: {', '.join(strange[:3])}." if strange else ".")
        )
    arrays: dict[str, NDArray[Any]] = {}
    for split, key in (("train", "train"), ("val", "test")):
        arrays[f"{key}_path"] = np.array([name.encode() for name, _ in found[split]])
        arrays[f"{key}_y"] = np.array([number[label] for _, label in found[split]], np.int64)
    return arrays, {"class_names": classes, "classes": len(classes), "root": str(source.root)}


def lacking(name: str) -> str | None:
    """What a reader needs and this environment lacks, known before anything is downloaded; None = nothing."""
    if name not in READERS:
        return f"unknown format {name!r} on the card; known: {', '.join(READERS)}"
    if name in ("png-strips", "photos") and importlib.util.find_spec("PIL") is None:
        return "reading pictures needs Pillow: pip install pillow (or speedclaim[data])"
    return None


READERS: dict[str, Reader] = {
    "digits-csv": digits_csv,
    "idx": idx,
    "png-strips": png_strips,
    "cifar-pickles": cifar_pickles,
    "label-pickles": label_pickles,
    "text-files": text_files,
    "image-folder": image_folder,
    "photos": formats_arrays.photos,
    "ucr-series": formats_arrays.ucr_series,
    "raw-files": formats_arrays.raw_files,
}
