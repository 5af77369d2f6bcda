"""A training that an invocation planned and did not finish, completed with seeds that other invocations ran whole.

Seeds are blocks, so a planned set of them may be run in parts: on another day, or on another machine of the model. What
counts is fixed by the plan of one invocation, the anchor: it says which seeds and arms there are, its own whole blocks
stay, and of every other seed the oldest whole block counts. Seeds that it did not plan never join, so that nobody adds
seeds until a verdict pleases.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.judge import trained_runs
from harness.judge.claim import Claim
from harness.judge.trained_runs import AA, Trained

if TYPE_CHECKING:
    from harness.judge.evidence import Group

Block = Mapping[str, Trained]


def complete(claim: Claim, group: Group, others: Iterable[Group], header: Mapping[str, Any]) -> Group:
    """``group`` with the seeds that its invocation planned and lacks, from ``others`` under equal conditions.

    A block joins if the other invocation ran every arm that this claim needs (the alias of the baseline too) with the
    settings of the anchor, in one piece and alone where times are asked for.
    """
    conditions = _conditions(group)
    seeds, arms = _planned(claim, header)
    if not conditions or not seeds:
        return group
    own = _blocks(claim, group)
    settings = {arm: run.hyper for block in own.values() for arm, run in block.items()}
    lacking = [seed for seed in seeds if not _whole(own.get(seed, {}), arms)]
    if set(settings) < arms or not lacking:
        return group
    able = sorted(
        (one for one in others if one.file != group.file and _conditions(one) == conditions), key=lambda one: one.utc
    )
    found: dict[int, Group] = {}
    for one in able:
        for seed, block in _blocks(claim, one).items():
            if seed in lacking and _whole(block, arms) and _fits(claim, block, settings):
                found.setdefault(seed, one)
    rows = [row for row in group.rows if row["workload"] != claim.workload or trained_runs.seed_of(row) not in found]
    for seed, one in sorted(found.items()):
        mine = (row for row in one.rows if row["workload"] == claim.workload and trained_runs.seed_of(row) == seed)
        rows += [{**row, "file": group.file} for row in mine]
    told = tuple(f"seed {seed} from {Path(one.file).name}" for seed, one in sorted(found.items()))
    return replace(group, rows=tuple(rows), also=told)


def _conditions(group: Group) -> str:
    return str(group.rows[0].get("conditions") or "")


def _planned(claim: Claim, header: Mapping[str, Any]) -> tuple[Sequence[int], set[str]]:
    """Seeds that the invocation planned for the claim's workload, and the arms that a block needs."""
    for part in (header.get("plan") or {}).get("training") or ():
        if part.get("workload") == claim.workload:
            planned = set(part.get("arms") or ())
            sides = {arm for arm in (claim.candidate, claim.baseline) if arm is not None}
            aliases = {arm for arm in planned if arm.endswith(AA)}
            if sides <= planned:
                return [int(seed) for seed in part.get("seeds") or ()], sides | aliases
    return (), set()


def _blocks(claim: Claim, group: Group) -> dict[int, dict[str, Trained]]:
    """Seed -> arm -> the run that says something about it."""
    found: dict[int, dict[str, Trained]] = {}
    for run in trained_runs.from_rows(row for row in group.rows if row["workload"] == claim.workload):
        if run.status not in trained_runs.SILENT and not run.tuning and not run.synthetic:
            found.setdefault(run.seed, {})[run.arm] = run
    return found


def _whole(block: Block, arms: set[str]) -> bool:
    return arms <= set(block)


def _fits(claim: Claim, block: Block, settings: Mapping[str, Mapping[str, Any]]) -> bool:
    same = all(run.hyper == settings[arm] for arm, run in block.items() if arm in settings)
    watched = all(run.watched(claim.metric) for run in block.values())
    timed = not claim.timed or all(run.alone and not run.braked for run in block.values())
    return same and watched and timed
