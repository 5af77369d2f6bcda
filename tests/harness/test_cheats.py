"""Every way to fool or break the harness that the protocol names must be caught, and written down with a reason."""

import pytest

from harness import read_runs
from harness.measure import executor
from harness.measure.plan import Request, build

pytestmark = pytest.mark.usefixtures("warm_workers")


def measure(tmp_path, *methods):
    plan = build(Request(suites=("toy",), tier="quick", methods=tuple(f"toy.{m}" for m in methods), blocks=6))
    result = executor.execute(plan, tmp_path / "out", "test")
    return read_runs(result.path)


def gate_of(frame, method):
    rows = frame[(frame["phase"] == "gate") & (frame["method"] == f"toy.{method}")]
    assert len(rows), f"no gate record of {method}"
    return set(rows["status"]), " ".join(str(r) for r in rows["reason"])


CAUGHT = {
    "mutates": ("impure", "input was changed"),
    # Which of these depends on where the allocator puts things: an old answer may even be of another length.
    "by_address": ("inaccurate|impure|error", "gap|cached by address|expected"),
    "by_content": ("impure", "cached by content"),
    "static_output": ("impure", "outputs share memory, and each call must return new memory"),
    "nan": ("nonfinite", "1 of 2000"),
    "negated": ("inaccurate", "gap"),
    "wrong": ("inaccurate", "gap"),
    "unfaithful": ("unfaithful", "reference"),
    "short": ("error", "expected 2000 numbers, got 1999"),
    "raises": ("error", "ValueError: no luck today"),
    "refuses": ("unsupported", "only even lists"),
    "segfaults": ("error", "SIGSEGV"),
    "out_of_memory": ("out_of_memory", "gibibyte"),
    "killed": ("error", "killed by signal 9 (SIGKILL); lack of memory is one cause"),
}


def test_gate_catches_every_cheat_and_times_none(toy, tmp_path):
    toy(*CAUGHT)
    frame = measure(tmp_path, *CAUGHT)
    for method, (statuses, reason) in CAUGHT.items():
        found, why = gate_of(frame, method)
        assert found <= set(statuses.split("|")), (method, found, why)
        assert any(part in why for part in reason.split("|")), (method, why)
        mine = frame[frame["method"] == f"toy.{method}"]
        assert not mine["metric"].fillna("").str.endswith("_s").any(), method
        assert (mine["phase"] == "gate").all(), method
    honest = frame[(frame["method"] == "toy.plain") & (frame["metric"] == "op_s")]
    assert honest["block"].nunique() == 6
    assert set(honest["arm"]) == {"toy.plain", "toy.plain#aa"}
    assert (honest["value"] > 0).all()


def test_a_kill_is_for_lack_of_memory_only_where_the_kernel_counts_one(toy, tmp_path, monkeypatch):
    from harness.measure import isolate

    counted = iter(range(1000))
    monkeypatch.setattr(isolate, "oom_kills", lambda: next(counted))
    toy("killed")
    found, why = gate_of(measure(tmp_path, "killed"), "killed")
    assert found == {"out_of_memory"}
    assert "signal 9" in why


def test_the_nearest_counter_of_kills_is_read(tmp_path, monkeypatch):
    from harness.measure import isolate

    events = tmp_path / "memory.events"
    events.write_text("low 0\noom 4\noom_kill 3\n")
    monkeypatch.setattr(isolate, "OOM_COUNTERS", (str(tmp_path / "none"), str(events)))
    assert isolate.oom_kills() == 3
    events.write_text("oom_kill many\n")
    assert isolate.oom_kills() == 0


def test_a_hanging_method_is_a_timeout(toy, tmp_path, monkeypatch):
    from harness.measure import isolate

    monkeypatch.setattr(isolate, "START_GRACE_S", 4.0)
    toy("hangs")
    status, reason = gate_of(measure(tmp_path, "hangs"), "hangs")
    assert status == {"timeout"}
    assert "no answer within 4 s" in reason


def test_garbage_on_stdout_harms_nothing(toy, tmp_path):
    toy("garbage", "added")
    frame = measure(tmp_path, "garbage", "added")
    for method in ("garbage", "added"):
        assert gate_of(frame, method)[0] == {"passed"}
        assert frame[(frame["method"] == f"toy.{method}") & (frame["metric"] == "op_s")]["block"].nunique() == 6


def test_wrong_only_when_timed_is_refused_a_time(toy, tmp_path):
    toy("late_cheat", "added")
    frame = measure(tmp_path, "late_cheat", "added")
    assert gate_of(frame, "late_cheat")[0] == {"passed"}
    blocks = frame[(frame["method"] == "toy.late_cheat") & (frame["phase"] == "block")]
    assert set(blocks["status"]) == {"inaccurate"}
    assert blocks["reason"].str.contains("in a block: gap").all()
    assert "op_s" not in set(blocks["metric"])
    assert frame[(frame["method"] == "toy.added") & (frame["metric"] == "op_s")]["block"].nunique() == 6


def test_an_output_that_goes_stale_after_the_first_calls_is_refused_a_time(toy, tmp_path):
    toy("goes_stale")
    frame = measure(tmp_path, "goes_stale")
    assert gate_of(frame, "goes_stale")[0] == {"passed"}
    blocks = frame[(frame["method"] == "toy.goes_stale") & (frame["phase"] == "block")]
    assert set(blocks["status"]) <= {"inaccurate", "error"}, "the second problem has another length"
    assert "op_s" not in set(blocks["metric"])


@pytest.mark.parametrize(
    ("method", "reason"), [("exits", "ended without an answer"), ("writes_to_pipes", "the harness's own pipe")]
)
def test_a_worker_that_ends_or_babbles_costs_that_case_alone(toy, tmp_path, method, reason):
    toy(method, "added")
    frame = measure(tmp_path, method, "added")
    status, why = gate_of(frame, method)
    assert status == {"error"}
    assert reason in why
    assert frame[(frame["method"] == "toy.added") & (frame["metric"] == "op_s")].groupby("problem").size().eq(6).all()


def test_a_crash_in_a_block_costs_that_case_alone(toy, tmp_path):
    toy("dies_in_blocks", "added")
    frame = measure(tmp_path, "dies_in_blocks", "added")
    dead = frame[(frame["method"] == "toy.dies_in_blocks") & (frame["phase"] == "block")]
    assert set(dead["status"]) == {"error"}
    assert dead["reason"].str.contains("SIGABRT").all()
    assert len(dead) == 2, "one record a problem: it is not tried again in later blocks"
    assert frame[(frame["method"] == "toy.added") & (frame["metric"] == "op_s")].groupby("problem").size().eq(6).all()


def test_a_time_under_the_physical_floor_is_an_error(toy, tmp_path):
    toy("too_fast")
    frame = measure(tmp_path, "too_fast")
    blocks = frame[(frame["method"] == "toy.too_fast") & (frame["phase"] == "block")]
    assert set(blocks["status"]) == {"error"}
    assert blocks["reason"].str.contains("physical floor").all()


def test_a_missing_need_is_written_down(toy, tmp_path):
    toy("needs_cuda")
    frame = measure(tmp_path, "needs_cuda")
    rows = frame[frame["method"] == "toy.needs_cuda"]
    if set(rows["status"]) == {"passed"}:
        pytest.skip("this machine has an NVIDIA device")
    assert set(rows["phase"]) == {"plan"}
    assert set(rows["status"]) == {"unsupported"}
    assert rows["reason"].str.contains("needs CUDA").all()
