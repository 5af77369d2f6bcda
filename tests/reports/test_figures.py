"""Figures: deterministic SVG that escapes names, carries the theme's variables and holds the right marks."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from reports import charts, figures, ledger, tables, theme
from reports.cases import Case, cases

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def own(record: Any) -> list[Case]:
    return [case for case in cases(record.runs, record.headers) if case.kind == "cuda"]


@pytest.fixture(scope="module")
def drawn(own: list[Case], record: Any) -> dict[str, figures.Chart]:
    problems = tables.problem_index(record.headers)
    rows = ledger.rows(record.verdicts)
    device = own[0].device
    label, members = charts.families(own, problems)[0]
    found = {
        "claims": charts.claims(rows, device),
        "size": charts.time_against_size(own, label, members, device),
        "strips": charts.strips(own, charts.representative(own)[0], device),
        "pareto": charts.pareto(own, charts.representative(own)[0], "polar_error", device),
        "sigma": charts.singular_values(own, charts.representative(own)[0], device),
        "floor": charts.floor_fractions(own, device),
    }
    assert all(chart is not None for chart in found.values())
    return {name: chart for name, chart in found.items() if chart is not None}


def test_every_figure_is_well_formed_and_quiet(drawn: dict[str, figures.Chart]) -> None:
    for chart in drawn.values():
        root = ET.fromstring(chart.svg)
        assert root.tag == f"{SVG}svg"
        assert {element.tag for element in root.iter()} & {
            f"{SVG}script",
            f"{SVG}image",
            f"{SVG}foreignObject",
        } == set()
        assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", chart.svg)
        assert root.find(f"{SVG}title").text == chart.title  # type: ignore[union-attr]


def test_colours_come_from_the_theme_alone(drawn: dict[str, figures.Chart]) -> None:
    for chart in drawn.values():
        assert set(re.findall(r"#[0-9a-fA-F]{6}\b", chart.svg)) == set()
        used = set(re.findall(r"var\(--([a-z0-9-]+)\)", chart.svg))
        assert used
        assert used <= set(theme.COLOURS)


def test_ids_are_the_figures_own(drawn: dict[str, figures.Chart]) -> None:
    seen: set[str] = set()
    for chart in drawn.values():
        ids = {e.attrib["id"] for e in ET.fromstring(chart.svg).iter() if "id" in e.attrib}
        assert not ids & seen
        seen |= ids
        links = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', chart.svg))
        assert {a or b for a, b in links} <= ids


def test_hostile_names_are_text(drawn: dict[str, figures.Chart]) -> None:
    assert "&lt;script&gt;alert(1)" in drawn["size"].svg
    assert "<script" not in "".join(chart.svg for chart in drawn.values())


def test_the_same_rows_give_the_same_bytes(own: list[Case], drawn: dict[str, figures.Chart]) -> None:
    again = charts.strips(own, charts.representative(own)[0], own[0].device)
    assert again is not None
    assert again.svg == drawn["strips"].svg


def test_size_figure_draws_one_point_per_timed_case(own: list[Case], record: Any, drawn: dict[str, Any]) -> None:
    _, members = charts.families(own, tables.problem_index(record.headers))[0]
    ids = {member["id"] for member in members}
    timed = [case for case in own if case.problem in ids and case.time_s is not None]
    assert len(drawn["size"].rows) == len(timed)
    assert len(ids) == 4


def test_strips_hold_every_block_and_the_alias(own: list[Case], drawn: dict[str, Any]) -> None:
    rows = drawn["strips"].rows
    assert any(row["method"] == "polar.ns-torch#aa" for row in rows)
    problem = charts.representative(own)[0]
    blocks = sum(case.effect.n for case in own if case.problem == problem and case.effect is not None)
    assert sum(not row["method"].endswith("#aa") for row in rows) == blocks


def test_pareto_front_is_not_dominated(drawn: dict[str, Any]) -> None:
    rows = drawn["pareto"].rows
    for row in rows:
        beaten = any(
            other["time_s"] <= row["time_s"] and other["error"] <= row["error"] and other is not row for other in rows
        )
        assert row["front"] != beaten


def test_sentences_read_the_rows(drawn: dict[str, Any]) -> None:
    assert "polar.aol-triton" in drawn["size"].sentence
    assert drawn["sigma"].sentence.startswith("The output of polar.svd keeps 96 %")
    assert re.match(r"Of 2 claimed speed-ups measured on NVIDIA", drawn["claims"].sentence)


def test_charts_without_material_are_absent() -> None:
    assert charts.claims([], "x") is None
    assert charts.strips([], "p", "x") is None
    assert charts.pareto([], "p", "m", "x") is None
    assert charts.singular_values([], "p", "x") is None
    assert charts.floor_fractions([], "x") is None
    assert charts.families([], {}) == []
    assert all(not found for _, _, found in charts.sections([], ["m"], {}, "x"))


def test_bar_places_its_marks_in_order(record: Any) -> None:
    row = ledger.rows(record.verdicts)[1]
    text = figures.bar(row, figures.bar_scale([row]))
    centre = float(re.search(r'cx="([\d.]+)"', text).group(1))  # type: ignore[union-attr]
    claim = float(re.search(r"M([\d.]+) 7", text).group(1))  # type: ignore[union-attr]
    assert 0 < centre < claim < figures.BAR_WIDTH
    assert row["ratio"] < row["claimed"]


@pytest.mark.parametrize("theme_index", [0, 1])
def test_text_and_line_colours_have_contrast(theme_index: int) -> None:
    """WCAG 2.1: 4.5:1 for text, 3:1 for the marks of a figure."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    def contrast(one: str, other: str) -> float:
        high, low = sorted((luminance(one), luminance(other)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    colour = {name: pair[theme_index] for name, pair in theme.COLOURS.items()}
    for text in ("ink", "muted", "accent", "good", "half", "bad", "open", "void"):
        assert contrast(colour[text], colour["paper"]) >= 4.5, text
        assert contrast(colour[text], colour["panel"]) >= 4.5, text
    for tone in ("good", "half", "bad", "open", "void"):
        assert contrast(colour[tone], colour[f"{tone}-tint"]) >= 4.5, tone
    for index in range(theme.SERIES):
        assert contrast(colour[f"s{index}"], colour["paper"]) >= 3, index


@pytest.mark.parametrize(("low", "high"), [(0.97, 1.03), (0.6, 2.9), (0.04, 3.0), (0.9, 4.2), (1e-3, 1e3)])
def test_ratio_ticks_hold_one_and_do_not_touch(low: float, high: float) -> None:
    ticks = figures._ratio_ticks(low, high)
    assert 1 in ticks
    assert all(low <= tick <= high for tick in ticks)
    gaps = [math.log(b / a) / math.log(high / low) for a, b in itertools.pairwise(ticks)]
    assert all(gap >= figures.TICK_SHARE for gap in gaps)
