"""The record cannot lie, cannot be lost, and reads back as one frame."""

import gzip
import json
import time
import warnings
from pathlib import Path

import pytest
from pydantic import ValidationError

from harness.errors import BadRecord, UserError
from harness.record import lines, store
from harness.record.run import SEVERITY, STATUSES, Measurement, Run, worst


def make(**fields):
    base = {
        "run": "r1", "phase": "block", "case": "toy.a/p", "task": "toy", "method": "toy.a", "problem": "p",
        "arm": "toy.a", "status": "passed", "block": 0,
    }  # fmt: skip
    return Run(**(base | fields))


TIME = Measurement(metric="op_s", unit="s", samples=[0.5, 0.1, 0.2], clock="host")


@pytest.mark.parametrize("status", [s for s in STATUSES if s not in ("passed", "target_reached")])
def test_a_time_without_a_passed_gate_is_unrepresentable(status):
    with pytest.raises(ValidationError, match="cannot carry the timing"):
        make(status=status, reason="because", measurements=[TIME])


@pytest.mark.parametrize("metric", ["op_s", "op_graph_s", "first_call_s", "anything_s"])
def test_every_metric_in_seconds_is_a_time(metric):
    with pytest.raises(ValidationError):
        make(status="error", reason="x", measurements=[Measurement(metric=metric, unit="s", samples=[1.0])])


def test_training_runs_keep_unranked_seconds_but_never_a_time_to_target():
    elapsed = Measurement(metric="elapsed_s", unit="s", samples=[9.0])
    make(phase="training", status="diverged", reason="NaN", measurements=[elapsed])
    with pytest.raises(ValidationError):
        make(
            phase="training",
            status="budget_exhausted",
            reason="x",
            measurements=[Measurement(metric="time_to_target_s", unit="s", samples=[9.0])],
        )


def test_every_failure_carries_a_reason_and_errors_may_be_kept():
    with pytest.raises(ValidationError, match="needs a reason"):
        make(status="inaccurate")
    error = Measurement(metric="polar_error", unit="1", samples=[0.9])
    assert make(status="inaccurate", reason="0.9 > 0.3", measurements=[error]).measurements[0].samples == [0.9]


def test_the_worst_status_wins():
    assert worst(["passed", "unfaithful", "inaccurate"]) == "unfaithful"
    assert set(SEVERITY) | {"target_reached", "budget_exhausted", "diverged"} == set(STATUSES)


def header(**environment):
    return {
        "project": {"commit": "abc", "diff": ""},
        "environment": {"device": "cpu", "device_name": "CPU", "threads": 2, **environment},
        "plan": {"hash": "h", "suites": [{"task": "toy", "protocol": {"version": 1, "precision": "ieee"}}]},
    }


def write(path, runs, end=True, **environment):
    with store.Writer(path) as writer:
        writer.header(header(**environment))
        for run in runs:
            writer.run(run)
        if end:
            writer.end(utc="now", elapsed_s=1.0)
    return path


def test_reading_gives_one_row_per_metric_and_one_without(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        [
            make(measurements=[TIME, Measurement(metric="gap", unit="1", samples=[0.0])]),
            make(run="r2", phase="gate", status="error", reason="boom"),
        ],
    )
    frame = store.read_runs(path)
    assert list(frame.columns) == list(store.COLUMNS)
    assert len(frame) == 3
    assert frame["value"].iloc[0] == 0.2, "the median of the samples"
    assert frame["samples"].iloc[0] == [0.5, 0.1, 0.2]
    assert frame["metric"].isna().sum() == 1
    assert set(frame["device"]) == {"CPU"}
    assert set(frame["precision"]) == {"ieee"}
    assert store.read_headers(path)[0]["complete"] is True


def test_files_merge_by_being_copied_together(tmp_path):
    write(tmp_path / "a.jsonl", [make(run="1")])
    write(tmp_path / "deep" / "b.jsonl", [make(run="2")], device_name="other")
    frame = store.read_runs(tmp_path)
    assert sorted(frame["run"]) == ["1", "2"]
    assert set(frame["device"]) == {"CPU", "other"}
    assert len(store.read_runs([tmp_path / "a.jsonl", tmp_path / "deep"])) == 2


def test_a_torn_last_line_is_ignored_with_a_warning_and_cut_before_appending(tmp_path):
    path = write(tmp_path / "a.jsonl", [make(run="1"), make(run="2")], end=False)
    whole = path.read_text()
    path.write_text(whole[:-25])
    with pytest.warns(lines.TornLine):
        assert list(store.read_runs(path)["run"]) == ["1"]
    with store.Writer(path) as writer:
        writer.run(make(run="3"))
    assert list(store.read_runs(path)["run"]) == ["1", "3"]


