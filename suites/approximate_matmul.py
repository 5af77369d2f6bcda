"""Suite ``approximate_matmul``: A B for a B known in advance and an A whose distribution is known. Imports no torch.

Every problem fixes the size of the approximations: ``codebooks`` for the methods that look up codes, ``rank`` for
sketches and low-rank factors (the largest power of two that is at most ``codebooks`` and below both D and M, since
they save nothing beyond). A method that takes neither (exact, int8, …) is measured beside them on each problem.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from harness.catalogue.protocol import Protocol
from harness.catalogue.suite import Problem, Suite, Tier
from harness.catalogue.task import Task

ERRORS: Mapping[str, str] = {
    "nmse": "mean((Y' - Y)^2) / var(Y) = 1 - R^2 over all entries: 1 is what the mean of Y achieves",
    "nmse_norm": "||Y' - Y||_F^2 / ||Y||_F^2: 1 is what the answer zero achieves",
    "pearson": "correlation of all entries with the true ones",
    "cosine": "cosine between Y' and Y as vectors; must be positive for an approximation without a plain twin",
    "max_abs_error": "largest error of an entry, in Y's units",
    "rounding_error": "||Y' - Y||_F / || |A| |B| ||_F, the scale of rounding; gates exact and quantised products",
    "beats_mean": "1 when the error is below that of the constant answer mean(Y), else 0",
    "argmax_agreement": "share of rows whose largest output (or kernel class) is the exact product's",
    "softmax_distance": "mean total variation between the class probabilities of both products (0 is equal)",
    "accuracy": "share of test rows classified rightly from the approximate product",
    "accuracy_exact": "the same from the exact product",
    "accuracy_retained": "accuracy / accuracy_exact",
    "top1_error": "1 - accuracy",
    "fidelity_error": "||Y' - Y_twin||_F / || |A| |B| ||_F against the plain NumPy twin, equally fitted",
    "mismatched_rows": "share of rows that clearly differ from the plain twin's",
}

TASK = Task(
    name="approximate_matmul",
    summary="Approximate product A B: B known in advance, training rows of A's distribution given",
    contract=(
        "make(**hyper).fit(a_train: Tensor[N', D], b: Tensor[D, M]) -> op; op(a: Tensor[N, D]) -> Tensor[N, M] in "
        "float32 or a's dtype on a's device, a untouched; fitting is not timed"
    ),
    runtime="suites.amm.runtime:RUNTIME",
    oracle="float64 product of the tensors passed, after their rounding; true labels where the data have them",
    needs=("torch",),
    errors=ERRORS,
    primary_error="nmse",
)

Device = Literal["cpu", "cuda"]
Row = tuple[str, str, tuple[int, int, int], tuple[int, ...], tuple[Tier, ...]]

QUICK: tuple[Tier, ...] = ("quick", "standard")
STANDARD: tuple[Tier, ...] = ("standard",)
FULL: tuple[Tier, ...] = ("full",)

#: Training rows that the classifiers' methods see; the paper's 50,000 change the trees little and cost minutes a block.
TRAIN_ROWS = 10_000


def rank(codebooks: int, inner: int, outer: int) -> int:
    """Inner size of a sketch that stands beside ``codebooks`` codebooks; at least 1."""
    size = 1
    while 2 * size <= codebooks and 2 * size < min(inner, outer):
        size *= 2
    return size


def _problems(device: Device, dtype: str, rows: list[Row]) -> list[Problem]:
    """Problems from rows ``kind, data, shape, codebooks, tiers``; the codebooks are part of the kind.

    A kind ending in ``_columns`` has A stored column by column, as the paper's programs store it: encoding then reads
    the columns that it compares and nothing else. In all others A lies row by row, as frameworks hold it.
    """
    made = []
    for kind, data, shape, sizes, tiers in rows:
        for codebooks in sizes:
            params: dict[str, Any] = {
                "data": data,
                "hyper": {"codebooks": codebooks, "rank": rank(codebooks, *shape[1:])},
            }
            if data.startswith("features:cifar10"):
                params["train_rows"] = TRAIN_ROWS
            if kind.endswith("_columns"):
                params["layout"] = "columns"
            made.append(
                Problem(
                    kind=f"{kind}_c{codebooks}", shape=shape, dtype=dtype, device=device, tiers=tiers, params=params
                )
            )
    return made


#: Patches of a 224 x 224 crop.
SOBEL, GAUSS = (222 * 222, 27, 2), (220 * 220, 75, 2)
CIFAR10, CIFAR100 = (10_000, 512, 10), (10_000, 512, 100)

#: Series of the UCR archive in aeon: kind and card, test rows, prototypes (fewer where the training set is small: the
#: paper's 128 need 128 training series, which none of these sets but OSULeaf has).
UCR: tuple[tuple[str, int, int], ...] = (
    ("osuleaf", 242, 64),
    ("acsf1", 100, 64),
    ("italypowerdemand", 1029, 32),
    ("gunpoint", 150, 32),
    ("arrowhead", 175, 32),
)

#: In the order of importance: a time budget drops whole problems from the end. The quick ones need pip alone.
CPU = _problems(
    "cpu",
    "float32",
    [
        ("digits", "digits", (355, 64, 10), (16,), QUICK),
        ("lowrank", "lowrank", (1000, 320, 128), (16,), QUICK),
        ("digits_cnn", "features:digits-cnn", (355, 512, 10), (16,), STANDARD),
        ("cifar10_net_columns", "features:cifar10-net", CIFAR100, (16,), STANDARD),
        ("cifar10_net_columns", "features:cifar10-net", CIFAR10, (16,), STANDARD),
        ("cifar10_net_columns", "features:cifar10-net", CIFAR100, (64, 8), STANDARD),
        ("cifar10_net_columns", "features:cifar10-net", CIFAR10, (64, 8), STANDARD),
        ("cifar10_net", "features:cifar10-net", CIFAR100, (16,), STANDARD),
        ("cifar10_net", "features:cifar10-net", CIFAR10, (16,), STANDARD),
        ("sobel", "filter:sobel@photos", SOBEL, (4,), STANDARD),
        ("gauss", "filter:gauss@photos", GAUSS, (4,), STANDARD),
        ("sobel_sample", "filter:sobel@photos-sample", SOBEL, (8,), STANDARD),
        ("gauss_sample", "filter:gauss@photos-sample", GAUSS, (8,), STANDARD),
        *((f"ucr_{name}", f"ucr:{name}", (n, 320, m), (16,), STANDARD) for name, n, m in UCR),
        ("digits", "digits", (355, 64, 10), (4, 8), STANDARD),
        ("digits_cnn", "features:digits-cnn", (355, 512, 10), (64, 4), STANDARD),
        ("lowrank", "lowrank", (10_000, 512, 100), (16,), STANDARD),
        ("cifar10_net_columns", "features:cifar10-net", CIFAR10, (32, 4, 2), FULL),
        ("cifar10_net_columns", "features:cifar10-net", CIFAR100, (32, 4, 2, 128), FULL),
        ("cifar10_net", "features:cifar10-net", CIFAR10, (64, 32, 8, 4, 2), FULL),
        ("cifar10_net", "features:cifar10-net", CIFAR100, (64, 32, 8, 4, 2), FULL),
        ("cifar10_enet", "features:cifar10-enet", (10_000, 1280, 10), (16, 64), FULL),
        ("cifar10_enet", "features:cifar10-enet", (10_000, 1280, 100), (16, 64), FULL),
        ("sobel", "filter:sobel@photos", SOBEL, (2, 8), FULL),
        ("gauss", "filter:gauss@photos", GAUSS, (2, 8), FULL),
        *((f"ucr_{name}", f"ucr:{name}", (n, 320, m), (4, 32), FULL) for name, n, m in UCR),
        ("digits", "digits", (355, 64, 10), (2, 32), FULL),
        ("digits_cnn", "features:digits-cnn", (355, 512, 10), (2, 8, 32), FULL),
        ("lowrank", "lowrank", (1000, 320, 128), (64,), FULL),
        ("lowrank", "lowrank", (10_000, 512, 100), (64,), FULL),
        *(("lowrank_columns", "lowrank", (10_000, d, 100), (16,), FULL) for d in (256, 512, 1024, 2048)),
        ("lowrank", "lowrank", (1024, 1024, 1024), (16, 64), FULL),
        ("lowrank", "lowrank", (4096, 1024, 256), (16, 64), FULL),
    ],
)

#: Pictures as they come, in bytes, patch by patch, or each pixel of all patches together (as a convolution may read
#: them). Every method may take bytes; those that know only floats cast them within their time.
PICTURES = _problems(
    "cpu",
    "uint8",
    [
        ("sobel", "filter:sobel@photos", SOBEL, (4,), STANDARD),
        ("gauss", "filter:gauss@photos", GAUSS, (4,), STANDARD),
        ("sobel_columns", "filter:sobel@photos", SOBEL, (4,), FULL),
        ("gauss_columns", "filter:gauss@photos", GAUSS, (4,), FULL),
    ],
)

#: The break-even grid: D/C from 64 down to 8 at the sizes where a tensor core is busy, and the paper's own shapes.
CUDA = [
    *_problems(
        "cuda",
        "bfloat16",
        [
            ("lowrank", "lowrank", (65_536, 1024, 1024), (16, 64), QUICK),
            ("lowrank", "lowrank", (1_000_000, 512, 100), (16,), QUICK),
            ("lowrank", "lowrank", (65_536, 1024, 1024), (128,), STANDARD),
            ("lowrank", "lowrank", (1_000_000, 512, 100), (64,), STANDARD),
            ("lowrank", "lowrank", (65_536, 4096, 128), (64, 256), STANDARD),
            ("lowrank", "lowrank", (65_536, 768, 3072), (12, 96), STANDARD),
            ("lowrank", "lowrank", (4096, 4096, 4096), (64, 256), STANDARD),
        ],
    ),
    *_problems(
        "cuda",
        "float32",
        [
            ("digits", "digits", (355, 64, 10), (16,), STANDARD),
            ("digits_cnn", "features:digits-cnn", (355, 512, 10), (16, 64), STANDARD),
            ("cifar10_net", "features:cifar10-net", CIFAR10, (16, 64), STANDARD),
            ("cifar10_net", "features:cifar10-net", CIFAR100, (16, 64), STANDARD),
            ("lowrank", "lowrank", (65_536, 1024, 1024), (16, 64), STANDARD),
            ("sobel", "filter:sobel@photos", SOBEL, (4,), STANDARD),
            ("gauss", "filter:gauss@photos", GAUSS, (4,), STANDARD),
            ("cifar10_enet", "features:cifar10-enet", (10_000, 1280, 10), (16, 64), FULL),
        ],
    ),
]

SUITE = Suite(
    name="approximate_matmul",
    task=TASK,
    problems=(*CPU, *PICTURES, *CUDA),
    baseline="approximate_matmul.exact",
    # Copying a 20 MB A costs more than a fast product of it: 25 samples give the block's median well enough.
    protocol=Protocol(max_inner=25),
    weight=0.3,
    quick=tuple(
        f"approximate_matmul.{name}" for name in ("maddness", "maddness-direct", "bolt", "int8-torch", "pca", "hash-jl")
    ),
)
