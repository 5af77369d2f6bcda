"""Tables of what a look-up product costs: parts of a call, bytes, counters, joules; absent ones are told, not shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from reports import product_costs
from reports.cases import Case

PROBLEM = "lowrank_c4-70x24x12-float32-cpu"
PROBLEMS: dict[str, Any] = {
    PROBLEM: {"id": PROBLEM, "kind": "lowrank_c4", "shape": [70, 24, 12], "dtype": "float32", "device": "cpu",
              "params": {"hyper": {"codebooks": 4}}},
}  # fmt: skip


def case(method: str, **changes: Any) -> Case:
    plain = Case(
        anchor=method, device="CPU", kind="cpu", file="a.jsonl", task="approximate_matmul", problem=PROBLEM,
        method=f"approximate_matmul.{method}", status="passed", time_s=1e-3,
    )  # fmt: skip
    return replace(plain, **changes)


EXACT = case("exact", is_baseline=True, amounts={"bytes_read": 8000.0, "cache_misses": 100.0}, energy_j=2.0,
             errors={"multiplies": 20160.0})  # fmt: skip
MADDNESS = case(
    "maddness",
    times={"train_s": 0.5, "table_s": 0.01, "encode_s": 1e-4, "scan_s": 3e-4, "scan_fix_up_s": 4.5e-4},
    amounts={"bytes_read": 2000.0, "cache_misses": 20.0, "l1d_misses": 60.0},
    errors={"multiplies": 840.0, "nmse": 0.1},
    energy_j=0.25,
)


def cells(table: Any, row: int = 0) -> dict[str, Any]:
    return dict(zip(table.columns, table.rows[row][1], strict=True))


def test_the_fix_up_is_what_outputs_take_beyond_sums() -> None:
    parts, _ = product_costs.tables([EXACT, MADDNESS], PROBLEMS)
    assert [label for label, _ in parts.rows] == ["maddness"], "a method without parts has no row"
    told = {name: cell.text for name, cell in cells(parts).items()}
    assert told == {"problem": "lowrank c4", "training": "500 ms", "tables": "10.0 ms", "encode": "100 µs",
                    "scan": "300 µs", "scan, hot": "—", "fix-up": "150 µs", "whole call": "1.00 ms"}  # fmt: skip
    assert cells(parts)["fix-up"].sort == pytest.approx(1.5e-4)


@pytest.mark.parametrize(
    ("times", "text"),
    [
        ({"encode_s": 1e-4, "scan_s": 3e-4, "scan_fix_up_s": 2.9e-4}, "none"),
        ({"encode_s": 1e-4, "scan_s": 3e-4}, "in the scan"),
        ({"train_s": 0.2}, "—"),
    ],
)
def test_a_fix_up_that_is_not_there(times: dict[str, float], text: str) -> None:
    parts = product_costs.tables([replace(MADDNESS, times=times, amounts={}, energy_j=None)], PROBLEMS)[0]
    assert cells(parts)["fix-up"].text == text


def test_shares_are_of_the_exact_product_of_the_same_problem() -> None:
    read = product_costs.tables([EXACT, MADDNESS], PROBLEMS)[1]
    own, base = cells(read, 1), cells(read, 0)
    assert (own["bytes read"].text, own["bytes read"].sub) == ("1.95 KiB", ("25 %",))
    assert own["multiply-adds"].sub == ("4.2 %",)
    assert own["cache lines missed"].sub == ("20 %",)
    assert own["energy of a call"].text == "0.25 J"
    assert base["bytes read"].sub == (), "the exact product has no share of itself"
    assert base["first-level lines missed"].text == "—", "what one case lacks is a dash, no zero"
    assert "instructions" not in read.columns


def test_bytes_of_records_that_counted_no_lines_are_told_apart() -> None:
    old = replace(MADDNESS, detail={"hyper": {"codebooks": 4}})
    new = replace(old, detail={**old.detail, "bytes_read": {"layout": "rows"}})
    assert "Bytes of 1 rows, from earlier records" in product_costs.tables([EXACT, old, new], PROBLEMS)[1].note
    assert "earlier records" not in product_costs.tables([EXACT, new], PROBLEMS)[1].note


def test_what_could_not_be_read_is_no_column_and_says_why() -> None:
    dumb = replace(
        MADDNESS, amounts={"bytes_read": 2000.0}, energy_j=None, energy_reason="no readable energy counter",
        detail={"counters": "cache_misses: this machine has no such counter"},
    )  # fmt: skip
    read = product_costs.tables([dumb], PROBLEMS)[1]
    assert read.columns == ["problem", "bytes read", "multiply-adds"]
    assert "no such counter" in read.note
    assert "no readable energy counter" in read.note


def test_no_table_without_numbers_and_none_for_what_failed() -> None:
    assert product_costs.tables([case("int8")], PROBLEMS) == []
    failed = replace(MADDNESS, time_s=None, times={}, status="inaccurate")
    assert product_costs.tables([failed], PROBLEMS) == []
