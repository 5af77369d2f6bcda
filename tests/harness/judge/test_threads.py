"""Claims of a source that used so many threads: absolute numbers need as many, ratios read them first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError

from harness.judge.verdict import judge


def on(store: Callable[..., Any], threads: int | None, ratio: float, utc: str, device: str = "Toy CPU") -> pd.DataFrame:
    made = store(file=f"{threads}.jsonl", utc=utc, device=device)
    made.shared["threads"] = None if threads is None else float(threads)
    return made.pair(ratio).frame()


@pytest.mark.parametrize("newer", [1, 2])
def test_a_ratio_is_read_from_the_sources_threads_however_old(
    claim: Callable[..., Any], store: Callable[..., Any], newer: int
) -> None:
    utc = {newer: "2026-02-01T00:00:00Z", 3 - newer: "2026-01-01T00:00:00Z"}
    data = pd.concat([on(store, 1, 1.7, utc[1]), on(store, 2, 1.1, utc[2])])
    (verdict,) = judge(claim(threads=1), data)
    assert verdict.file == "1.jsonl"
    assert "threads" not in verdict.reason
    (verdict,) = judge(claim(), data)
    assert verdict.file == f"{newer}.jsonl"


def test_a_ratio_of_other_threads_says_so(claim: Callable[..., Any], store: Callable[..., Any]) -> None:
    (verdict,) = judge(claim(threads=1), on(store, 2, 1.7, "2026-01-01T00:00:00Z"))
    assert verdict.verdict == "reproduced"
    assert "runs with 2 threads, the source's with 1" in verdict.reason
    assert "runs with 2 threads, the source's with 1" in verdict.phrase
    (verdict,) = judge(claim(threads=1), on(store, None, 1.7, "2026-01-01T00:00:00Z"))
    assert "runs with an unknown number of threads" in verdict.phrase


def test_an_absolute_number_does_not_speak_of_other_threads(
    claim: Callable[..., Any], store: Callable[..., Any]
) -> None:
    absolute = claim(threads=1, kind="at-most", baseline=None, ratio=1.0, error_metric=None)
    two, one = on(store, 2, 3.0, "2026-02-01T00:00:00Z"), on(store, 1, 2.0, "2026-01-01T00:00:00Z")
    (verdict,) = judge(absolute, two)
    assert verdict.verdict == "not testable here"
    assert verdict.reason == "its runs used 2 threads, the source's 1: OMP_NUM_THREADS=1"
    (verdict,) = judge(absolute, pd.concat([two, one]))
    assert verdict.ratio == pytest.approx(0.5, rel=0.01)


def test_every_device_says_why_it_does_not_speak(claim: Callable[..., Any], store: Callable[..., Any]) -> None:
    absolute = claim(
        threads=1, kind="at-most", baseline=None, ratio=1.0, error_metric=None, since="2026-02-01T00:00:00Z", note="x"
    )
    data = pd.concat(
        [
            on(store, 1, 2.0, "2026-03-01T00:00:00Z", "A"),
            on(store, 8, 2.0, "2026-03-01T00:00:00Z", "B"),
            on(store, 1, 2.0, "2026-01-01T00:00:00Z", "C"),
        ]
    )
    told = {verdict.device: verdict.reason for verdict in judge(absolute, data)}
    assert set(told) == {"A", "B", "C"}
    assert told["B"].startswith("its runs used 8 threads")
    assert told["C"].startswith("its runs are older than 2026-02-01")


def test_training_claims_have_no_threads(claim: Callable[..., Any]) -> None:
    with pytest.raises(ValidationError, match="threads belong to claims about one operation"):
        claim(threads=1, problems=[], workload="w", error_metric=None)


def test_the_command_sets_them(claim: Callable[..., Any]) -> None:
    assert claim(threads=1).reproduce().startswith("OMP_NUM_THREADS=1 speedclaim run --suite toy")
