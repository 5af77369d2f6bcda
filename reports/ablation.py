"""Component ablation: which part of FOP earns what, one part at a time, in updates to the target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.judge import stats, training_summary
from harness.judge.stats import RatioEstimate
from harness.judge.trained_runs import AA, Trained
from reports import board_figures, figures, plain, training
from reports.boards import Board, Cell, Section, Table, number, saved
from reports.figures import Chart
from reports.tables import SIDES
from reports.training import Place

Row = dict[str, Any]
METRIC = "steps_to_target"
FULL = "training.fop"
_SAVED = ("component", "without", "with", "ratio", "low", "high", "n", "floor")
#: Without -> with one component, and what that component is. Names are those of the catalogue.
COMPONENTS = (
    (
        "training.kfac-cholesky",
        "training.kfac-halves",
        "two half batches",
        "gradients, statistics and batch norm by halves",
    ),
    ("training.kfac-halves", "training.fop-beta0", "eta alone", "with beta = 0 eta is the same number in every layer"),
    ("training.fop-eta1", FULL, "eta of each layer", "step sizes by layer"),
    ("training.fop-beta0", FULL, "the orthogonal term", "beta times the Fisher-orthogonal difference"),
    ("training.fop-random", FULL, "the sign of beta", "the orthogonal term in its own direction, not a random one"),
    ("training.kfac-cholesky", FULL, "all together", "FOP against K-FAC"),
)
#: Arms whose eta is close to 2 (1 with ``eta_ref="mean"``), so that their step is that much longer at one rate.
_WITH_ETA = ("training.fop", "training.fop-beta0", "training.fop-random")
#: Lengths of steps that differ by more than this may be the whole difference of two arms.
_ALIKE = 1.1
_ARMS = frozenset(name for one in COMPONENTS for name in one[:2])


def rows(place: Place) -> list[Row]:
    """One row per component whose two arms were trained in one invocation."""
    floor = noise(place)
    found = []
    for without, with_it, name, what in COMPONENTS:
        sides = [place.arms.get(arm) for arm in (without, with_it)]
        if sides[0] is None or sides[1] is None or _file(sides[0]) != _file(sides[1]):
            continue
        estimate = ratio(sides[0], sides[1])
        if estimate is None:
            continue
        found.append({"component": name, "what": what, "without": without, "with": with_it, "floor": floor,
                      **_numbers(estimate, floor),
                      "rates": [rate(arm, side) for arm, side in zip((without, with_it), sides, strict=True) if side],
                      "hits": [f"{_hits(side)} of {len(side)}" for side in sides if side is not None]})  # fmt: skip
    return found


def rate(arm: str, runs: Mapping[int, Trained]) -> float | None:
    """Learning rate times the largest eta of the arm: what its step is long at small c; None where it is not told."""
    hyper = max(runs.values(), key=lambda run: run.utc).hyper
    lr = plain.number(hyper.get("lr"))
    if lr is None:
        return None
    return lr * (2.0 if arm in _WITH_ETA and hyper.get("eta_ref", "sum") == "sum" else 1.0)


def unequal(row: Row) -> bool:
    """Whether the two sides' rates are known to differ, so that the rate may be what is seen."""
    one, two = row["rates"]
    return one is not None and two is not None and max(one, two) > _ALIKE * min(one, two)


def _file(runs: Mapping[int, Trained]) -> str:
    return max(runs.values(), key=lambda run: run.utc).file


def _hits(runs: Mapping[int, Trained]) -> int:
    return sum(run.reached for run in runs.values())


def ratio(without: Mapping[int, Trained], with_it: Mapping[int, Trained]) -> RatioEstimate | None:
    """Updates without ÷ with over shared seeds; None without a shared seed or a recorded budget."""
    try:
        first, second = ({seed: run.hit(METRIC) for seed, run in runs.items()} for runs in (without, with_it))
        return stats.censored_ratio(first, second)
    except ValueError:
        return None


def noise(place: Place) -> float | None:
    """A/A floor in updates: an arm against its alias of an independent seed stream."""
    base = training_summary.baseline_of(place.arms)
    if base is None or base not in place.arms:
        return None
    estimate = ratio(place.arms[base], place.arms[base + AA])
    return stats.floor_of(estimate) if estimate is not None else None


def _numbers(estimate: RatioEstimate, floor: float | None) -> Row:
    side = "open"
    if estimate.enough and floor is not None and math.isfinite(floor):
        if estimate.low > 1 + floor:
            side = "faster"
        elif estimate.high < 1 / (1 + floor):
            side = "slower"
        elif estimate.low > 1 / (1 + floor) and estimate.high < 1 + floor:
            side = "level"
    value = estimate.ratio if math.isfinite(estimate.ratio) else None
    high = estimate.high if math.isfinite(estimate.high) else None
    return {"ratio": value, "low": estimate.low, "high": high, "n": estimate.n, "side": side,
            "tone": SIDES[side][1], "enough": estimate.enough}  # fmt: skip


