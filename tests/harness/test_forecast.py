"""The plan's estimate and what is dropped to keep a budget: by arithmetic and a clock that stands still."""

import pytest

from harness import read_runs
from harness.catalogue.method import Method
from harness.catalogue.protocol import Protocol
from harness.catalogue.suite import Problem, Suite
from harness.catalogue.task import Task
from harness.judge import summary
from harness.measure import executor
from harness.measure.forecast import Forecast
from harness.measure.plan import BUDGET_REASON, Plan, Request, SuitePlan, build
from harness.record import lines, store

START_S = 3.0
RATE = 1e9


def method(name, **fields):
    return Method(name=name, impl="nothing:at_all", summary="x", source="x", **fields)


def suite(name, problems=2, weight=1.0, methods=("plain", "new"), **fields):
    task = Task(name=name, summary="", contract="", runtime="", oracle="", errors={}, primary_error="")
    given = tuple(Problem(kind="k", shape=(n + 1,), dtype="float32", tiers=("standard",)) for n in range(problems))
    whole = Suite(name=name, task=task, problems=given, baseline=f"{name}.plain", weight=weight, protocol=Protocol())
    made = [method(f"{name}.{one}", **fields.get(one, {})) for one in methods]
    return SuitePlan(suite=whole, problems=list(given), methods=made, protocol=whole.protocol)


def forecast(*parts, budget_s=None, flops=0.0, blocks=10):
    plan = Plan(request=Request(budget_s=budget_s), device="cpu", suites=list(parts), blocks=blocks)
    made = Forecast(plan)
    keys = [f"{part.suite.name}/{problem.id}" for part in parts for problem in part.suite.problems]
    facts = {"work": {}, "typical": dict.fromkeys(keys, flops), "bytes": dict.fromkeys(keys, 0.0)}
    made.probed({**facts, "flops_per_s": RATE, "rates": {"float64": RATE, "bfloat16": RATE / 50}}, START_S)
    return made


def gated(made, part, name, problem, call_s=0.01, status="passed"):
    case = f"{part.suite.name}.{name}/{problem.id}"
    record = {"case": case, "method": case.split("/")[0], "problem": problem.id, "status": status}
    made.gate({**record, "detail": {"planning_s": call_s} if status == "passed" else {}})
    return case


def walls(part, problem, whole, share=0.25):
    """A block of content, baseline, alias and candidate, which has ``share`` of the whole."""
    rest = whole * (1 - share) / 3
    arms = {"(preparation)": rest, f"{part.suite.name}.plain": rest, f"{part.suite.name}.plain#aa": rest}
    arms[f"{part.suite.name}.new"] = whole * share
    return {(part.suite.name, problem.id, arm): seconds for arm, seconds in arms.items()}


def test_a_call_is_priced_by_the_dtype_that_it_computes_in():
    part = suite("one", new={"tags": ("slow-cpu",)})
    made = forecast(part, flops=1e8)
    plain, slow = (made.call_s(part, one, part.problems[0]) for one in part.methods)
    assert plain == pytest.approx(0.1, rel=0.01)
    assert slow == pytest.approx(5.0, rel=0.01)


def test_a_gate_s_own_call_wins_and_corrects_the_other_problems():
    part = suite("one")
    made = forecast(part, flops=1e8)
    gated(made, part, "plain", part.problems[0], call_s=0.4)
    first, second = (made.call_s(part, part.methods[0], problem) for problem in part.problems)
    assert first == 0.4
    assert second == pytest.approx(0.4), "the same work, so the same time"
    assert made.call_s(part, part.methods[1], part.problems[1]) == pytest.approx(0.1, rel=0.01)


def test_a_block_counts_the_baseline_twice_and_no_arm_that_cannot_run():
    part = suite("one", problems=1, methods=("plain", "new", "bad"))
    made = forecast(part)
    for name, status in (("plain", "passed"), ("new", "passed"), ("bad", "unsupported")):
        gated(made, part, name, part.problems[0], call_s=1.0, status=status)
    # three arms (one is the baseline's alias) of a warm-up, a sample and a checked call
    assert made.block_s(part, part.problems[0]) == pytest.approx(9.0, rel=0.05)


