"""Run a function in several forked ranks of this machine: for tests and checks, without a plan or a record."""

from __future__ import annotations

import contextlib
import os
import pickle
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

from harness.measure.training import distributed
from harness.measure.training.launch import surroundings
from harness.measure.training.world import World
from harness.measure.worker import die_with_parent


def together(
    size: int, function: Callable[[distributed.Ranks], Any], kind: str = "cpu", wait_s: float = 60.0
) -> list[Any]:
    """``function(ranks)`` in ``size`` forked processes; returns what each returned, by rank.

    The process must not have used threads of torch or CUDA. Results are pickled: plain data and CPU tensors.

    Raises:
        RuntimeError: a rank failed; the text is its traceback.
    """
    listening = socket.create_server(("127.0.0.1", 0))
    pids, reads = [], []
    for rank in range(size):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            _one(rank, size, function, kind, wait_s, listening, write)
        os.close(write)
        pids.append(pid)
        reads.append(read)
    listening.close()
    try:
        return _answers(reads, size)
    finally:
        # At a failure the others may wait for the one that has gone.
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for read in reads:
            os.close(read)


def _answers(reads: list[int], size: int) -> list[Any]:
    """What the ranks returned, as they come.

    Raises:
        RuntimeError: the first failure.
    """
    selector, contents = selectors.DefaultSelector(), [b""] * size
    found: dict[int, Any] = {}
    for rank, read in enumerate(reads):
        selector.register(read, selectors.EVENT_READ, rank)
    while len(found) < size:
        for key, _ in selector.select():
            rank = key.data
            if chunk := os.read(key.fd, 1 << 20):
                contents[rank] += chunk
                continue
            selector.unregister(key.fd)
            good, value = pickle.loads(contents[rank]) if contents[rank] else (False, "died without an answer")
            if not good:
                raise RuntimeError(f"rank {rank} of {size}: {value}")
            found[rank] = value
    return [found[rank] for rank in range(size)]


def _one(
    rank: int, size: int, function: Callable[..., Any], kind: str, wait_s: float, listening: socket.socket, write: int
) -> None:
    code = 1
    try:
        die_with_parent()
        surroundings(World(nproc=size), rank, rank)
        port = listening.getsockname()[1]
        mine = listening.detach() if rank == 0 else None
        ranks = distributed.join(kind, ("127.0.0.1", port), mine, wait_s)
        answer: tuple[bool, Any] = (True, function(ranks))
        ranks.meet()
        distributed.leave()
        code = 0
    except BaseException:
        answer = (False, traceback.format_exc())
    with os.fdopen(write, "wb") as stream:
        stream.write(pickle.dumps(answer))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
