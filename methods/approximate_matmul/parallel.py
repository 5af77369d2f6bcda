"""Work in threads: NumPy lets go of Python's lock in everything that takes long here."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


def shared_out(count: int, work: Callable[[range], None]) -> None:
    """Call ``work`` with ranges that cover 0 .. count - 1 together, in as many threads as torch may use.

    A range is every n-th number, so that work that grows with the number is spread evenly.
    """
    threads = max(min(torch.get_num_threads(), count), 1)
    shares = [range(first, count, threads) for first in range(threads)]
    if threads == 1:
        work(shares[0])
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, shares):
            pass