def test_a_method_that_failed_on_one_problem_is_not_expected_on_another():
    part = suite("one")
    made = forecast(part, flops=1e9)
    before = made.block_s(part, part.problems[1])
    gated(made, part, "new", part.problems[0], status="unsupported")
    assert made.block_s(part, part.problems[1]) < 0.8 * before


def test_all_suites_share_the_starts():
    one, two = suite("one", problems=1), suite("two", problems=1)
    alone, both = forecast(one).left_s(), forecast(one, two).left_s()
    assert both - alone < 11 * START_S, "a block starts one worker, however many suites it has"
    assert forecast(one).left_s() > 11 * START_S


def test_gates_that_took_longer_than_the_model_scale_those_to_come():
    part = suite("one")
    made = forecast(part)
    before = made.left_s()
    for name in ("plain", "new"):
        case = gated(made, part, name, part.problems[0], call_s=1e-4)
        made.gate_took(case, 0.9)  # a tenth of a start is expected
    gates = made.left_s() - forecast(part).left_s() + 2 * 0.3
    assert before == forecast(part).left_s()
    assert gates == pytest.approx(2 * (0.9 - 0.3), rel=0.1)


def test_measured_blocks_replace_the_model():
    part = suite("one", problems=1)
    made = forecast(part)
    for name in ("plain", "new"):
        gated(made, part, name, part.problems[0])
    for wall in (5.0, 7.0, 6.0):
        made.block_took(walls(part, part.problems[0], wall), rest_s=4.0)
    assert made.left_s(blocks_done=3) == pytest.approx(7 * (6.0 + 4.0))


def test_without_a_budget_nothing_is_dropped():
    part = suite("one", problems=5)
    made = forecast(part, flops=1e12)
    assert made.fit(1e6) == []
    assert (len(part.problems), made.plan.blocks) == (5, 10)


def test_the_probe_drops_problems_from_the_end_and_leaves_every_suite_one():
    heavy, light = suite("heavy", problems=4), suite("light", problems=4, weight=0.1)
    made = forecast(heavy, light, budget_s=60.0, flops=1e9)
    lost = [case.partition("/")[2] for part, case in made.fit(0.0) if part is heavy]
    assert lost == [f"k-{size}-float32-cpu" for size in (4, 4, 3, 3, 2, 2)], "two methods on each"
    assert (len(heavy.problems), len(light.problems)) == (1, 1)
    assert made.plan.blocks == 6, "never fewer"
    assert made.left_s() > 60.0, "the least may take longer; nothing is known for certain yet"


def test_the_suite_furthest_over_its_share_loses_first():
    heavy, light = suite("heavy", problems=3), suite("light", problems=3, weight=0.1)
    made = forecast(heavy, light, flops=1e9)
    made.plan.request = Request(budget_s=made.left_s() - 1.0)
    assert next(part.suite.name for part, _ in made.fit(0.0)) == "light"


def test_what_fits_is_kept_whole():
    part = suite("one", problems=3)
    made = forecast(part, flops=1e9)
    made.plan.request = Request(budget_s=made.left_s() * 1.1)
    assert made.fit(0.0) == []
    assert (len(part.problems), made.plan.blocks) == (3, 10)


def lost(made, *given, **more):
    return [case for _, case in made.fit(*given, **more)]


def test_after_the_gates_a_whole_suite_may_go_but_not_the_heaviest():
    heavy, light = suite("heavy", problems=1), suite("light", problems=1, weight=0.1)
    made = forecast(heavy, light, budget_s=75.0, blocks=6)
    for part in (heavy, light):
        for name in ("plain", "new"):
            gated(made, part, name, part.problems[0], call_s=1.0)
    assert made.left_s() > 75.0 * 1.1
    assert lost(made, 0.0) == ["light.plain/k-1-float32-cpu", "light.new/k-1-float32-cpu"]
    assert (len(heavy.problems), len(light.problems)) == (1, 0)
    assert made.left_s() < 75.0 * 1.1


