"""Decoded arrays and their hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.catalogue.data.cards import DataCard
from harness.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: How the command line names the arrays: the inputs carry the split's name alone.
PUBLIC_NAMES = {
    "train_x": "train",
    "test_x": "test",
    "train_y": "train_labels",
    "test_y": "test_labels",
    "train_path": "train",
    "test_path": "test",
}


@dataclass(frozen=True)
class Arrays:
    """A data set in memory.

    Attributes:
        name: the card's name.
        kind: ``images``, ``text``, ``labels`` or ``folder``.
        arrays: images: ``train_x``, ``test_x`` uint8 [N, height, width, channels] and ``train_y``, ``test_y`` int64
            [N]; text: ``train``, ``test`` uint8 or uint16 [characters]; labels: int64 [N] each; folder: ``train_path``,
            ``test_path`` bytes [N] relative to ``meta["root"]``, and ``train_y``, ``test_y``.
        meta: what the card says beside: ``classes``, ``maximum`` (largest pixel value), ``mean`` and ``std`` (per
            channel, of pixels ÷ maximum, over the training set), ``vocabulary``, …
    """

    name: str
    kind: str
    arrays: Mapping[str, NDArray[Any]]
    meta: Mapping[str, Any]


def digest(array: NDArray[Any]) -> str:
    """sha256 of the array's C-contiguous bytes."""
    import numpy as np

    flat: NDArray[np.uint8] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.sha256(flat.data).hexdigest()


def differences(card: DataCard, found: Mapping[str, NDArray[Any]]) -> list[str]:
    """What is wrong with decoded arrays, one text per array; empty = they are what the card pins."""
    wrong = [f"{key} is missing" for key in card.arrays if key not in found]
    for key, array in found.items():
        spec = card.arrays.get(key)
        if spec is None:
            wrong.append(f"{key} is not on the card")
        elif (array.shape, str(array.dtype)) != (spec.shape, spec.dtype):
            wrong.append(f"{key} should be {spec.dtype} {list(spec.shape)}, is {array.dtype} {list(array.shape)}")
        elif spec.sha256 and (got := digest(array)) != spec.sha256:
            wrong.append(f"{key} should have sha256 {spec.sha256[:16]}…, has {got[:16]}…")
    return wrong


def check(card: DataCard, found: Mapping[str, NDArray[Any]], where: str) -> None:
    """Raise unless the arrays are those of the card."""
    wrong = differences(card, found)
    if wrong:
        raise UserError(f"data set {card.name!r} from {where} is not the one the card pins: {'; '.join(wrong)}.")
