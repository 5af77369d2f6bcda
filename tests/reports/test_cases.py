"""Cases: one row per method and problem, ratios inside one file, discarded blocks out of every number."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import pytest

from harness.judge import stats
from harness.record.run import STATUSES
from harness.record.store import read_headers, read_runs
from reports.cases import Case, cases, devices


@pytest.fixture(scope="module")
def found(record: Any) -> list[Case]:
    return cases(record.runs, record.headers)


def pick(found: list[Case], device: str, method: str, problem: str) -> Case:
    (case,) = [c for c in found if device in c.device and c.method == method and c.problem.startswith(problem)]
    return case


def test_every_planned_cell_has_one_case(found: list[Case], record: Any) -> None:
    keys = {(c.device, c.method, c.problem) for c in found}
    assert len(keys) == len(found)
    planned = sum(len(s["methods"]) * len(s["problems"]) for h in record.headers for s in h["plan"]["suites"])
    assert len(found) == planned


def test_a_case_has_a_time_or_a_reason_never_both(found: list[Case]) -> None:
    for case in found:
        assert (case.time_s is None) == (case.reason is not None), case
        assert case.status in STATUSES
        if case.status != "passed":
            assert case.time_s is None
            assert case.effect is None


def test_the_synthetic_record_shows_every_micro_status(found: list[Case]) -> None:
    assert {case.status for case in found} == {
        *("passed", "inaccurate", "unfaithful", "nonfinite", "impure", "error", "timeout", "out_of_memory"),
        *("unsupported", "interrupted", "unstable"),
    }


def test_time_and_ratio_are_those_of_the_statistics_module(found: list[Case], record: Any) -> None:
    case = pick(found, "EPYC", "polar.aol-torch", "gaussian-512x512")
    runs = record.runs
    rows = runs[(runs["problem"] == case.problem) & (runs["metric"] == "op_s") & (runs["file"] == case.file)]
    arms = {arm: dict(zip(g["block"], g["value"], strict=True)) for arm, g in rows.groupby("arm")}
    wanted = stats.paired_ratio(arms["polar.ns-torch"], arms["polar.aol-torch"])
    assert case.effect is not None
    assert case.time_s == median(arms["polar.aol-torch"].values())
    assert (case.effect.ratio, case.effect.low, case.effect.high) == (wanted.ratio, wanted.low, wanted.high)
    assert case.noise == stats.noise_floor(arms["polar.ns-torch"], arms["polar.ns-torch#aa"])
    assert case.effect.side == "faster"


def test_discarded_blocks_do_not_count(found: list[Case]) -> None:
    hit = pick(found, "H100", "polar.aol-torch", "gaussian-256x256")
    assert 3 not in hit.blocks
    assert len(hit.blocks) == 9
    assert hit.effect is not None
    assert hit.effect.n == 9
    assert "1 discarded block" in hit.note
    assert len(pick(found, "H100", "polar.aol-torch", "gaussian-512x512").blocks) == 10


def test_the_baseline_has_an_alias_and_no_effect(found: list[Case]) -> None:
    base = pick(found, "EPYC", "polar.ns-torch", "gaussian-512x512")
    assert base.is_baseline
    assert base.effect is None
    assert base.alias is not None
    assert abs(base.alias.ratio - 1) < 0.05


def test_devices_are_kept_apart(found: list[Case]) -> None:
    groups = dict(devices(found))
    assert len(groups) == 2
    for own in groups.values():
        assert len({case.kind for case in own}) == 1
        assert len({case.file for case in own}) == 1


def test_cpu_problems_of_a_gpu_machine_belong_to_its_cpu(record: Any) -> None:
    runs = record.runs[record.runs["device_kind"] == "cpu"].assign(device="NVIDIA H100", device_kind="cuda")
    headers = [h for h in record.headers if h["environment"]["device"] == "cpu"]
    assert {case.device for case in cases(runs, headers)} == {headers[0]["environment"]["cpu"]}


def _copy(record: Any, name: str, utc: str, factor: float, methods: list[str]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The CPU file again under another name, with every time scaled and only some methods."""
    runs = record.runs[(record.runs["device_kind"] == "cpu") & record.runs["method"].isin(methods)].copy()
    runs["file"] = name
    runs["run"] = name + runs["run"]
    timed = runs["metric"] == "op_s"
    runs.loc[timed, "value"] = runs.loc[timed, "value"] * factor
    header = next(h for h in record.headers if h["environment"]["device"] == "cpu")
    return runs, {**header, "file": name, "utc": utc}


