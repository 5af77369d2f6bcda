"""Time of refreshing the low-rank inverses of all factors of VGG16 with batch norm, and of Brand's update, by method.

    python -m methods.kfac._bench_low_rank [--quick] [--device cpu] [--precision ieee|tf32] [--rank 220] [--out FOLDER]

First every inverse is compared with a dense float64 solve on one drifting factor. Then one refresh of the 15 layers'
30 factors (a few percent of each replaced since the last one), after a first one and a warm-up: device time by events,
the host's own time until the calls have returned, and peak memory; then single factors by width, and Brand's update
with 256 rows. An arm that fails is printed and the rest goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.kfac.inverse import brand, inverse
from methods.kfac.refresh import Job, Refresher, Slot

#: Widths of the input and output factors: CIFAR's VGG16 with batch norm and a head 512-512-10, biases counted.
VGG16 = [28, 577, 577, 1153, 1153, 2305, 2305, 2305, *[4609] * 5, 513, 513]
VGG16 += [64, 64, 128, 128, 256, 256, 256, *[512] * 7, 10]
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "cholesky": ("cholesky", {}),
    "rsvd power 4 (published)": ("rsvd", {"power": 4}),
    "rsvd power 1, warm": ("rsvd", {"power": 1, "warm": True}),
    "sre power 4 (published)": ("sre", {"power": 4}),
    "sre power 1, warm": ("sre", {"power": 1, "warm": True}),
    "subspace power 1": ("subspace", {"power": 1, "oversampling": 12}),
    "subspace power 1, no dense": ("subspace", {"power": 1, "oversampling": 12, "dense": False}),
    "subspace power 2": ("subspace", {"power": 2, "oversampling": 12}),
}


def factor(size: int, device: str, seed: int = 0) -> Tensor:
    """A running mean like those of training: a large mean direction, a decaying spectrum, a rest of the identity."""
    generator = torch.Generator(device).manual_seed(seed * 100_003 + size)
    rows = torch.randn(min(2 * size, 4096), size, generator=generator, device=device)
    rows = rows * torch.arange(1, size + 1, device=device) ** -0.7 + 0.3
    return (rows.mT @ rows / len(rows) + 1e-3 * torch.eye(size, device=device))[None]


def drifted(matrix: Tensor, seed: int) -> Tensor:
    """14 % replaced: three updates of a running mean with decay 0.95."""
    return 0.86 * matrix + 0.14 * factor(matrix.shape[1], str(matrix.device), seed)


def built(arm: str, rank: int) -> Any:
    """The back-end of an arm."""
    name, options = ARMS[arm]
    return inverse(name, **options, **({} if name == "cholesky" else {"rank": rank, "relative": True}))


def error(arm: str, device: str, quick: bool) -> dict[str, float]:
    """Relative error of the inverse's product, after three refreshes of a drifting factor, against float64."""
    size, rank = (300, 60) if quick else (1153, 220)
    backend, state = built(arm, rank), None
    matrix = factor(size, device)
    for seed in range(1, 4):
        top = torch.linalg.eigvalsh(matrix.double())[0, -1]
        lam = torch.full((1,), 0.1, device=device) * (top.float() if arm == "cholesky" else 1.0)
        state, good = backend.refresh(matrix, lam, state)
        assert bool(good.all()), "refresh failed"
        last, matrix = matrix, drifted(matrix, seed)
    columns = torch.randn(1, size, 64, generator=torch.Generator().manual_seed(0)).to(device)
    whole = last.double() + 0.1 * top * torch.eye(size, dtype=torch.float64, device=device)
    wanted = torch.linalg.solve(whole, columns.double())
    return {"error": float((backend.apply(state, columns) - wanted).norm() / wanted.norm())}


def timed(call: Callable[[], Any], device: str, repeats: int) -> tuple[float, float]:
    """Median milliseconds of the device, and of the host until the call has returned."""
    spans, hosts = [], []
    for _ in range(repeats):
        if device == "cpu":
            begin = time.perf_counter()
            call()
            spans.append(1e3 * (time.perf_counter() - begin))
            hosts.append(spans[-1])
            continue
        cuda: Any = torch.cuda
        cuda.synchronize()
        first, last = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        begin = time.perf_counter()
        first.record()
        call()
        last.record()
        hosts.append(1e3 * (time.perf_counter() - begin))
        last.synchronize()
        spans.append(float(first.elapsed_time(last)))
    return statistics.median(spans), statistics.median(hosts)


