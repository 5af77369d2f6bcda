"""Registry cases for pytest-benchmark: ``make bench-pytest``, or ``pytest suites/micro/bench_cases.py -k CASE``."""

from typing import Any

from harness.adapters import cases
from harness.adapters import pytest as front

pytest_generate_tests = front.parametrize


def test_case(benchmark: Any, case: cases.Cell) -> None:
    """One case: gate, then rounds on new content."""
    front.bench(benchmark, case)