def test_the_newest_file_speaks_and_files_never_mix(record: Any) -> None:
    runs, header = _copy(record, "new.jsonl", "2027-01-01T00:00:00Z", 10.0, ["polar.ns-torch", "polar.aol-torch"])
    both = pd.concat([record.runs, runs], ignore_index=True)
    before = pick(cases(record.runs, record.headers), "EPYC", "polar.aol-torch", "gaussian-512x512")
    found = cases(both, [*record.headers, header])
    after = pick(found, "EPYC", "polar.aol-torch", "gaussian-512x512")
    assert after.file == "new.jsonl"
    assert before.time_s is not None
    assert before.effect is not None
    assert after.time_s == pytest.approx(10 * before.time_s)
    assert after.effect is not None
    assert after.effect.ratio == pytest.approx(before.effect.ratio)
    other = pick(found, "EPYC", "polar.turbo-torch", "gaussian-512x512")
    assert other.file != "new.jsonl"
    assert other.effect is not None
    assert other.effect.ratio > 1.2


@pytest.mark.parametrize(("threads", "speaks"), [(4.0, False), (2.0, True)])
def test_a_newer_file_with_other_threads_than_most_cases_does_not_speak(
    record: Any, threads: float, speaks: bool
) -> None:
    runs, header = _copy(record, "new.jsonl", "2027-01-01T00:00:00Z", 10.0, ["polar.ns-torch", "polar.aol-torch"])
    both = pd.concat([record.runs, runs.assign(threads=threads)], ignore_index=True)
    found = pick(cases(both, [*record.headers, header]), "EPYC", "polar.aol-torch", "gaussian-512x512")
    assert (found.file == "new.jsonl") == speaks
    assert found.threads == 2


def test_a_newer_refusal_outranks_an_older_time_but_an_unfinished_gate_does_not(record: Any) -> None:
    runs, header = _copy(record, "new.jsonl", "2027-01-01T00:00:00Z", 1.0, ["polar.aol-torch"])
    gate = runs[runs["phase"] == "gate"]
    open_gate = cases(pd.concat([record.runs, gate], ignore_index=True), [*record.headers, header])
    assert pick(open_gate, "EPYC", "polar.aol-torch", "gaussian-512x512").status == "passed"
    refused = gate.assign(status="inaccurate", reason="too far")
    found = cases(pd.concat([record.runs, refused], ignore_index=True), [*record.headers, header])
    assert pick(found, "EPYC", "polar.aol-torch", "gaussian-512x512").reason == "too far"


def test_a_newer_file_with_too_few_blocks_does_not_speak_over_a_whole_one(record: Any) -> None:
    runs, header = _copy(record, "new.jsonl", "2027-01-01T00:00:00Z", 3.0, ["polar.ns-torch", "polar.aol-torch"])
    short = runs[(runs["phase"] != "block") | (runs["block"] == 0)]
    found = cases(pd.concat([record.runs, short], ignore_index=True), [*record.headers, header])
    kept = pick(found, "EPYC", "polar.aol-torch", "gaussian-512x512")
    assert kept.file != "new.jsonl"
    assert len(kept.blocks) == 10


def test_too_few_blocks_give_no_direction(make_record: Any, tmp_path: Path) -> None:
    small = make_record(tmp_path, blocks=3, shapes=(("gaussian", (64, 64)),))
    effects = [case.effect for case in cases(small.runs, small.headers) if case.effect is not None]
    assert effects
    assert {effect.side for effect in effects} == {"open"}


def test_nothing_stored_gives_no_case(empty_record: Any) -> None:
    assert cases(empty_record.runs, empty_record.headers) == []


def test_a_header_without_runs_gives_no_case(record: Any, tmp_path: Path) -> None:
    path = tmp_path / "only.jsonl"
    path.write_text(Path(record.headers[0]["file"]).read_text().split("\n")[0] + "\n")
    assert cases(read_runs(path), read_headers(path)) == []
