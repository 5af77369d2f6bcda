"""The ledger's rows about SINGD and about weight sharing: about things that exist, and able to come out either way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pytest

from harness.catalogue import registry
from harness.judge.claim import Claim, load_claims
from harness.judge.verdict import Verdict, judge
from suites import robustness, state_memory

ALL = [claim for claim in load_claims() if claim.file.endswith(("/singd.toml", "/kfac_sharing.toml"))]
SUITES = {"robustness": robustness.SUITE, "state_memory": state_memory.SUITE}
STABLE = [claim for claim in ALL if claim.task == "robustness"]
MEMORY = [claim for claim in ALL if claim.task == "state_memory"]
OFTEN = [claim for claim in ALL if claim.workloads]
SHARING = [claim for claim in ALL if claim.workload]


def by_id(claim: Claim) -> str:
    return claim.id


@dataclass
class Store:
    """Rows as ``read_runs`` gives them."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **fields: Any) -> None:
        shared: dict[str, Any] = {
            "file": "a.jsonl",
            "device": "Toy",
            "utc": "2026-01-01",
            "commit": "c",
            "protocol": 1.0,
        }
        shared |= {"run": f"r{len(self.rows)}", "arm": fields.get("method"), "detail": {}, "samples": None}
        shared |= {"precision": "ieee", "threads": 1.0}
        self.rows.append({**shared, **fields})

    def judge(self, claim: Claim) -> Verdict:
        (found,) = judge(claim, pd.DataFrame(self.rows))
        return found


def test_all_three_parts_of_the_claim_are_asked() -> None:
    assert (len(STABLE), len(MEMORY), len(OFTEN), len(SHARING)) == (18, 6, 5, 6)
    assert len(ALL) == 35


@pytest.mark.parametrize("claim", STABLE + MEMORY, ids=by_id)
def test_methods_problems_and_metrics_exist(claim: Claim) -> None:
    suite = SUITES[claim.task]
    methods = {"robustness": robustness.METHODS, "state_memory": state_memory.METHODS}[claim.task]
    assert {claim.candidate, claim.baseline} - {None} <= set(methods) & set(registry.entries("methods"))
    known = {problem.id: problem for problem in suite.problems}
    assert set(claim.problems) <= set(known)
    assert claim.metric in suite.task.errors
    devices = {known[problem].device for problem in claim.problems}
    assert ("cuda" in claim.needs) == (devices == {"cuda"})
    assert claim.command is not None
    assert claim.command.startswith(f"python -m suites.{suite.name}")


@pytest.mark.parametrize("claim", OFTEN + SHARING, ids=by_id)
def test_workloads_and_methods_exist(claim: Claim) -> None:
    assert {claim.candidate, claim.baseline} <= set(registry.entries("methods"))
    workloads = [registry.workload(name) for name in (claim.workload, *claim.workloads) if name]
    assert ("cuda" in claim.needs) == all("cuda" in workload.needs for workload in workloads)
    for method, hyper in ((claim.candidate, claim.hyper), (claim.baseline, claim.baseline_hyper)):
        assert set(hyper) <= {*registry.method(str(method)).hyper, "precision"}


@pytest.mark.parametrize("claim", STABLE, ids=by_id)
def test_stability_is_a_count_of_streams(claim: Claim) -> None:
    other = "passed" if "passed" not in claim.events else "inaccurate"
    for status, word in ((claim.events[0], "reproduced"), (other, "not reproduced")):
        store = Store()
        for problem in claim.problems:
            store.add(method=claim.candidate, problem=problem, workload=None, phase="gate", status=status, reason="why",
                      metric="update_error", unit="1", value=0.1, seed=None, block=None)  # fmt: skip
        assert store.judge(claim).verdict == word


@pytest.mark.parametrize("claim", MEMORY, ids=by_id)
def test_memory_is_a_ratio_of_counted_bytes(claim: Claim) -> None:
    assert claim.ratio is not None
    for share, word in ((0.9 * claim.ratio, "reproduced"), (1.2 * max(1.0, claim.ratio), "not reproduced")):
        store = Store()
        for problem in claim.problems:
            for method, value in ((claim.candidate, share), (claim.baseline, 1.0)):
                store.add(method=method, problem=problem, workload=None, phase="memory", status="passed", reason=None,
                          metric=claim.metric, unit="bytes", value=1e9 * value, seed=None, block=None)  # fmt: skip
        verdict = store.judge(claim)
        assert verdict.verdict == word, verdict.reason


@pytest.mark.parametrize("claim", SHARING, ids=by_id)
def test_sharing_is_a_ratio_of_steps(claim: Claim) -> None:
    for ratio, word in ((1.6, "reproduced"), (0.5, "not reproduced")):
        store = Store()
        arms = ((claim.candidate, claim.candidate, 1 / ratio, claim.hyper),
                (claim.baseline, claim.baseline, 1.0, claim.baseline_hyper),
                ("training.sgd", "training.sgd", 1.0, {}), ("training.sgd", "training.sgd#aa", 1.0, {}))  # fmt: skip
        for seed in range(10):
            for method, arm, share, hyper in arms:
                store.add(
                    method=method, arm=arm, workload=claim.workload, problem=None, phase="training", seed=float(seed),
                    status="target_reached", reason=None, metric="steps_to_target", unit="1", block=None,
                    value=1000 * share * (1 + 1e-4 * seed), detail={"hyper": hyper},
                )  # fmt: skip
        verdict = store.judge(claim)
        assert verdict.verdict == word, verdict.reason
