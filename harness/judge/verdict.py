"""A claim judged against stored runs: one verdict per device, with the numbers and the reason behind the word."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import median
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, model_validator

from harness.judge import counted, evidence, findings, searched, stats, trained
from harness.judge.claim import Claim
from harness.judge.evidence import Group
from harness.judge.findings import Finding
from harness.judge.rules import Outcome

if TYPE_CHECKING:
    import pandas as pd

#: A re-implementation within 10 % of the published code's time on the same device is "like for like".
LIKENESS = 0.10


class Verdict(BaseModel):
    """The judgement of one claim on one device.

    ``ratio``, ``low`` and ``high`` are oriented as the claim's number: baseline ÷ candidate, except candidate ÷
    baseline for ``at-most``, the exponent for ``growth`` and the rate of hits for ``often`` and ``only-reaches``.
    A number that is open or unbounded is None. ``verdict`` is one of :data:`harness.judge.rules.WORDS`; ``phrase``
    says it to people, fair to other hardware.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    verdict: str
    phrase: str
    claimed: float | None
    ratio: float | None
    low: float | None
    high: float | None
    level: float | None
    floor: float | None
    n: int
    device: str
    reason: str
    command: str
    group: str
    title: str
    words: str
    source: str
    kind: str
    metric: str
    candidate: str
    baseline: str | None
    problems: list[dict[str, Any]]
    authors: dict[str, str]
    likeness: str
    counter: bool
    hardware: str | None
    note: str
    file: str | None

    @model_validator(mode="before")
    @classmethod
    def _finite(cls, fields: Any) -> Any:
        return _plain(fields)

    def describe(self) -> dict[str, Any]:
        """A JSON-ready copy with the same keys in the same order."""
        return self.model_dump(mode="json")


def judge(
    claim: Claim, runs: pd.DataFrame, headers: Iterable[Mapping[str, Any]] = (), program: str = "speedclaim"
) -> list[Verdict]:
    """Judge one claim.

    Args:
        claim: the published number.
        runs: a frame as :func:`harness.read_runs` returns it.
        headers: the files' headers, for their tiers.
        program: how the command line is called in printed commands.

    Returns:
        One verdict per device with a run of the candidate or the baseline on the claim's problems, sorted by
        device; without any, one "not testable here" that names what is missing.
    """
    return _judge(claim, runs, headers, program, _devices(runs))


def _devices(runs: pd.DataFrame) -> list[str]:
    return sorted(set(evidence.complete(runs)["device"].dropna().unique()))


def _judge(
    claim: Claim, runs: pd.DataFrame, headers: Iterable[Mapping[str, Any]], program: str, devices: list[str]
) -> list[Verdict]:
    if claim.kind == "exists":
        return [_verdict(claim, _exists(claim), None, "any", program)]
    if claim.workloads:
        judged = counted.on_workloads(claim, evidence.complete(runs), headers)
        if judged:
            return [_verdict(claim, one.finding, one.group, one.device, program) for one in judged]
        here = devices[0] if len(devices) == 1 else ""
        return [_verdict(claim, counted.without_runs(claim), None, here, program)]
    by_device: dict[str, list[Group]] = {}
    for group in evidence.groups(claim, runs, list(headers)):
        by_device.setdefault(group.device, []).append(group)
    silent = _silent(claim, runs, by_device)
    if not by_device and not silent:
        finding = Finding(outcome=Outcome(word="not testable here", why=_missing(claim, runs)))
        return [_verdict(claim, finding, None, devices[0] if len(devices) == 1 else "", program)]
    verdicts = []
    for device, groups in sorted(by_device.items()):
        group = evidence.choose(claim, groups)
        finding = searched.screened(claim, _find(claim, group), runs)
        verdicts.append(_verdict(claim, finding, group, device, program))
    for device, why in silent.items():
        finding = Finding(outcome=Outcome(word="not testable here", why=why))
        verdicts.append(_verdict(claim, finding, None, device, program))
    return sorted(verdicts, key=lambda verdict: verdict.device)


def _silent(claim: Claim, runs: pd.DataFrame, speaking: Iterable[str]) -> dict[str, str]:
    """Devices with runs of which none may speak -> why: from before ``since``, or with other threads."""
    if claim.since is None and claim.threads is None:
        return {}
    known, found = set(speaking), {}
    mine = evidence.matching(claim, runs)
    for device in (device for device in _devices(mine) if device not in known):
        own = evidence.recent(claim, mine[mine["device"] == device])
        if own.empty:
            when = f"{claim.since:%Y-%m-%d %H:%M} UTC"
            found[device] = f"its runs are older than {when}, when what is compared changed (see the note)"
        elif claim.threads is not None:
            used = ", ".join(f"{count:g}" for count in sorted(set(own["threads"].dropna()))) or "unknown"
            found[device] = (
                f"its runs used {used} threads, the source's {claim.threads}: OMP_NUM_THREADS={claim.threads}"
            )
    return found


def judge_all(
    claims: Iterable[Claim], runs: pd.DataFrame, headers: Iterable[Mapping[str, Any]] = (), program: str = "speedclaim"
) -> list[Verdict]:
    """The verdicts of every claim, in the ledger's order."""
    kept, devices = list(headers), _devices(runs)
    runs = evidence.complete(runs)
    trained = runs["workload"].notna()
    parts = {True: runs[trained], False: runs[~trained]}
    return [verdict for claim in claims for verdict in _judge(claim, parts[claim.on_training], kept, program, devices)]


