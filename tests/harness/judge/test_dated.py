"""Claims for which only runs from a date on speak."""

from __future__ import annotations

from typing import Any

import pytest

from harness.judge.verdict import judge


def test_runs_from_before_what_is_compared_changed_do_not_speak(claim: Any, store: Any) -> None:
    old = store(file="old.jsonl", utc="2026-01-01T00:00:00Z").pair(9.0)
    dated = claim(since="2026-01-02T00:00:00Z", note="the baseline became fast")
    (found,) = judge(dated, old.frame())
    assert (found.verdict, found.device, found.file) == ("not testable here", "Toy CPU", None)
    assert "older than 2026-01-02 00:00 UTC" in found.reason
    new = store(file="new.jsonl", utc="2026-01-02T00:00:00Z").pair(1.5)
    assert judge(dated, new.frame(old))[0].ratio == pytest.approx(1.5, rel=0.01)
    elsewhere = store(file="e.jsonl", utc="2026-02-01T00:00:00Z", device="Another").pair(1.5)
    assert [v.verdict for v in judge(dated, old.frame(elsewhere))] == ["reproduced", "not testable here"]
    with pytest.raises(ValueError, match="what changed"):
        claim(since="2026-01-02T00:00:00Z")
    with pytest.raises(ValueError, match="timezone"):
        claim(since="2026-01-02T00:00:00", note="n")
