"""Plain sentences generated from the numbers: what a page says above its tables and figures."""

from __future__ import annotations

from statistics import median
from typing import Any

import pandas as pd

from harness.record.environment import hardware
from reports import plain
from reports.cases import Case

Row = dict[str, Any]
#: Label and key of the small facts under a claim.
CLAIM_FACTS = (
    ("claimed", "claimed_text"),
    ("measured", "ratio_text"),
    ("interval", "interval_text"),
    ("noise floor", "floor_text"),
    ("blocks", "blocks_text"),
    ("attained level", "level_text"),
    ("device", "device"),
    ("candidate", "candidate"),
    ("baseline", "baseline"),
    ("metric", "metric"),
    ("kind", "kind"),
    ("likeness", "likeness"),
    ("authors", "authors"),
    ("hardware of the claim", "hardware"),
    ("note", "note"),
    ("record", "file"),
)
#: A noise floor above this hides most published gains.
NOISY = 0.10
UNTESTED = ("not testable here", "invalid")
#: A method is "no less accurate" while its error stays within this factor of the baseline's (the claims' own margin).
ERROR_MARGIN = 1.10


def where(files: list[Row]) -> str:
    """The devices of a report in a few words; several of a kind, or runs that share one, are no device of their own."""
    names = list(dict.fromkeys(hardware(row["device"]) for row in files))
    if not names:
        return "this machine"
    return " and ".join(names) if len(names) <= 2 else f"{len(names)} devices"


def front(ledger: list[Row], cases: list[Case], files: list[Row], trained: int = 0, workloads: int = 0) -> str:
    """The first sentences of the report: what was claimed, what was found, how sure that is."""
    timed = sum(case.time_s is not None for case in cases)
    found, stored = plain.count(len(cases), "case"), plain.count(len(files), "record file")
    text = f"{timed} of {found} were correct and timed in {stored}."
    if trained:
        whole = f"{plain.count(trained, 'training run')} of {plain.count(workloads, 'workload')}"
        text = f"{text.removesuffix('.')}, with {whole}." if cases else f"{whole} in {stored}."
    if not ledger:
        return text
    tested = [row for row in ledger if row["verdict"] not in UNTESTED]
    counted = {word: sum(row["verdict"] == word for row in tested) for word in ("reproduced", "partly", "inconclusive")}
    lost = sum(row["verdict"] == "not reproduced" for row in tested)
    says = (
        f"Published speed claims, measured again. Of {plain.count(len(tested), 'tested claim')}, "
        f"{counted['reproduced']} hold, {counted['partly']} hold in part and "
        f"{'none fails' if lost == 0 else f'{lost} does not' if lost == 1 else f'{lost} do not'}."
    )
    if counted["inconclusive"]:
        few = sum(row["verdict"] == "inconclusive" and "too few" in row["brief"] for row in tested)
        why = f", {'all' if few == counted['inconclusive'] else few} for want of repetitions" if few else ""
        says += f" {counted['inconclusive']} stay{'s' if counted['inconclusive'] == 1 else ''} open{why}."
    untested = len(ledger) - len(tested)
    says += f" {untested} more could not be tested." if untested else ""
    return f"{says} {text}"


def headlines(ledger: list[Row], cases: list[Case]) -> list[Row]:
    """Three cards: the claims, the best honest speed-up, the noise."""
    return [_claims_card(ledger), _best_card(cases), _noise_card(cases)]


def _claims_card(ledger: list[Row]) -> Row:
    tested = [row for row in ledger if row["verdict"] not in UNTESTED]
    good = sum(row["verdict"] == "reproduced" for row in tested)
    if not tested:
        return {
            "label": "Claims reproduced",
            "figure": plain.DASH,
            "text": "No claim could be tested on these records.",
        }
    gains = [row for row in tested if row["kind"].startswith("speedup") and row["ratio"] and row["claimed"]]
    short = [row for row in gains if row["verdict"] in ("partly", "not reproduced") and row["ratio"] < row["claimed"]]
    unsettled = sum(row["verdict"] == "inconclusive" for row in tested)
    text = "No measured speed-up falls short of its claim."
    text += f" {plain.count(unsettled, 'claim')} stay{'s' if unsettled == 1 else ''} open." if unsettled else ""
    if short:
        worst = min(short, key=lambda row: row["ratio"] / row["claimed"])
        text = f"Furthest off: {worst['title']}, claimed {worst['claimed_text']}, measured {worst['ratio_text']}."
    return {"label": "Claims reproduced", "figure": f"{good} of {len(tested)}", "text": text}