def refresh(arm: str, sizes: Sequence[int], device: str, rank: int, repeats: int) -> dict[str, float]:
    """One refresh of factors of these widths."""
    refresher = Refresher(built(arm, rank))
    matrices = [factor(size, device) for size in sizes]
    lams = [torch.full((1,), 0.1, device=device) for _ in matrices]
    if arm == "cholesky":
        lams = [lam * matrix.diagonal(dim1=1, dim2=2).sum(1) for lam, matrix in zip(lams, matrices, strict=True)]
    jobs = [Job(Slot(), matrix, lam) for matrix, lam in zip(matrices, lams, strict=True)]
    refresher.refresh(jobs)
    refresher.settle()
    for job in jobs:
        job.matrix = drifted(job.matrix, 1)
    refresher.refresh(jobs)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    span, host = timed(lambda: refresher.refresh(jobs), device, repeats)
    refresher.settle()
    found = {"ms": span, "host_ms": host, "failed": float(sum(refresher.counters.values()))}
    if device != "cpu":
        found["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return found


def follow(size: int, device: str, rank: int, repeats: int) -> dict[str, float]:
    """Brand's update of ``rank`` modes with 256 rows."""
    start = torch.linalg.qr(torch.randn(1, size, rank, device=device)).Q
    values = torch.logspace(0, -2, rank, device=device)[None]
    rows, keep = torch.randn(1, 256, size, device=device) / 16, torch.tensor(0.95, device=device)
    brand.follow(start, values, rows, keep, rank)
    span, host = timed(lambda: brand.follow(start, values, rows, keep, rank), device, repeats)
    return {"ms": span, "host_ms": host}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="few repeats; on a CPU small widths")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="ieee", choices=("ieee", "tf32"))
    parser.add_argument("--rank", type=int, default=220)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = options.precision == "tf32"
    tiny = options.device == "cpu"
    whole = [min(size, 300) for size in VGG16] if tiny else VGG16
    rank, repeats = (40 if tiny else options.rank), (3 if options.quick else 10)
    widths = [257, 300] if tiny else ([1153, 4609] if options.quick else [513, 1153, 2305, 4609, 8193])
    brands = [400, 800] if tiny else ([2049, 16385] if options.quick else [1025, 2049, 4097, 8193, 16385])
    device = options.device
    tasks: dict[str, Callable[[], dict[str, float]]] = {
        **{f"error of {arm}": partial(error, arm, device, options.quick or tiny) for arm in ARMS},
        **{f"all factors, {arm}": partial(refresh, arm, whole, device, rank, repeats) for arm in ARMS},
        **{
            f"width {size}, {arm}": partial(refresh, arm, [size], device, rank, repeats)
            for size in widths
            for arm in ARMS
        },
        **{f"width {d}, Brand, 256 rows": partial(follow, d, device, min(rank, d - 257), repeats) for d in brands},
    }
    results: dict[str, Any] = {}
    for label, task in tasks.items():
        try:
            results[label] = task()
            shown = "  ".join(f"{key} {value:.4g}" for key, value in results[label].items())
        except Exception as failure:
            results[label] = {"failure": f"{type(failure).__name__}: {failure}"}
            shown = traceback.format_exc(limit=3)
        print(f"{label}: {shown}", flush=True)
    print("\nrefresh of all factors      ms    host ms   error", flush=True)
    for arm in ARMS:
        one, other = results[f"all factors, {arm}"], results[f"error of {arm}"]
        print(
            f"{arm:26s} {one.get('ms', float('nan')):7.2f} {one.get('host_ms', float('nan')):8.2f} "
            f"  {other.get('error', float('nan')):.2e}",
            flush=True,
        )
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        name = torch.cuda.get_device_name() if not tiny else "cpu"
        head = {"torch": torch.__version__, "device": name, "precision": options.precision, "rank": rank}
        path = options.out / f"kfac-low-rank-{options.precision}.json"
        path.write_text(json.dumps({**head, "results": results}, indent=1))


if __name__ == "__main__":
    main()