def test_headers_are_read_from_both_ends_of_a_file_only(tmp_path, monkeypatch):
    long = make(run="2", phase="gate", status="error", reason="x" * 100_000)
    open_ended = write(tmp_path / "a.jsonl", [make(run="1"), long], end=False)
    write(tmp_path / "b.jsonl", [make(run="3")])
    (tmp_path / "c.jsonl").write_text("")
    middle = open_ended.read_text().splitlines()
    open_ended.write_text("\n".join([middle[0], "not read", middle[2]]) + "\n\n")
    monkeypatch.setattr(lines, "numbered", None)
    monkeypatch.setattr(store, "numbered", None)
    found = store.read_headers(tmp_path)
    assert [(Path(h["file"]).name, h["complete"]) for h in found] == [("a.jsonl", False), ("b.jsonl", True)]
    with (tmp_path / "b.jsonl").open("a") as stream:
        stream.write('{"record":"ru')
    with pytest.warns(lines.TornLine):
        assert store.read_headers(tmp_path / "b.jsonl")[0]["complete"] is True
    (tmp_path / "c.jsonl").write_text('{"record":"header","schema":1')
    with pytest.warns(lines.TornLine):
        assert store.read_headers(tmp_path / "c.jsonl") == []


HEAD = json.dumps({"record": "header", "schema": 1, **header()}) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"record":"run"}\n', "header in the first line"),
        ('{"record":"header","schema":99}\n', "schema 99"),
        ("{}\n", "key 'record'"),
        (HEAD + 'nonsense\n{"record":"end"}\n', "line 2"),
        (HEAD + '{"record":"run"}\n', r"bad.jsonl, line 2: run None has no text under 'run'"),
        (HEAD + '{"record":"zzz"}\n', "line 2: expected a run or the end, got 'zzz'"),
        (HEAD + HEAD, "line 2: expected a run or the end, got a second header"),
    ],
)
def test_a_bad_file_gives_one_clear_error(tmp_path, text, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(BadRecord, match=message):
        store.read_runs(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"environment": None}, "line 1: the header has no object under 'environment'"),
        ({"project": None}, "no object under 'project'"),
        ({"plan": None}, "no object under 'plan'"),
        ({"environment": {"device_name": "CPU"}}, "no text under 'device' of its environment"),
        ({"environment": {"device": "cpu"}}, "no text under 'device_name' of its environment"),
        ({"utc": "yesterday"}, "has the time 'yesterday'"),
        ({"plan": {"suites": [{"task": "toy"}]}}, "no list of suites"),
    ],
)
def test_an_odd_header_is_one_clear_error_to_every_reader(tmp_path, change, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({**json.loads(HEAD), **change}) + "\n")
    for reader in (store.read_runs, store.read_headers):
        with pytest.raises(BadRecord, match=message):
            reader(path)


def test_a_run_that_stands_twice_is_refused_and_never_counted_twice(tmp_path):
    path = write(tmp_path / "a.jsonl", [make(measurements=[TIME]), make(measurements=[TIME])])
    with pytest.raises(BadRecord, match="line 3: run 'r1' stands in the file already"):
        store.read_runs(path)