def test_a_suite_is_not_lost_for_nothing():
    heavy, light = suite("heavy", problems=1), suite("light", problems=1, weight=0.1)
    made = forecast(heavy, light, budget_s=20.0, blocks=6)
    for part in (heavy, light):
        for name in ("plain", "new"):
            gated(made, part, name, part.problems[0], call_s=1.0)
    assert lost(made, 0.0) == []
    assert (len(heavy.problems), len(light.problems)) == (1, 1)


def test_the_dearest_cell_goes_before_a_suite_and_never_a_baseline():
    heavy = suite("heavy", problems=1, methods=("plain", "new", "other", "dear"))
    light = suite("light", problems=1, weight=0.1, methods=("plain", "new", "other"))
    made = forecast(heavy, light, budget_s=70.0, blocks=6)
    slow = {"heavy.dear": 3.0, "light.plain": 0.5}
    for part in (heavy, light):
        for one in part.methods:
            gated(made, part, one.name.split(".")[1], part.problems[0], call_s=slow.get(one.name, 0.1))
    assert lost(made, 0.0) == ["heavy.dear/k-1-float32-cpu"]
    assert heavy.skipped == {"heavy.dear/k-1-float32-cpu": BUDGET_REASON}
    made.plan.request = Request(budget_s=40.0)
    assert lost(made, 0.0) == [f"light.{name}/k-1-float32-cpu" for name in ("plain", "new", "other")]
    assert len(heavy.problems) == 1


def test_blocks_under_way_go_before_problems_and_only_then_are_problems_lost():
    part = suite("one", problems=2)
    made = forecast(part, budget_s=100.0)
    for problem in part.problems:
        for name in ("plain", "new"):
            gated(made, part, name, problem)
    first, second = part.problems
    made.block_took({**walls(part, first, 5.0), **walls(part, second, 5.0)}, rest_s=1.0)
    assert made.fit(20.0, blocks_done=1) == []
    assert made.plan.blocks == 8, "20 s are spent and a block takes 11"
    for _ in range(2):
        made.block_took({**walls(part, first, 5.0), **walls(part, second, 60.0)}, rest_s=1.0)
    assert lost(made, 70.0, blocks_done=3) == [f"one.{name}/{second.id}" for name in ("plain", "new")]
    assert made.plan.blocks == 6
    assert made.left_s(blocks_done=3) == pytest.approx(3 * 6.0)


def test_a_dear_cell_of_blocks_under_way_takes_its_own_time_along():
    part = suite("one", problems=1, methods=("plain", "new", "other", "more"))
    made = forecast(part, budget_s=100.0, blocks=6)
    for name in ("plain", "new", "other", "more"):
        gated(made, part, name, part.problems[0])
    block = walls(part, part.problems[0], 40.0, share=0.9)
    block |= {("one", part.problems[0].id, f"one.{name}"): 1.0 for name in ("other", "more")}
    made.block_took(block, rest_s=1.0)
    assert made.left_s(blocks_done=1) == pytest.approx(5 * 43.0)
    assert lost(made, 43.0, blocks_done=1) == ["one.new/k-1-float32-cpu"]
    assert made.left_s(blocks_done=1) == pytest.approx(5 * 7.0)


# -- in the executor ---------------------------------------------------------------------------------------------------


class Notes:
    """Keeps what the executor says."""

    def __init__(self):
        self.lines = []

    def phase(self, title, total, done=0): ...

    def step(self, text): ...

    def note(self, text):
        self.lines.append(text)


class Clock:
    """Stands still but for what a test puts on."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def slow_second(monkeypatch):
    """A clock by which an arm of the toy's second problem takes 30 s in a block and everything else no time."""
    clock = Clock()
    keep = executor._Executor._block_result

    def result(self, part, block, message):
        clock.seconds += 30.0 if message["problem"].startswith("uniform-4000-") else 0.0
        keep(self, part, block, message)

    monkeypatch.setattr(executor, "now", clock)
    monkeypatch.setattr(executor._Executor, "_block_result", result)
    return clock


