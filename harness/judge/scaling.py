"""Scaling over processes: step time, memory of each and the share of communication, from stored training runs.

Weak scaling keeps the samples of each process, strong scaling those of the whole batch. With t_1 and t_N the mean
seconds of one update on one process and on N:

    efficiency = t_1 / t_N (weak),   t_1 / (N t_N) (strong).

The two verdicts are those of claims that give no number of their own: "near-linear" (weak efficiency of at least
``LINEAR`` at the largest N), and "memory like K-FAC when distributed" (state of each process at most ``MEMORY`` times
that of K-FAC under the same layout and N).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.record.environment import hardware

if TYPE_CHECKING:
    import pandas as pd

#: What "near-linear" must mean: nine tenths of the ideal (the usual reading; no source gives a number).
LINEAR = 0.9
#: What "like" must mean for bytes; FOP keeps one more gradient than K-FAC.
MEMORY = 1.15


@dataclass(frozen=True, kw_only=True)
class Key:
    """One cell: a method under one layout on N processes with one batch each."""

    device: str
    workload: str
    method: str
    sharding: str
    mode: str
    per_rank: int
    world: int

    @property
    def label(self) -> str:
        """For people."""
        name = self.method.removeprefix("training.")
        return f"{name}, layers owned" if self.sharding == "owner" else name


@dataclass(kw_only=True)
class Cell:
    """What the stored runs say; one value a repeat where there are several.

    Attributes:
        key: which cell.
        steps: mean seconds of one update.
        shares: share of the training clock in collectives; 0 on one process.
        peaks: largest device (on CPUs: host) bytes of a process.
        states: bytes of optimizer state by process, of the last repeat.
        reasons: why repeats have no numbers.
    """

    key: Key
    steps: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    states: list[float] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


def cells(runs: pd.DataFrame) -> list[Cell]:
    """Cells of every stored scaling run, in the order of the records."""
    found: dict[Key, Cell] = {}
    frame = runs[runs["phase"] == "training"]
    for _, group in frame.groupby("run", sort=False):
        first = group.iloc[0]
        note = (first["detail"] or {}).get("scaling") if isinstance(first["detail"], Mapping) else None
        if not isinstance(note, Mapping):
            continue
        for mode in note["modes"]:
            key = Key(
                device=hardware(str(first["device"])),
                workload=str(first["workload"]),
                method=str(first["method"]),
                sharding=_layout(first["detail"], note),
                mode=str(mode),
                per_rank=int(note["per_rank"]),
                world=int(note["world"]),
            )
            _add(found.setdefault(key, Cell(key=key)), group)
    return list(found.values())


def _layout(detail: Mapping[str, Any], note: Mapping[str, Any]) -> str:
    """Of a run: what older records note for a whole invocation, else its own hyper-parameter; one process has all."""
    own = (detail.get("hyper") or {}).get("sharding") if int(note["world"]) > 1 else None
    return str(note.get("sharding", own or "none"))


def _add(cell: Cell, group: pd.DataFrame) -> None:
    values = {str(row["metric"]): row["samples"] for _, row in group.iterrows() if row["samples"] is not None}
    first = group.iloc[0]
    if "step_s" not in values or first["status"] in ("error", "out_of_memory", "unsupported", "timeout"):
        cell.reasons.append(str(first["reason"] or first["status"]))
        return
    blocks = list(values["step_s"])
    cell.steps.append(statistics.fmean(blocks[1:] or blocks))
    cell.shares.append(values.get("communication_share", [0.0])[0])
    peaks = values.get("peak_device_bytes") or values.get("peak_host_bytes") or [0.0]
    cell.peaks.append(max(values.get("rank_peak_device_bytes") or values.get("rank_peak_host_bytes") or peaks))
    cell.states = list(values.get("rank_optimizer_state_bytes") or values.get("optimizer_state_bytes") or [])


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        key: which cell.
        step_s: median over the repeats.
        rate: samples a second over all processes.
        efficiency: median over the repeats against one process; None without one.
        low: smallest of them.
        high: largest of them.
        repeats: how many there are.
        share: of communication.
        peak: bytes.
        state: largest bytes of state of a process.
        state_ratio: over the state on one process.
        reason: why there is no number.
    """

    key: Key
    step_s: float | None = None
    rate: float | None = None
    efficiency: float | None = None
    low: float | None = None
    high: float | None = None
    repeats: int = 0
    share: float | None = None
    peak: float | None = None
    state: float | None = None
    state_ratio: float | None = None
    reason: str | None = None


def rows(found: Sequence[Cell]) -> list[Row]:
    """One row for each cell, sorted for reading."""
    by_key = {cell.key: cell for cell in found}
    order = sorted(found, key=lambda c: (c.key.device, c.key.workload, c.key.mode, c.key.label, c.key.world))
    return [_row(cell, _alone(cell.key, by_key)) for cell in order]