def made(places: Sequence[Place]) -> list[Board]:
    """One page per workload and device with at least one component."""
    found = []
    for place in places:
        own = rows(place) if FULL in place.arms and len(_ARMS & set(place.arms)) > 1 else []
        if own:
            found.append(_board(place, own))
    return found


def _board(place: Place, own: list[Row]) -> Board:
    return Board(
        slug=plain.anchor("ablation", place.workload, place.device),
        title=f"What earns FOP's gain: {place.workload} on {place.device}",
        lead=lead(own),
        sections=(
            Section(
                heading="One component at a time",
                note="Updates to the target without the component ÷ with it, paired by seed; right of 1 the component "
                "helps. A missed target bounds a ratio from one side (arrow). Band: the A/A noise floor.",
                charts=(_forest(place, own),),
                tables=(_table(own),),
            ),
            Section(
                heading="The arms",
                note="On the quadratic model that FOP's equations minimise, beta = 0 with eta = 2 is the better "
                "minimum, so beta = 0 is the arm that decides, at an equally tuned rate.",
                tables=(_arms(place),),
            ),
        ),
        links=((f"{place.slug}.html", f"all methods on {place.workload}"),),
    )


def lead(own: Sequence[Row]) -> str:
    """Which component helps, hurts, or is not told from noise."""
    parts = [row for row in own if row["component"] != "all together"]
    words = {
        "faster": "needs fewer updates thanks to",
        "slower": "needs more updates because of",
        "level": "is unchanged within noise by",
    }
    told = []
    for side, words_of in words.items():
        names = [row["component"] for row in parts if row["side"] == side]
        if names:
            told.append(f"FOP {words_of} {', '.join(names)}.")
    left = [row["component"] for row in parts if row["side"] == "open"]
    if left:
        told.append(f"Not decided: {', '.join(left)}.")
    if names := [row["component"] for row in own if unequal(row)]:
        told.append(f"The two sides' rate times eta differs for {', '.join(names)}: the rate may be what is seen.")
    seeds = min((row["n"] for row in own), default=0)
    if seeds < stats.MIN_BLOCKS:
        told.append(f"{plain.count(seeds, 'seed')} can only screen: a verdict needs six.")
    return " ".join(told)


def _forest(place: Place, own: list[Row]) -> Chart:
    anchor, title = plain.anchor("chart", "ablation", place.workload, place.device), "Gain of each component"
    return Chart(
        id=anchor, title=title, sentence=lead(own), svg=board_figures.components(anchor, title, own),
        rows=saved(own, _SAVED),
    )  # fmt: skip


def _table(own: Sequence[Row]) -> Table:
    head = ("component", "without", "with", "updates without ÷ with", "interval", "noise floor", "seeds")
    made_rows = []
    for row in own:
        glyph = SIDES[row["side"]][0]
        shown = plain.times(row["ratio"]) if row["ratio"] is not None else "bounded"
        made_rows.append(
            (
                Cell(text=row["component"], small=(row["what"],)),
                Cell(text=figures.short(row["without"]), small=_small(row, 0)),
                Cell(text=figures.short(row["with"]), small=_small(row, 1)),
                number(f"{glyph} {shown}", row["ratio"], "" if row["enough"] else "a screen, no verdict"),
                Cell(text=plain.interval(row["low"], row["high"]), number=True),
                _floor(row["floor"]),
                number(str(row["n"]), row["n"]),
            )
        )
    return Table(id="components-table", caption="Components of FOP", head=head, rows=made_rows)


def _small(row: Row, side: int) -> tuple[str, ...]:
    rate_of = row["rates"][side]
    return (f"hits {row['hits'][side]}", *(() if rate_of is None else (f"rate × eta {rate_of:.3g}",)))


def _floor(floor: float | None) -> Cell:
    if floor is None:
        return number(plain.DASH, None)
    if math.isinf(floor):
        return number("unbounded", None, "the A/A pair missed too often")
    return number(plain.percent(floor), floor)


def _arms(place: Place) -> Table:
    order = [*dict.fromkeys(name for one in COMPONENTS for name in one[:2])]
    own = sorted((row for row in place.rows if row["arm"] in _ARMS), key=lambda row: order.index(row["arm"]))
    made_rows = [
        (
            Cell(text=row["arm"]),
            number(f"{row['hits']} of {row['n']}", row["rate"], *(row["reasons"][:1])),
            number(training.count_text(row["steps"]), row["steps"] if math.isfinite(row["steps"]) else 1e300),
            number(training.time_text(row["median_s"]), row["median_s"] if math.isfinite(row["median_s"]) else 1e300),
            number(plain.seconds(row["step_s"]), row["step_s"]),
            number(training.level_text(place.metric, row["final_mean"]), row["final_mean"]),
            number(plain.size(row["state_bytes"]), row["state_bytes"]),
        )
        for row in own
    ]
    head = ("arm", "hits", "updates", "time", "update", f"final {plain.spoken(place.metric)}", "optimizer state")
    return Table(id="arms-table", caption="Arms", head=head, rows=made_rows)
