"""Data sets made from others: long-tailed subsets and replaced labels; and the counts of folder data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.catalogue.data import arrays as hashing
from harness.catalogue.data.arrays import Arrays
from harness.catalogue.data.cards import DataCard
from harness.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def tail_counts(largest: int, imbalance: float, classes: int) -> list[int]:
    """Pictures of each class: ``int(largest * rho ** (c / (classes - 1)))`` with ``rho = 1 / imbalance``.

    Source: Cao et al. 2019 (LDAM), arXiv:1906.07413, section 4, exponential imbalance; class order unshuffled.
    """
    rho = 1.0 / imbalance
    return [int(largest * rho ** (c / (classes - 1))) for c in range(classes)]


def long_tailed(card: DataCard, base: Arrays) -> Arrays:
    """The training set thinned to :func:`tail_counts`; the test set untouched.

    One ``numpy.random.RandomState(seed)`` serves all classes in ascending order: class c keeps the first n_c entries of
    ``permutation`` of its indices (ascending). Kept samples stand class by class, each in the drawn order. The source
    fixes the counts and seed 0; this order of draws is ours, and the card pins the resulting hashes.
    """
    import numpy as np

    labels = base.arrays["train_y"]
    counts = tail_counts(int(card.derive["largest"]), float(card.derive["keep"]), int(card.meta["classes"]))
    random = np.random.RandomState(int(card.derive["seed"]))
    kept = []
    for c, count in enumerate(counts):
        mine = np.flatnonzero(labels == c)
        if len(mine) < count:
            raise UserError(f"{card.name!r} keeps {count} samples of class {c}, but {base.name!r} has {len(mine)}.")
        kept.append(random.permutation(mine)[:count])
    chosen = np.concatenate(kept)
    found = {**base.arrays, "train_x": base.arrays["train_x"][chosen], "train_y": labels[chosen]}
    hashing.check(card, found, base.name)
    return Arrays(card.name, base.kind, found, {**base.meta, **card.meta, "counts": counts, "base": base.name})


def relabelled(card: DataCard, labels: Arrays, base: Arrays, which: str) -> Arrays:
    """The base with its training labels replaced by one of the card's label sets."""
    if which not in labels.arrays:
        raise UserError(f"{card.name!r} has no labels {which!r}; it has {', '.join(sorted(labels.arrays))}.")
    noisy = labels.arrays[which]
    rate = float((noisy != base.arrays["train_y"]).mean())
    meta = {**base.meta, "labels": which, "label_noise": rate, "base": base.name}
    return Arrays(card.name, base.kind, {**base.arrays, "train_y": noisy}, meta)


def check_counts(
    card: DataCard, found: Mapping[str, NDArray[Any]], meta: dict[str, Any], where: str, partial: bool
) -> None:
    """Classes and pictures of a folder data set against the card; ``partial`` notes a difference instead of raising."""
    got = {"classes": meta["classes"], "train": len(found["train_y"]), "test": len(found["test_y"])}
    wanted = {key: value for key, value in card.meta.get("counts", {}).items() if got[key] != value}
    meta["complete"] = not wanted
    if wanted and not partial:
        texts = [f"{key} should be {value:,}, is {got[key]:,}" for key, value in wanted.items()]
        raise UserError(
            f"{where} is not all of {card.name!r}: {'; '.join(texts)}. load(…, partial=True) uses it all the same."
        )
