"""Tables: claims in the sense of their kind, a reason in every empty cell, environment and discarded blocks."""

from __future__ import annotations

from typing import Any

import pytest

from reports import audit, ledger, plain, sentences, tables, theme
from reports.cases import Case, cases


@pytest.fixture(scope="module")
def found(record: Any) -> list[Case]:
    return cases(record.runs, record.headers)


@pytest.fixture(scope="module")
def grid(found: list[Case], record: Any) -> tables.Matrix:
    own = [case for case in found if case.kind == "cpu"]
    errors = tables.error_names(own, record.headers, "polar")
    return tables.matrix(own, errors, tables.problem_index(record.headers), {}, 24)


def test_every_cell_answers_every_view_exactly_once(grid: tables.Matrix) -> None:
    for _, cells in grid.rows:
        for cell in cells:
            entries = cell.entries
            assert sorted(v for entry in entries for v in entry.views) == list(range(len(grid.views)))
            assert all(entry.text for entry in entries)


def test_an_empty_cell_says_why(grid: tables.Matrix) -> None:
    row = dict(grid.rows)["polar.aol-triton"]
    for cell in row:
        (entry,) = cell.entries
        assert "unsupported" in entry.text
        assert entry.title == "needs CUDA: no NVIDIA device"
        assert entry.sort is None


def test_a_wrong_answer_keeps_its_error_and_loses_its_time(grid: tables.Matrix) -> None:
    keys = [view.key for view in grid.views]
    entries = dict(grid.rows)["polar.frobenius-only"][0].entries
    at = {view: entry for entry in entries for view in entry.views}
    assert "inaccurate" in at[keys.index("time")].text
    error = at[keys.index("error:polar_error")]
    assert error.sort == pytest.approx(0.83, rel=0.1)
    assert error.sub == ("inaccurate",)


def test_the_speedup_stands_beside_its_interval_and_floor(grid: tables.Matrix) -> None:
    entry = next(e for e in dict(grid.rows)["polar.aol-torch"][2].entries if 0 in e.views)
    assert entry.text.startswith("▲ 1.")
    assert entry.sub[0].startswith("[1.")
    assert entry.sub[1].startswith("floor ")
    baseline = next(e for e in dict(grid.rows)["polar.ns-torch"][2].entries if 0 in e.views)
    assert baseline.text == "baseline"


def test_a_wide_matrix_is_cut_and_says_so(found: list[Case], record: Any) -> None:
    own = [case for case in found if case.kind == "cpu"]
    cut = tables.matrix(own, {}, tables.problem_index(record.headers), {}, 3)
    assert len(cut.problems) == 3
    assert cut.hidden == 5


def test_a_case_that_no_record_names_is_not_planned(found: list[Case], record: Any) -> None:
    own = [case for case in found if case.kind == "cpu"][1:]
    grid = tables.matrix(own, {}, tables.problem_index(record.headers), {}, 24)
    texts = {entry.text for _, cells in grid.rows for cell in cells for entry in cell.entries}
    assert "– not planned" in texts


@pytest.mark.parametrize(
    ("kind", "claimed", "text"),
    [
        ("speedup-about", 1.6, "1.60×"),
        ("speedup-up-to", 3.0, "up to 3.00×"),
        ("at-most", 1.05, "≤ 1.05×"),
        ("growth", 2.0, "exponent ≤ 2"),
        ("on-par", None, "on par"),
        ("metric-better", None, "better"),
        ("exists", None, plain.DASH),
    ],
)
def test_claimed_numbers_read_as_their_kind(kind: str, claimed: float | None, text: str) -> None:
    assert ledger.claimed_text(kind, claimed) == text


def test_ledger_takes_judged_claims_as_they_come(record: Any) -> None:
    rows = ledger.rows(record.verdicts)
    assert [row["verdict"] for row in rows] == [v["verdict"] for v in record.verdicts]
    assert len({row["anchor"] for row in rows}) == len(rows)
    untested = next(row for row in rows if row["verdict"] == "not testable here")
    assert untested["ratio"] is None
    assert untested["ratio_text"] == plain.DASH
    assert untested["why"] == "needs CUDA: no NVIDIA device"
    assert rows[0]["authors"] == "candidate: re-implementation of the published design; baseline: library"


def test_a_reason_that_the_phrase_holds_is_not_said_twice() -> None:
    said = {
        "id": "a",
        "verdict": "inconclusive",
        "phrase": "inconclusive: noise hides it",
        "reason": "noise hides it; x",
    }
    assert ledger.rows([said])[0]["why"] == "x"


def test_counts_cover_every_verdict_word(record: Any) -> None:
    counts = {row["word"]: row["count"] for row in ledger.counts(ledger.rows(record.verdicts))}
    assert list(counts) == list(theme.VERDICTS)
    assert sum(counts.values()) == len(record.verdicts)
    strange = ledger.counts(ledger.rows([{"id": "a", "verdict": "maybe"}]))
    assert strange[-1]["word"] == "maybe"
    assert strange[-1]["count"] == 1


def test_every_status_of_the_record_type_has_a_sign() -> None:
    from harness.record.run import STATUSES

    assert set(STATUSES) == set(theme.STATUSES)


def test_every_verdict_word_of_the_rules_has_a_sign() -> None:
    from harness.judge.rules import WORDS

    assert set(WORDS) == set(theme.VERDICTS)