def test_a_packed_record_reads_as_the_plain_one(tmp_path):
    path = write(tmp_path / "a.jsonl", [make(run="1"), make(run="2", measurements=[TIME])])
    plain, head = store.read_runs(path), store.read_headers(path)
    packed = tmp_path / "a.jsonl.gz"
    whole = path.read_bytes()
    packed.write_bytes(gzip.compress(whole))
    path.unlink()
    assert store.read_runs(tmp_path).drop(columns="file").equals(plain.drop(columns="file"))
    assert [{**one, "file": ""} for one in store.read_headers(tmp_path)] == [{**one, "file": ""} for one in head]
    assert list(lines.read_lines(packed))[-1]["record"] == "end"
    for text in (HEAD, HEAD + '{"rec'):
        packed.write_bytes(gzip.compress(text.encode()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", lines.TornLine)
            assert [one["complete"] for one in store.read_headers(packed)] == [False]
    packed.write_bytes(gzip.compress(whole + b'\n{"rec'))
    with pytest.warns(lines.TornLine):
        assert store.read_headers(packed)[0]["complete"] is True


def test_a_packed_record_that_was_cut_off_is_one_clear_error(tmp_path):
    path = write(tmp_path / "a.jsonl", [make(run=str(i)) for i in range(50)])
    packed = tmp_path / "b.jsonl.gz"
    whole = gzip.compress(path.read_bytes())
    for broken in (whole[: len(whole) // 2], b"no gzip", whole[:40] + bytes(20) + whole[60:]):
        packed.write_bytes(broken)
        for reader in (store.read_runs, store.read_headers):
            with pytest.raises(BadRecord, match=r"b\.jsonl\.gz cannot be read as a record"):
                reader(packed)


def test_missing_and_binary_sources_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="no record at"):
        store.read_runs(tmp_path / "nowhere")
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadRecord):
        store.read_runs(tmp_path)
    assert len(store.read_runs([])) == 0


def test_an_unwritable_folder_and_a_full_disk_are_one_line(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    with pytest.raises(UserError, match="choose another folder"), store.Writer(blocker / "a.jsonl"):
        pass
    with pytest.raises(UserError, match="No space left"), store.Writer(__import__("pathlib").Path("/dev/full")) as full:
        full.header(header())


def test_slow_clocks_discard_the_whole_block(tmp_path):
    runs = [
        make(run=f"{block}{arm}", block=block, arm=arm, measurements=[TIME],
             detail={"sm_mhz": 1500 if (block, arm) == (3, "toy.a") else 1980})
        for block in range(8) for arm in ("toy.a", "toy.b")
    ]  # fmt: skip
    frame = store.read_runs(write(tmp_path / "a.jsonl", runs))
    capped = [run.model_copy(update={"detail": run.detail | {"throttle": ["software power cap"]}}) for run in runs]
    assert store.read_runs(write(tmp_path / "b.jsonl", capped))["discarded"].isna().all()
    gone = frame[frame["discarded"].notna()]
    assert set(gone["block"]) == {3}
    assert set(gone["arm"]) == {"toy.a", "toy.b"}
    assert "90%" in gone["discarded"].iloc[0]


def test_one_writer_a_file(tmp_path):
    import subprocess
    import sys

    path = write(tmp_path / "a.jsonl", [make()], end=False)
    with store.Writer(path):
        code = f"from pathlib import Path; from harness.record import store; print(store.in_use(Path({str(path)!r})))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "True"
    assert not store.in_use(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("samples", [0.0], "not positive and finite"),
        ("samples", [float("nan")], "not positive and finite"),
        ("samples", ["a"], "not numbers"),
        ("samples", [], "not numbers"),
        ("block", "two", "expected a number"),
        ("task", None, "no text under 'task'"),
        ("detail", None, "no detail object"),
        ("measurements", "foo", "list of measurements"),
        ("measurements", None, "list of measurements"),
        ("status", "great", "line 2: run 'r1' has the unknown status 'great', expected one of passed, "),
        ("phase", "warm", "has the unknown phase 'warm', expected one of gate, "),
        ("utc", "noon", "has the time 'noon'"),
        ("unit", "ms", "has 'op_s' in 'ms', expected seconds"),
        ("unit", None, "expected the names of a metric and of its unit"),
    ],
)
def test_odd_values_are_one_clear_error(tmp_path, field, value, message):
    path = write(tmp_path / "a.jsonl", [make(measurements=[TIME])])
    lines = path.read_text().splitlines()
    run = json.loads(lines[1])
    if field in ("samples", "unit"):
        run["measurements"][0][field] = value
    else:
        run[field] = value
    path.write_text("\n".join([lines[0], json.dumps(run), lines[2], ""]))
    with pytest.raises(BadRecord, match=message):
        store.read_runs(path)


def test_export_never_replaces_something_else(tmp_path):
    path = write(tmp_path / "a.jsonl", [make(measurements=[TIME])])
    (tmp_path / "notes.md").write_text("precious")
    with pytest.raises(UserError, match=r"is no \.csv file"):
        store.export(path, "csv", tmp_path / "notes.md")
    assert (tmp_path / "notes.md").read_text() == "precious"


def test_export_round_trips(tmp_path):
    import pandas as pd

    path = write(tmp_path / "a.jsonl", [make(measurements=[TIME])])
    table = pd.read_parquet(store.export(path, "parquet", tmp_path / "out" / "t.parquet"))
    assert list(table["samples"].iloc[0]) == [0.5, 0.1, 0.2]
    text = pd.read_csv(store.export(path, "csv", tmp_path / "t.csv"))
    assert json.loads(text["samples"].iloc[0]) == [0.5, 0.1, 0.2]
    with pytest.raises(UserError, match="parquet or csv"):
        store.export(path, "xml", tmp_path / "t.xml")


def test_a_hundred_thousand_records_load(tmp_path):
    """The promise is five seconds (about two here); the test only guards against a blow-up of the cost."""
    path = write(tmp_path / "a.jsonl", [make(measurements=[TIME])], end=False)
    line = path.read_text().splitlines()[-1]
    with path.open("a") as stream:
        stream.writelines(line.replace('"r1"', f'"r1-{copy}"') + "\n" for copy in range(99_999))
    start = time.process_time()
    assert len(store.read_runs(path)) == 100_000
    assert time.process_time() - start < 60


@pytest.mark.parametrize(
    ("name", "simd", "label"),
    [
        ("AMD EPYC", ["sse4_2", "avx2"], "AMD EPYC"),
        ("AMD EPYC", ["avx2", "avx512f", "avx512bw", "avx512_vnni"], "AMD EPYC with AVX-512 VNNI"),
        ("Intel(R) Xeon(R) Processor", ["avx512f", "avx512_vnni", "amx_int8"], "Intel(R) Xeon(R) Processor with AMX"),
        ("AMD EPYC 9654 96-Core Processor", ["avx512f", "avx512_vnni"], "AMD EPYC 9654 96-Core Processor"),
    ],
)
def test_a_cpu_without_a_model_number_is_called_by_its_width(name, simd, label):
    from harness.record.environment import cpu_label

    assert cpu_label(name, simd) == label
