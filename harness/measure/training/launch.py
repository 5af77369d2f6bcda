"""Several ranks on this machine: forked from one process that has imported torch, watched, and ended together.

A rank that dies, or that fails while the others do not, ends the run: all ranks are killed and one message says which
one it was and why. Ranks that fail alike (the same error everywhere, a refusal, divergence) go on to the next run.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from harness.measure.training import world as worlds
from harness.measure.training.world import World
from harness.measure.worker import Pipe, forked_child

#: Seconds that the other ranks get to fail alike once one has failed, and to say why once one has died.
GRACE_S, WORDS_S = 5.0, 1.0
TAIL = 300


@dataclass
class _Child:
    """One forked rank."""

    local: int
    rank: int
    pid: int
    read: int
    output: BinaryIO
    pending: bytes = b""
    code: int | None = None
    done: bool = False


@dataclass
class _Failure:
    rank: int
    status: str
    reason: str
    communication: bool
    died: bool = False


@dataclass
class _Watch:
    """What the ranks said of the run under way."""

    ended: set[int] = field(default_factory=set)
    failures: list[_Failure] = field(default_factory=list)
    until: float | None = None

    def fail(self, failure: _Failure, grace: float) -> None:
        self.failures.append(failure)
        limit = time.monotonic() + grace
        self.until = limit if self.until is None else min(self.until, limit)

    def cause(self) -> _Failure:
        """A death, else the first own failure, else the first of all."""
        order = sorted(self.failures, key=lambda one: (not one.died, one.communication))
        return order[0]


def launch(job: Mapping[str, Any], pipe: Any) -> None:
    """Fork this machine's ranks over a ``train`` job; rank 0's messages go to ``pipe`` as they are."""
    import torch  # noqa: F401 (once, for all ranks)

    from harness.measure.training import distributed, worker  # noqa: F401

    world = worlds.from_json(job["world"])
    address, listening = _meeting_point(world)
    children = [_fork(job, world, local, address, listening) for local in range(world.nproc)]
    if listening is not None:
        listening.close()
    try:
        _watch(children, world, pipe)
    finally:
        _end(children)


def _meeting_point(world: World) -> tuple[tuple[str, int], socket.socket | None]:
    """Address of rank 0's store; on rank 0's own machine with its listening socket, so that no port can be lost."""
    address = world.address()
    if world.follows:
        assert address is not None
        return address, None
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", 0) if address is None else ("", address[1]))
    listening.listen(256)
    listening.set_inheritable(True)
    return ("127.0.0.1", listening.getsockname()[1]) if address is None else address, listening


def _fork(
    job: Mapping[str, Any], world: World, local: int, address: tuple[str, int], listening: socket.socket | None
) -> _Child:
    read, write = os.pipe()
    output = tempfile.TemporaryFile()  # noqa: SIM115 (closed in _end)
    rank = world.node_rank * world.nproc + local

    def work() -> None:
        os.close(read)
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
        surroundings(world, rank, local)
        from harness.measure.training import worker

        if rank != 0 and listening is not None:
            listening.close()
        mine = listening.detach() if rank == 0 and listening is not None else None
        worker.rank(job, Pipe(write), address, mine)

    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        forked_child(work)
    os.close(write)
    return _Child(local, rank, pid, read, output)


def surroundings(world: World, rank: int, local: int) -> None:
    """What torch.distributed, a method or a library below may read."""
    from harness.record import environment

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world.size), "LOCAL_RANK": str(local),
                   "LOCAL_WORLD_SIZE": str(world.nproc)}  # fmt: skip
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, environment.threads() // world.nproc)))
    # NVLink multicast saves little at these sizes, and a process killed within it, as the fellows of a dead rank are,
    # can leave a shared host's GPUs unusable. Whoever sets the variable decides.
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    if world.nnodes == 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


# -- watching ----------------------------------------------------------------------------------------------------------


def _watch(children: list[_Child], world: World, pipe: Any) -> None:
    selector = selectors.DefaultSelector()
    for each in children:
        selector.register(each.read, selectors.EVENT_READ, each)
    watch = _Watch()
    while any(child.code is None for child in children):
        wait = None if watch.until is None else max(0.0, watch.until - time.monotonic())
        for key, _ in selector.select(timeout=wait):
            child: _Child = key.data
            chunk = os.read(child.read, 1 << 16)
            if chunk:
                child.pending += chunk
                *lines, child.pending = child.pending.split(b"\n")
                for line in lines:
                    _message(json.loads(line), child, children, watch, pipe)
                continue
            selector.unregister(child.read)
            child.code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
            if child.code != 0 or not child.done:
                watch.fail(_death(child), WORDS_S)
        if watch.until is not None and time.monotonic() >= watch.until:
            cause = watch.cause()
            status = "error" if cause.died else cause.status
            pipe.send(event="lost", status=status, reason=f"rank {cause.rank} of {world.size}: {cause.reason}")
            return


def _message(message: dict[str, Any], child: _Child, children: list[_Child], watch: _Watch, pipe: Any) -> None:
    """Rank 0's messages pass; an end of the run is noted for every rank."""
    event = message.get("event")
    if event == "done":
        child.done = True
    elif event == "ended":
        watch.ended.add(child.rank)
        if message["failed"]:
            grace = GRACE_S if not message["communication"] else 2 * WORDS_S
            watch.fail(_Failure(child.rank, message["status"], message["reason"], message["communication"]), grace)
        if watch.failures and len(watch.ended) == len(children) and not any(f.died for f in watch.failures):
            # all of them ended: they compare notes and go on, unless one of them never comes to that
            watch.until = time.monotonic() + GRACE_S
    elif event == "agreed":
        watch.ended, watch.failures, watch.until = set(), [], None
    if event not in ("ended", "agreed", "done") and (child.rank == 0 or message.get("kind") == "followed"):
        pipe.send(**message)


def _death(child: _Child) -> _Failure:
    assert child.code is not None
    if child.code < 0:
        with_kill = "; lack of memory is one cause" if child.code == -signal.SIGKILL else ""
        what = f"the process died of {signal.Signals(-child.code).name}{with_kill}"
    else:
        what = f"the process ended with exit code {child.code} in the middle of the work"
    size = child.output.seek(0, os.SEEK_END)
    child.output.seek(max(0, size - 4000))
    lines = child.output.read().decode(errors="replace").strip().splitlines()
    text = " | ".join(line.strip() for line in lines[-3:] if line.strip())
    return _Failure(child.rank, "error", what + (f": {text[-TAIL:]}" if text else ""), False, died=True)


def _end(children: list[_Child]) -> None:
    """Nothing stays behind."""
    for child in children:
        if child.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child.pid, 0)
        os.close(child.read)
        child.output.close()