def _best_card(cases: list[Case]) -> Row:
    label = "Largest speed-up at no loss of accuracy"
    base = {(c.device, c.task, c.problem): c for c in cases if c.is_baseline}
    fair = [
        case for case in cases
        if case.effect is not None and case.effect.side == "faster"
        and _no_worse(case, base.get((case.device, case.task, case.problem)))
    ]  # fmt: skip
    if not fair:
        text = "No method as accurate as the baseline beats it beyond the noise floor."
        return {"label": label, "figure": plain.DASH, "text": text}
    best = max(fair, key=lambda case: case.effect.low if case.effect else 0)
    assert best.effect is not None
    text = (
        f"{best.method} on {best.problem} ({best.device}), interval "
        f"{plain.interval(best.effect.low, best.effect.high)} over {best.effect.n} blocks."
    )
    return {"label": label, "figure": plain.times(best.effect.ratio), "text": text}


def _no_worse(case: Case, base: Case | None) -> bool:
    """Within 1.10 times the baseline in every accuracy error that both report (fidelity is another question)."""
    if base is None:
        return False
    names = [name for name in base.errors if name.endswith("_error") and not name.startswith("fidelity")]
    shared = [name for name in names if name in case.errors]
    return bool(shared) and all(case.errors[name] <= ERROR_MARGIN * base.errors[name] for name in shared)


def _noise_card(cases: list[Case]) -> Row:
    floors = {(c.device, c.task, c.problem): c.noise for c in cases if c.noise is not None}
    label = "Noise floor, median over problems"
    if not floors:
        return {"label": label, "figure": plain.DASH, "text": "No baseline was timed against itself."}
    values = list(floors.values())
    (_, _, problem), worst = max(floors.items(), key=lambda item: item[1])
    text = f"A smaller difference is not believed. Worst problem: {problem} with {plain.percent(worst)}."
    if median(values) > NOISY:
        text += " The machine was busy: repeat the run when it is quiet before trusting any speed-up."
    return {"label": label, "figure": plain.percent(median(values)), "text": text}


def task(cases: list[Case]) -> str:
    """One device and task in two sentences."""
    methods = {case.method for case in cases}
    problems = {case.problem for case in cases}
    timed = sum(case.time_s is not None for case in cases)
    faster = {case.method for case in cases if case.effect is not None and case.effect.side == "faster"}
    text = (
        f"{plain.count(len(methods), 'method')} on {plain.count(len(problems), 'problem')}: {timed} of {len(cases)} "
        f"cases were correct and timed."
    )
    if not any(case.effect is not None for case in cases):
        return text + " No speed-up could be formed."
    beats = plain.count(len(faster), "method")
    text += f" {beats} beat{'s' if len(faster) == 1 else ''} the baseline beyond the noise floor somewhere."
    short = sum(case.effect is not None and not case.effect.enough for case in cases)
    return text + (f" {short} timed cases have too few blocks to be judged (marked ?)." if short else "")


def claim(row: Row) -> str:
    """One claim's finding in one sentence."""
    if row["ratio"] is None:
        return f"Nothing was measured for this claim on {row['device']}."
    claimed = f" against a claim of {row['claimed_text']}" if row["claimed"] is not None else ""
    floor = f" and a noise floor of {row['floor_text']}" if row["floor"] is not None else ""
    level = f" at {100 * row['level']:.1f} %" if row["level"] is not None else ""
    return (
        f"On {row['device']} the measured {row['quantity']} is {row['ratio_text']}{claimed}, with the interval "
        f"{row['interval_text']}{level}{floor}."
    )


def ledger(rows: list[Row]) -> str:
    """How many claims, from how many publications."""
    if not rows:
        return "No claim was judged."
    groups = len({row["group"] or row["id"] for row in rows})
    return (
        f"{plain.count(len(rows), 'row')} in {plain.count(groups, 'group')}; rows of one group test one published "
        f"statement under several conditions, and every verdict belongs to one device."
    )


def methods(cards: list[Row]) -> str:
    """How many methods are described."""
    tasks = len({card["task"] for card in cards})
    return f"{plain.count(len(cards), 'method')} of {plain.count(tasks, 'task')}, as the records describe them."


def audit(runs: pd.DataFrame, files: list[Row], discarded: list[Row]) -> str:
    """What the report stands on."""
    unfinished = sum(not row["complete"] for row in files)
    text = f"{len(runs):,} rows from {plain.count(len(files), 'record file')}"
    text += f", {unfinished} of them unfinished" if unfinished else ""
    return f"{text}; {plain.count(len(discarded), 'block')} discarded. Every number on these pages follows from them."
