"""What the scaling runs ask for: every combination once, whole refresh periods, one batch kept."""

from dataclasses import replace

import pytest

from harness.errors import UserError
from harness.measure.training.plan import build
from harness.measure.training.scaling import Asked, check, points, request
from suites.scaling_bench import METHODS, asked

CPU = Asked(
    workload="digits-cnn",
    methods=("training.sgd", "training.kfac-cholesky"),
    sharded=("training.kfac-cholesky",),
    worlds=(1, 2, 4),
    per_rank=64,
    period=20,
    blocks=3,
    hyper=("kfac-cholesky.refresh_period=20",),
    device="cpu",
)


def test_points_are_every_combination_once():
    found = {(one.world, one.per_rank, one.sharding): one for one in points(CPU)}
    assert found[1, 64, "none"].modes == ("weak", "strong")
    assert found[4, 64, "none"].modes == ("weak",)
    assert found[4, 16, "owner"].modes == ("strong",)
    assert found[2, 64, "owner"].methods == ("training.kfac-cholesky",)
    assert (1, 64, "owner") not in found, "one process has every layer"
    assert len(found) == len(points(CPU)) == 9


def test_a_request_keeps_the_batch_and_evaluates_at_the_ends_only():
    point = next(one for one in points(CPU) if (one.world, one.per_rank, one.sharding) == (4, 16, "owner"))
    plan = build(request(CPU, point, 2))
    spec = plan.spec(plan.parts[0], plan.parts[0].arms[0], 0)
    workload = spec.found_workload()
    assert (workload.batch, spec.world, spec.seed, spec.block_updates) == (64, 4, 2, 20)
    assert spec.factory["sharding"] == "owner"
    assert spec.factory["refresh_period"] == 20
    updates = spec.trainer["epochs"] * workload.params["synthetic_images"] / workload.batch
    assert round(updates) == 60
    assert workload.eval_every > 10**15
    assert spec.extra["scaling"]["modes"] == ["strong"]
    assert plan.describe("")["ranks"]["world"] == 4


def test_the_gpu_script_asks_for_whole_refresh_periods():
    for quick in (True, False):
        one = asked(quick, "cuda", (1, 2), METHODS)
        assert one.per_rank == 2048
        assert f"kfac-cholesky.refresh_period={one.period}" in one.hyper
    brief = points(asked(True, "cuda", (1, 2), METHODS))
    strong = [point for point in brief if point.modes == ("strong",)]
    assert {point.sharding: point.methods for point in strong} == {
        "none": ("training.sgd",),
        "owner": ("training.kfac-cholesky", "training.fop"),
    }


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"workload": "nope"}, "unknown workload 'nope'"),
        ({"methods": ("nope",), "sharded": ()}, "unknown method 'training.nope'"),
        ({"rounds": 0}, "--rounds 0: expected at least 1"),
        ({"blocks": 1}, "--blocks 1: expected at least 2"),
        ({"period": 0}, "--period 0"),
        ({"per_rank": 0}, "--per-rank 0"),
        ({"sharded": ("nope",)}, "--sharded nope: expected one of the methods measured"),
        ({"precision": "fp7"}, "expected one of ieee"),
        ({"per_rank": 1}, "fewer samples than the"),
    ],
)
def test_what_no_point_can_survive_is_refused_before_anything_runs(wrong, text):
    with pytest.raises(UserError) as caught:
        check(replace(CPU, **wrong))
    assert text in str(caught.value)
