"""What a task's runtime tells about a bound operation reaches the record: facts, parts, and nothing for a failure."""

import sys

from harness import read_runs
from harness.measure import executor
from harness.measure.plan import Request, build

TALKATIVE = """
import dataclasses
import toy_task

class Runtime(toy_task.Runtime):
    def facts(self, op, content, problem):
        return {"train_s": ([0.5], "s"), "touched": ([1.0, 2.0, 3.0], "bytes")}, {"runs": {"backend": "list"}}

    def parts(self, op):
        return {"half_s": lambda values: op(values[: len(values) // 2])}

RUNTIME = Runtime()
SUITE = dataclasses.replace(
    toy_task.SUITE,
    task=dataclasses.replace(toy_task.TASK, runtime="talkative:RUNTIME"),
    problems=toy_task.SUITE.problems[:1],
)
"""


def test_facts_and_parts_are_recorded(plugin, warm_workers, tmp_path):
    methods = {"toy.plain": "toy_methods:PLAIN", "toy.wrong": "toy_methods:WRONG"}
    folder = plugin(methods, suites={"toy": "talkative:SUITE"})
    (folder / "talkative.py").write_text(TALKATIVE)
    try:
        plan = build(Request(suites=("toy",), tier="quick", methods=("toy.plain", "toy.wrong"), blocks=6))
        frame = read_runs(executor.execute(plan, tmp_path / "out", "test").path)
    finally:
        sys.modules.pop("talkative", None)
    plain = frame[frame["method"] == "toy.plain"]
    gate = plain[plain["phase"] == "gate"].set_index("metric")
    assert gate.loc["train_s", "value"] == 0.5
    assert list(gate.loc["touched", "samples"]) == [1.0, 2.0, 3.0]
    assert (gate.loc["touched", "unit"], gate.loc["train_s", "clock"]) == ("bytes", "host")
    parts = plain[(plain["phase"] == "block") & (plain["metric"] == "half_s")]
    assert set(parts["block"]) == set(range(6))
    assert (parts["value"] > 0).all()
    wrong = frame[frame["method"] == "toy.wrong"]
    assert not wrong["metric"].isin(["train_s", "touched", "half_s"]).any()


def test_a_part_may_lie_under_the_floor_of_the_whole_call():
    timings = {"op_s": ("host", [3.0, 2.0]), "encode_s": ("host", [0.1]), "op_launch_s": ("launch", [0.01])}
    assert executor.fastest_call(timings) == 2.0
    assert executor.fastest_call({**timings, "op_hot_s": ("op", [1.5])}) == 1.5
    assert executor.fastest_call({"encode_s": ("host", [0.1])}) is None