def _alone(key: Key, by_key: Mapping[Key, Cell]) -> Cell | None:
    """The same method on one process: with the same batch for each in weak scaling, the same whole batch in strong.

    One process has every layer, so its layout does not matter.
    """
    batch = key.per_rank if key.mode == "weak" else key.per_rank * key.world
    for cell in by_key.values():
        other = cell.key
        same = (other.device, other.workload, other.method, other.mode) == (
            key.device,
            key.workload,
            key.method,
            key.mode,
        )
        if same and other.world == 1 and other.per_rank == batch and cell.steps:
            return cell
    return None


def _row(cell: Cell, alone: Cell | None) -> Row:
    key = cell.key
    if not cell.steps:
        return Row(key=key, reason=cell.reasons[0] if cell.reasons else "not measured")
    step = statistics.median(cell.steps)
    share = 1 if key.mode == "weak" else key.world
    # Repeats were interleaved: the k-th of one belongs to the k-th of the other.
    ratios = [one / (share * many) for one, many in zip(alone.steps, cell.steps, strict=False)] if alone else []
    state = max(cell.states) if cell.states else None
    before = max(alone.states) if alone and alone.states else None
    return Row(
        key=key,
        step_s=step,
        rate=key.per_rank * key.world / step,
        efficiency=statistics.median(ratios) if ratios else None,
        low=min(ratios) if ratios else None,
        high=max(ratios) if ratios else None,
        repeats=len(cell.steps),
        share=statistics.median(cell.shares),
        peak=statistics.median(cell.peaks),
        state=state,
        state_ratio=state / before if state is not None and before else None,
    )


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A verdict on one claim for one method, layout and device."""

    claim: str
    subject: str
    device: str
    workload: str
    verdict: str
    reason: str


def findings(table: Iterable[Row]) -> list[Finding]:
    """Every verdict for every method that ran on several processes."""
    listed = list(table)
    return [*_linear(listed), *_memory(listed), *_third(listed)]


def _linear(table: Sequence[Row]) -> list[Finding]:
    best: dict[tuple[Any, ...], Row] = {}
    for row in table:
        key = row.key
        if key.mode == "weak" and key.world > 1 and row.efficiency is not None:
            place = (key.device, key.workload, key.method, key.sharding)
            if place not in best or best[place].key.world < key.world:
                best[place] = row
    return [_linear_one(row) for row in best.values()]


def _linear_one(row: Row) -> Finding:
    assert row.efficiency is not None
    assert row.low is not None
    assert row.high is not None
    shown = (
        f"weak efficiency {row.efficiency:.3f} on {row.key.world} ({row.low:.3f} to {row.high:.3f}, n = {row.repeats})"
    )
    if row.repeats < 3:
        verdict, more = "inconclusive", "; fewer than 3 repeats carry no verdict"
    elif row.low >= LINEAR:
        verdict, more = "reproduced", f"; at least {LINEAR:g} in every repeat"
    elif row.high < LINEAR:
        verdict, more = "not reproduced", f"; under {LINEAR:g} in every repeat"
    else:
        verdict, more = "inconclusive", f"; {LINEAR:g} lies between the repeats"
    return Finding(
        claim="near-linear", subject=row.key.label, device=row.key.device, workload=row.key.workload, verdict=verdict,
        reason=shown + more,
    )  # fmt: skip


def _memory(table: Sequence[Row]) -> list[Finding]:
    """FOP's state beside K-FAC's: bytes are exact, so one run decides."""
    made = []
    for row in table:
        key = row.key
        if not key.method.startswith("training.fop") or key.world == 1 or row.state is None or key.mode != "weak":
            continue
        twin = next(
            (r for r in table if r.state is not None and r.key.method == "training.kfac-cholesky"
             and (r.key.device, r.key.workload, r.key.sharding, r.key.mode, r.key.world, r.key.per_rank)
             == (key.device, key.workload, key.sharding, key.mode, key.world, key.per_rank)),
            None,
        )  # fmt: skip
        if twin is None or not twin.state:
            continue
        ratio = row.state / twin.state
        made.append(
            Finding(
                claim="memory like K-FAC when distributed",
                subject=key.label,
                device=key.device,
                workload=key.workload,
                verdict="reproduced" if ratio <= MEMORY else "not reproduced",
                reason=f"{ratio:.3f} times K-FAC's optimizer state on {key.world} processes, at most {MEMORY:g} wanted",
            )
        )
    return made


def _third(table: Sequence[Row]) -> list[Finding]:
    """Owned layers on four processes or more: bytes are exact, so one run decides."""
    made = []
    for row in table:
        key = row.key
        if key.sharding != "owner" or key.mode != "weak" or key.world < 4 or row.state_ratio is None:
            continue
        made.append(
            Finding(
                claim="state a process at most a third",
                subject=key.label,
                device=key.device,
                workload=key.workload,
                verdict="reproduced" if row.state_ratio <= 1 / 3 else "not reproduced",
                reason=f"{row.state_ratio:.3f} of one process' state on the fullest of {key.world}",
            )
        )
    return made
