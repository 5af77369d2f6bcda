"""Which figures the approximate products of a device allow: rows chosen, a sentence read off them, then drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reports import break_even, kept_share, plain, product_figures, products
from reports.cases import Case
from reports.charts import Section
from reports.figures import Chart
from reports.products import Group

Row = dict[str, Any]
#: Figures of speed against accuracy on a page, problems in a figure of rates, bars in it.
FRONTS, RATE_PROBLEMS, BARS = 20, 4, 32
#: What counts as accurate in the sentences: the answer's variance explained, and accuracy kept.
GOOD = {"retained": 0.99, "explained": 0.9}
LABELS = {
    "retained": "accuracy retained, approximate ÷ exact",
    "explained": "1 − NMSE: share of the variance explained",
}
#: Less than this stands on the axis' edge: the answer "mean of Y" explains nothing, and who loses three answers in ten
#: is out of the question; an axis that holds published points goes as low as they do.
BOTTOM = {"retained": 0.7, "explained": 0.0}
NO_GPU = "No record of this task from a GPU is stored, so nothing is said about where look-ups break even there."
NO_DENSE = "No look-up method was timed beside a dense bf16, int8 or fp8 product of the same problem."


def sections(
    cases: list[Case], problems: Mapping[str, Row], device: str, gpu: Mapping[str, Any], elsewhere: list[str]
) -> list[Section]:
    """Heading, note and charts of one device's products; a section without a figure says why.

    Args:
        cases: all cases of the task on the device.
        problems: problem id -> description.
        device: its name.
        gpu: the environment's description of the GPU; empty on a CPU.
        elsewhere: GPUs that have cases of this task.
    """
    cases = [case for case in cases if case.method not in products.VARIANTS]
    styles = product_figures.looks(list(dict.fromkeys(case.method for case in cases)))
    found = products.groups(cases, problems)
    drawn = [chart for group in found for chart in _fronts(cases, group, styles, device)]
    rest = f" Shown: {FRONTS} of {len(drawn)} figures." if len(drawn) > FRONTS else ""
    note = (
        "Speed-up = time of the exact product ÷ time of the method, in one file. Lines join the sizes of one method: "
        "C codebooks, or a rank for sketches and low rank. Colours are families. Variants of MADDNESS in one option "
        "are in the table of options below."
    )
    kernels = kept_share.chart(cases, problems, styles, device)
    encoding = [encode_rates(cases, found, styles, device), lookup_rates(cases, found, styles, device)]
    kept = [chart for chart in encoding if chart is not None]
    if gpu:
        even = break_even.charts(cases, problems, gpu, styles, device)
        text = "Ratios of medians over blocks; quantising A is part of an int8 or fp8 product." if even else NO_DENSE
    else:
        even, text = [], f"Drawn on the page of {' and '.join(elsewhere)}." if elsewhere else NO_GPU
    return [
        ("Speed against accuracy", note + rest if drawn else "No timed method has an accuracy here.", drawn[:FRONTS]),
        *([("Kernel classifiers", KERNELS, [kernels])] if kernels is not None else []),
        ("Encoding and scanning", RATES if kept else "No time of encoding and no look-ups were recorded.", kept),
        ("Break-even on a GPU", text, even),
    ]


KERNELS = (
    "Series of the UCR archive, resampled to 320 points, and the prototypes of an RBF classifier; one point a "
    "method and number of codebooks, where it was timed on every set."
)
RATES = (
    "A code is the choice of one of 16 prototypes; a look-up adds one entry of a table to one output. "
    "Problems with the most work first."
)


def _fronts(cases: list[Case], group: Group, styles: Mapping[str, Row], device: str) -> list[Chart]:
    metrics = ("accuracy_retained", "retained"), ("nmse", "explained")
    found = [_front(cases, group, metric, what, styles, device) for metric, what in metrics]
    return [chart for chart in found if chart is not None]


def _front(
    cases: list[Case], group: Group, metric: str, what: str, styles: Mapping[str, Row], device: str
) -> Chart | None:
    own = [case for case in cases if case.problem in group.sizes]
    rows = _rows(own, group, metric, what)
    if not any(row["method"] != f"{products.TASK}.exact" for row in rows):
        return None
    curve = group.published if what == "retained" else None
    published = (
        [{"codebooks": size, "speedup": speed, "value": kept / curve.exact} for size, speed, kept in curve.points]
        if curve
        else []
    )
    title = f"{'Accuracy retained' if what == 'retained' else '1 − NMSE'} against speed: {group.label}"
    name = plain.anchor("chart", what, device, group.label)
    bottom = min([BOTTOM[what], *(point["value"] for point in published)])
    svg = product_figures.accuracy(name, title, rows, published, styles, LABELS[what], bottom)
    keys = ("method", "problem", "codebooks", "size", "speedup", "low", "high", "value", "front")
    data = [{key: row[key] for key in keys} for row in rows]
    blank = dict.fromkeys(keys)
    data += [{**blank, **point, "method": "published (poster)", "front": None} for point in published]
    return Chart(id=name, title=title, sentence=_front_sentence(rows, own, what, curve is not None), svg=svg, rows=data)


def _rows(own: list[Case], group: Group, metric: str, what: str) -> list[Row]:
    """Timed cases with the metric; a method that takes no size stands once, at its first problem."""
    rows: list[Row] = []
    seen: set[str] = set()
    for case in own:
        error, effect = case.errors.get(metric), case.effect
        if error is None or case.time_s is None or (effect is None and not case.is_baseline):
            continue
        size = products.size(case)
        if size is None and case.method in seen:
            continue
        seen.add(case.method)
        rows.append(
            {
                "method": case.method,
                "problem": case.problem,
                "codebooks": group.sizes[case.problem],
                "size": size,
                "size_text": "" if size is None else f" {size}",
                "speedup": effect.ratio if effect else 1.0,
                "low": effect.low if effect else None,
                "high": effect.high if effect else None,
                "enough": effect.enough if effect else True,
                "value": error if what == "retained" else 1.0 - error,
            }
        )
    for row in rows:
        row["front"] = not any(_beats(other, row) for other in rows)
    return rows


def _beats(other: Row, row: Row) -> bool:
    no_worse = other["speedup"] >= row["speedup"] and other["value"] >= row["value"]
    return bool(no_worse and (other["speedup"] > row["speedup"] or other["value"] > row["value"]))


def _front_sentence(rows: list[Row], own: list[Case], what: str, published: bool) -> str:
    least = GOOD[what]
    spoken = f"keeping {100 * least:g} % of the accuracy" if what == "retained" else f"explaining {100 * least:g} %"
    good = [row for row in rows if row["value"] >= least]
    best = max(good, key=lambda row: row["speedup"]) if good else None
    if best is None:
        text = f"No method gets as far as {spoken}."
    elif best["speedup"] <= 1:
        text = f"Nothing is faster than the exact product while {spoken}."
    else:
        name = f"{products.short(best['method'])}{best['size_text']}"
        text = f"The fastest while {spoken} is {name} with {plain.times(best['speedup'])}."
    lost = sum(case.time_s is None for case in own if case.status not in ("unsupported",))
    if lost:
        text += (
            f" {plain.count(lost, 'case')} without a time, failed or stopped, {'is' if lost == 1 else 'are'} absent."
        )
    if not all(row["enough"] for row in rows):
        text += " Some points have too few blocks to be judged."
    if published:
        text += " Hollow: the paper's poster, on its authors' CPU and features; the number is C."
    return text


def encode_rates(cases: list[Case], found: list[Group], styles: Mapping[str, Row], device: str) -> Chart | None:
    """Codes a second of encoding alone."""
    rows = [
        {**_labelled(case, found), "rate": case.errors["codes"] / case.times["encode_s"] / 1e6, "rest": None}
        for case in _chosen(cases, ("encode_s",), "codes")
    ]
    if not rows:
        return None
    rows = _ranked(rows)
    best = max(rows, key=lambda row: row["rate"])
    title = "Encoding"
    name = plain.anchor("chart", "encode", device)
    sentence = (
        f"The fastest encoder is that of {products.short(best['method'])} on {best['label']}: "
        f"{plain.amount(best['rate'])} million codes a second."
    )
    svg = product_figures.rates(name, title, rows, styles, "million codes a second, more is better")
    return Chart(id=name, title=title, sentence=sentence, svg=svg, rows=_plain(rows, "million_codes_s"))


def lookup_rates(cases: list[Case], found: list[Group], styles: Mapping[str, Row], device: str) -> Chart | None:
    """Look-ups a second of the whole call, and of the scan alone (of what encoding leaves, where it was not timed)."""
    rows = []
    for case in _chosen(cases, (), "lookups"):
        amount, whole, encode = case.errors["lookups"], case.time_s or 0.0, case.times.get("encode_s")
        scan = case.times.get("scan_s") or (whole - encode if encode is not None and encode < whole else None)
        rest = amount / scan / 1e9 if scan else None
        rows.append({**_labelled(case, found), "rate": amount / whole / 1e9, "rest": rest})
    if not rows:
        return None
    rows = _ranked(rows)
    best = max(rows, key=lambda row: row["rate"])
    title = "Look-ups"
    name = plain.anchor("chart", "lookups", device)
    sentence = (
        f"Counted over the whole call, encoding included, {products.short(best['method'])} on {best['label']} does "
        f"most: {plain.amount(best['rate'])} billion look-ups a second."
    )
    alone = [row for row in rows if row["rest"]]
    if alone:
        top = max(alone, key=lambda row: row["rest"])
        sentence += (
            f" Look-ups and sums alone reach {plain.amount(top['rest'])} billion, by {products.short(top['method'])} "
            f"on {top['label']}."
        )
    svg = product_figures.rates(name, title, rows, styles, "billion look-ups a second, more is better")
    return Chart(id=name, title=title, sentence=sentence, svg=svg, rows=_plain(rows, "billion_lookups_s"))


def _chosen(cases: list[Case], times: tuple[str, ...], amount: str) -> list[Case]:
    """Timed cases with the times and the amount, of the problems with the most work."""
    own = [
        case for case in cases
        if case.time_s and case.errors.get(amount) and all(case.times.get(name) for name in times)
    ]  # fmt: skip
    work: dict[str, float] = {}
    for case in own:
        work[case.problem] = max(work.get(case.problem, 0.0), case.errors[amount])
    kept = sorted(work, key=lambda problem: -work[problem])[:RATE_PROBLEMS]
    return sorted((case for case in own if case.problem in kept), key=lambda case: kept.index(case.problem))


def _labelled(case: Case, found: list[Group]) -> Row:
    group = next(group for group in found if case.problem in group.sizes)
    shape = "×".join(map(str, group.shape))
    return {"method": case.method, "problem": case.problem, "label": f"{shape}, C = {group.sizes[case.problem]}"}


def _ranked(rows: list[Row]) -> list[Row]:
    """Problem by problem, the fastest first."""
    order = list(dict.fromkeys(row["problem"] for row in rows))
    return sorted(rows, key=lambda row: (order.index(row["problem"]), -row["rate"]))[:BARS]


def _plain(rows: list[Row], name: str) -> list[Row]:
    return [
        {"method": r["method"], "problem": r["problem"], name: r["rate"], f"{name}_without_encoding": r["rest"]}
        for r in rows
    ]