def _find(claim: Claim, group: Group) -> Finding:
    try:
        if claim.workload is not None:
            return trained.on_workload(claim, group)
        return findings.on_problems(claim, group)
    except stats.NoSharedBlock as error:
        return Finding(outcome=Outcome(word="inconclusive", why=str(error)))
    except ValueError as error:
        return Finding(outcome=Outcome(word="invalid", why=str(error)))


def _exists(claim: Claim) -> Finding:
    latest = max(claim.evidence, key=lambda e: e.date)
    supporting = [e for e in claim.evidence if e.found]
    if not supporting:
        why = f"looked for, last on {latest.date}, not found: {latest.what} ({latest.source})"
        return Finding(outcome=Outcome(word="not reproduced", why=why))
    shown = max(supporting, key=lambda e: e.date)
    outcome = Outcome(word="reproduced", why=f"seen on {shown.date}: {shown.what} ({shown.source})")
    if not latest.found:
        outcome = Outcome(word="partly", why=f"seen on {shown.date}, gone on {latest.date}: {latest.what}")
    return Finding(outcome=outcome)


def _missing(claim: Claim, runs: pd.DataFrame) -> str:
    """What keeps the claim from being tested when no run concerns it."""
    runs = evidence.complete(runs)
    blocked = runs[(runs["method"] == claim.candidate) & (runs["status"] == "unsupported")]
    for reason in blocked["reason"].dropna():
        if "budget" not in str(reason):
            return str(reason)
    where = claim.workload or claim.problems[0]
    if len(claim.problems) > 1:
        where += f" or the claim's {len(claim.problems) - 1} other problems"
    absent = f"no stored run of {claim.candidate} on {where}"
    if claim.threads is not None and claim.baseline is None:
        absent += f" with OMP_NUM_THREADS={claim.threads}"
    return f"needs {', '.join(claim.needs)}; {absent}" if claim.needs else absent


def _phrase(claim: Claim, outcome: Outcome, device: str, threads: str = "") -> str:
    """The verdict in words; on hardware that the source did not use, never a bare "not reproduced"."""
    whys = [why for why in (outcome.why, threads) if why]
    why = f" ({'; '.join(whys)})" if whys else ""
    if outcome.why.startswith("wrong answer"):
        return "not reproduced (wrong answer)"
    if outcome.word in ("inconclusive", "not testable here", "invalid"):
        return f"{outcome.word}: {outcome.why}"
    if claim.kind == "exists" or claim.strict(device):
        return f"{outcome.word}{why}"
    said = f"claimed on {claim.hardware}" if claim.hardware else "hardware of the claim not stated"
    carried = {"reproduced": "holds on", "partly": "partly holds on", "not reproduced": "does not carry over to"}
    detail = "; ".join([*whys, said])
    return f"{carried[outcome.word]} {device} ({detail})"


def likeness(claim: Claim, method: str | None, author: str, group: Group | None) -> str:
    """How close what ran is to the published code: by author, then by time against the published code's."""
    if author in ("library", "published code"):
        return "library"
    found = []
    for anchor in claim.anchors if group is not None else ():
        if group is None or anchor.method != method or anchor.device.lower() not in group.device.lower():
            continue
        rows = [row for row in group.rows if row["problem"] == anchor.problem]
        times = list(evidence.values(rows, anchor.method, anchor.metric).values())
        if times:
            found.append(abs(median(times) / anchor.value_s - 1) <= LIKENESS)
    if not found:
        return "unknown"
    return "like for like" if all(found) else "own implementation"


def _both_alike(claim: Claim, group: Group | None) -> str:
    found = [likeness(claim, claim.candidate, claim.candidate_author, group)]
    if claim.baseline is not None:
        found.append(likeness(claim, claim.baseline, claim.baseline_author, group))
    order = ("own implementation", "unknown", "like for like", "library")
    return min(found, key=order.index)


def _verdict(claim: Claim, finding: Finding, group: Group | None, device: str, program: str) -> Verdict:
    estimate, outcome = finding.estimate, finding.outcome
    numbers = findings.numbers(estimate) if estimate is not None else dict.fromkeys(("ratio", "low", "high", "level"))
    authors: dict[str, str] = {"candidate": claim.candidate_author}
    if claim.baseline is not None:
        authors["baseline"] = claim.baseline_author
    return Verdict(
        id=claim.id,
        verdict=outcome.word,
        phrase=_phrase(claim, outcome, device, group.threads if group else ""),
        claimed=claim.claimed,
        ratio=numbers["ratio"],
        low=numbers["low"],
        high=numbers["high"],
        level=numbers["level"],
        floor=finding.floor,
        n=estimate.n if estimate is not None else 0,
        device=device,
        reason="; ".join(part for part in (outcome.why, *finding.remarks, *_circumstances(claim, group)) if part),
        command=claim.reproduce(program),
        group=claim.group,
        title=claim.title,
        words=claim.words,
        source=claim.source,
        kind=claim.kind,
        metric=claim.metric,
        candidate=claim.candidate,
        baseline=claim.baseline,
        problems=finding.problems,
        authors=authors,
        likeness=_both_alike(claim, group),
        counter=claim.counter,
        hardware=claim.hardware,
        note=claim.note,
        file=group.file if group is not None else None,
    )


def _circumstances(claim: Claim, group: Group | None) -> tuple[str, ...]:
    """What else the reader of a number must know."""
    other = f"the baseline's problem is {claim.baseline_problem}" if claim.baseline_problem is not None else ""
    return (other, group.threads, *group.also) if group is not None else ()


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