def test_a_run_that_falls_behind_leaves_out_a_problem_says_so_and_writes_it_down(
    toy, warm_workers, tmp_path, slow_second
):
    toy("added")
    notes = Notes()
    plan = build(Request(suites=("toy",), tier="quick", blocks=8, budget_s=200.0))
    result = executor.execute(plan, tmp_path, "test", notes)
    frame = read_runs(result.path)
    timed = frame[frame["metric"] == "op_s"].groupby("problem")["block"].nunique()
    assert timed["uniform-2000-float64-cpu"] == 6
    assert timed["uniform-4000-float64-cpu"] == 1
    said = [line for line in notes.lines if line.startswith(BUDGET_REASON)]
    assert len(said) == 1
    assert "1 problems of toy, blocks 7 to 8" in said[0]
    planned = frame[frame["phase"] == "plan"].set_index("case")["reason"]
    assert set(planned.index) == {f"toy.{name}/uniform-4000-float64-cpu" for name in ("plain", "added")}
    assert set(planned) == {f"{BUDGET_REASON} (timed in 1 of 8 blocks)"}
    rows = summary.rows(frame, store.read_headers(result.path)[0])
    told = {(row["method"], row["problem"].split("-")[1]): (row["status"], row["n"]) for row in rows}
    assert told["toy.added", "2000"] == ("passed", 6)
    assert told["toy.added", "4000"] == ("unsupported", 0)
    assert result.elapsed_s == pytest.approx(90.0), "one block of three arms"


def test_what_the_budget_left_out_stays_out_when_the_run_is_resumed(
    toy, warm_workers, tmp_path, slow_second, monkeypatch
):
    toy("added")
    request = Request(suites=("toy",), tier="quick", blocks=8, budget_s=200.0)

    class Killer(Notes):
        def note(self, text):
            super().note(text)
            self.armed = text.startswith(BUDGET_REASON)

        def step(self, text):
            if getattr(self, "armed", False) and text.startswith("block 2"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        executor.execute(build(request), tmp_path, "test", Killer())
    result = executor.execute(build(request), tmp_path, "test")
    assert result.resumed
    assert result.planned_s is None
    timed = read_runs(result.path).query("metric == 'op_s'").groupby("problem")["block"].nunique()
    assert timed["uniform-4000-float64-cpu"] == 1
    assert timed["uniform-2000-float64-cpu"] == 8, "by its own clock the resumed run has time again"


def test_the_end_of_a_record_says_what_was_planned_and_what_each_part_took(toy, warm_workers, tmp_path):
    toy()
    result = executor.execute(build(Request(suites=("toy",), tier="quick", blocks=6)), tmp_path, "test")
    end = list(lines.read_lines(result.path))[-1]
    assert end["record"] == "end"
    assert end["planned_s"] > 0
    assert set(end["phases_s"]) == {"probe", "gates", "blocks"}
    assert sum(end["phases_s"].values()) <= end["elapsed_s"] + 0.5


def test_a_death_costs_no_other_suite_of_its_block(plugin, warm_workers, tmp_path):
    folder = plugin(
        {f"toy.{name}": f"toy_methods:{name.upper()}" for name in ("plain", "dies_in_blocks")}
        | {"other.plain": "other_task:PLAIN"},
        suites={"toy": "toy_task:SUITE", "other": "other_task:SUITE"},
    )
    (folder / "other_task.py").write_text(OTHER)
    plan = build(Request(suites=("toy", "other"), tier="quick", blocks=6))
    frame = read_runs(executor.execute(plan, tmp_path / "out", "test").path)
    blocks = frame[frame["phase"] == "block"].set_index("arm")
    assert set(blocks.loc["toy.dies_in_blocks", "status"]) == {"error"}
    timed = frame[frame["metric"] == "op_s"].groupby(["task", "problem"])["block"].nunique()
    assert set(timed) == {6}
    assert len(timed) == 3


OTHER = """
import dataclasses
import toy_methods, toy_task

TASK = dataclasses.replace(toy_task.TASK, name="other")
SUITE = dataclasses.replace(
    toy_task.SUITE, name="other", task=TASK, problems=toy_task.SUITE.problems[:1], baseline="other.plain"
)
PLAIN = dataclasses.replace(toy_methods.PLAIN, name="other.plain")
"""
