"""How many processes train together, and where: plain data, no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from harness.errors import UserError

#: Engine of the collectives by device kind.
BACKENDS = {"cuda": "nccl", "cpu": "gloo"}
#: Processes that a CPU may always have: enough to try out several ranks on a laptop, where they share its cores.
FEW = 8
#: Environment variable with another limit of processes on CPUs.
LIMIT = "SPEEDCLAIM_MAX_NPROC"


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of one invocation; rank = node_rank * nproc + local rank.

    Attributes:
        nproc: processes (on CUDA: one for each GPU) on this machine, and on every other one.
        nnodes: machines; each runs the same command with its own ``node_rank``.
        node_rank: this machine's number; machine 0 writes the record.
        rendezvous: ``HOST:PORT`` of machine 0; needed for several machines.
    """

    nproc: int = 1
    nnodes: int = 1
    node_rank: int = 0
    rendezvous: str | None = None

    @property
    def size(self) -> int:
        """Processes in all."""
        return self.nproc * self.nnodes

    @property
    def follows(self) -> bool:
        """Whether this machine works for machine 0 and keeps no record."""
        return self.node_rank > 0

    def address(self) -> tuple[str, int] | None:
        """Host and port of the rendezvous; None lets the system choose a port of this machine."""
        if self.rendezvous is None:
            return None
        host, _, port = self.rendezvous.rpartition(":")
        return host, int(port)

    def check(self, device: str, devices: int) -> None:
        """Refuse what cannot work.

        Args:
            device: ``cpu`` or ``cuda``.
            devices: CUDA devices that this machine has.

        Raises:
            UserError: numbers out of range, too few GPUs or cores, no meeting point for several machines.
        """
        for name, value in (("--nproc", self.nproc), ("--nnodes", self.nnodes)):
            if value < 1:
                raise UserError(f"{name} {value}: expected at least 1.")
        if not 0 <= self.node_rank < self.nnodes:
            raise UserError(
                f"--node-rank {self.node_rank}: expected 0 to {self.nnodes - 1} with --nnodes {self.nnodes}."
            )
        if device == "cuda" and self.size > 1 and devices < self.nproc:
            raise UserError(
                f"--nproc {self.nproc}: this machine shows {devices} CUDA device{'s' if devices != 1 else ''}, and "
                f"each process needs one of its own; lower --nproc, or train on CPUs with --device cpu."
            )
        if device == "cpu" and self.nproc > (limit := most()):
            raise UserError(
                f"--nproc {self.nproc}: this machine has {os.cpu_count() or 1} cores, so more than {limit} processes "
                f"would wait for one another; lower --nproc, or set {LIMIT}={self.nproc} to have them all the same."
            )
        if self.rendezvous is None and self.nnodes > 1:
            raise UserError("--nnodes: give --rendezvous HOST:PORT, the address of machine 0, on every machine.")
        if self.rendezvous is not None:
            host, _, port = self.rendezvous.rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 65536:
                raise UserError(f"--rendezvous {self.rendezvous}: expected HOST:PORT, e.g. 10.0.0.1:29500.")

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return asdict(self)


def most() -> int:
    """Processes that a CPU may have: one a core, ``FEW`` on small machines, or what ``LIMIT`` says.

    Raises:
        UserError: a limit that is no number.
    """
    told = os.environ.get(LIMIT, "")
    if not told:
        return max(FEW, os.cpu_count() or 1)
    if not told.isdigit() or int(told) < 1:
        raise UserError(f"{LIMIT}={told}: expected a whole number from 1.")
    return int(told)


#: One process.
SOLO = World()


def from_json(fields: Mapping[str, Any]) -> World:
    """The world that :meth:`World.to_json` wrote."""
    return World(**fields)