def test_discarded_blocks_count_their_arms(record: Any) -> None:
    (row,) = audit.discarded(record.runs, record.headers)
    runs = record.runs
    hit = runs[runs["discarded"].notna()]
    assert row["block"] == 3
    assert row["reason"] == "thermal slowdown"
    assert row["arms"] == hit["arm"].nunique()
    assert row["problem"].startswith("gaussian-256x256")


def test_left_out_cells_and_files(record: Any, found: list[Case]) -> None:
    assert {row["reason"] for row in audit.left_out(record.headers)} == {"left out by the time budget"}
    rows = {row["file"]: row for row in audit.files(record.headers, found)}
    assert rows["a-cpu.jsonl"]["complete"]
    assert not rows["b-cuda.jsonl"]["complete"]
    assert rows["a-cpu.jsonl"]["warnings"] == ["load average 2.7 on 2 cores"]


def test_environment_leaves_out_what_is_absent(record: Any) -> None:
    cpu = dict(audit.environment(record.headers[0]))
    gpu = dict(audit.environment(record.headers[1]))
    assert "GPU" not in cpu
    assert gpu["GPU"] == "NVIDIA H100 80GB HBM3"
    assert gpu["compute capability"] == "9.0"
    assert dict(audit.protocol(record.headers[0])[0]["fields"])["baseline"] == "polar.ns-torch"


def test_cards_describe_every_method(record: Any, found: list[Case]) -> None:
    cards = {card["name"]: card for card in audit.method_cards(record.headers, found)}
    assert cards["polar.aol-triton"]["where"][0]["text"].startswith("timed on 0 of ")
    assert cards["polar.aol-triton"]["where"][0]["why"] == "needs CUDA: no NVIDIA device"
    assert cards["polar.aol-torch"]["hyper"] == "steps = 5"


def test_problems_are_read_from_their_id_when_no_header_knows_them() -> None:
    row = tables.describe_problem("levy1.5-12x768x3072-bfloat16-cuda", {})
    assert (row["kind"], row["shape"], row["dtype"], row["elements"]) == (
        *("levy1.5", (12, 768, 3072), "bfloat16"),
        12 * 768 * 3072,
    )


def test_slugs_are_safe_stable_and_distinct() -> None:
    assert plain.slug("plain-name") == "plain-name"
    odd = [plain.slug(text) for text in ("A b", "a-b", "a b", "<script>", "", "é")]
    assert len(set(odd)) == len(odd)
    assert all(set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and text for text in odd)


def test_headlines_name_the_best_honest_speedup(record: Any, found: list[Case]) -> None:
    rows = ledger.rows(record.verdicts)
    claims, best, noise = sentences.headlines(rows, found)
    assert claims["figure"] == "2 of 5"
    assert "Claim number 3" in claims["text"]
    assert "polar.aol-triton" in best["text"]
    assert noise["figure"].endswith("%")
    front = sentences.front(rows, found, [])
    assert "Of 5 tested claims, 2 hold, 1 hold in part and 1 does not. 1 stays open. 2 more could not be" in front


def test_phrases_repeat_neither_the_verdict_nor_the_device() -> None:
    def row(**fields: Any) -> dict[str, Any]:
        return ledger.rows([{"id": "x", "device": "GPU", **fields}])[0]

    partly = row(verdict="partly", phrase="partly holds on GPU (faster, but by less than claimed; claimed on L40S)")
    assert partly["phrase"].startswith("partly holds on GPU")
    assert partly["brief"] == "faster, but by less than claimed; claimed on L40S"
    absent = row(verdict="not testable here", phrase="not testable here: needs CUDA", reason="needs CUDA")
    assert (absent["phrase"], absent["brief"], absent["why"]) == ("needs CUDA", "needs CUDA", "")
    few = "inconclusive: too few blocks: 1 give a level of 0.0%, 6 are needed for 95.0%"
    assert row(verdict="inconclusive", phrase=few)["brief"] == "too few blocks: 1 of 6"


def test_untested_claims_and_dropped_cases_are_grouped_by_reason(record: Any) -> None:
    rows = ledger.rows(record.verdicts)
    assert [(g["reason"], g["count"]) for g in ledger.untested(rows)] == [("needs CUDA: no NVIDIA device", 1)]
    assert {row["verdict"] for row in ledger.by_verdict(rows)} == {row["verdict"] for row in rows} - {
        "not testable here"
    }
    groups = audit.by_reason(audit.left_out(record.headers))
    assert [(g["reason"], g["count"], g["methods"], g["problems"]) for g in groups] == [
        ("left out by the time budget", 2, 1, 2)
    ]


def test_headlines_of_nothing() -> None:
    assert [card["figure"] for card in sentences.headlines([], [])] == [plain.DASH] * 3


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([], "this machine"),
        (["AMD EPYC", "AMD EPYC, 2 runs at once", "AMD EPYC, 4 processes"], "AMD EPYC"),
        (["2 x NVIDIA H200, 5 runs at once", "NVIDIA H200", "AMD EPYC, 2 runs at once"], "NVIDIA H200 and AMD EPYC"),
        (["AMD EPYC", "AMD EPYC, 2 runs at once", "NVIDIA H100", "2 x NVIDIA H200"], "3 devices"),
        (["AMD EPYC (AVX2), 2 cores", "12th Gen Intel i7", "NVIDIA H100"], "3 devices"),
    ],
)
def test_the_overview_counts_hardware_and_not_how_it_was_shared(labels: list[str], said: str) -> None:
    assert sentences.where([{"device": label} for label in labels]) == said
