"""Run a function in several forked ranks of this machine: for tests and checks, without a plan or a record."""

from __future__ import annotations

import os
import pickle
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
    answers = []
    try:
        for read in reads:
            with os.fdopen(read, "rb") as stream:
                content = stream.read()
            answers.append(pickle.loads(content) if content else (False, "died without an answer"))
            if not answers[-1][0]:
                raise RuntimeError(f"rank {len(answers) - 1} of {size}: {answers[-1][1]}")
    finally:
        for pid in pids:
            if len(answers) < size or not answers[-1][0]:
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return [value for _, value in answers]


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
