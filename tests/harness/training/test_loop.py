"""One run in this process: statuses, shared streams, warm-up reset, accumulation, closures, curves."""

import math

import pytest
import torch

from harness.measure.training import state


def values(outcome, metric):
    return outcome.measurements[metric][1]


def test_a_run_reaches_its_target_and_records_everything(run_one):
    outcome, _ = run_one("sgd")
    assert outcome.status == "target_reached"
    assert outcome.reason is None
    curve = {name: values(outcome, f"curve_{name}") for name in ("steps", "samples", "s", "test_accuracy")}
    assert curve["steps"] == [0, 16, 32, 48, 64, 80, 96]
    assert [32 * s for s in curve["steps"]] == curve["samples"]
    assert curve["s"][0] == 0
    assert all(a < b for a, b in zip(curve["s"], curve["s"][1:], strict=False))
    assert len(values(outcome, "curve_train_loss")) == len(values(outcome, "curve_test_loss")) == 7
    time_s, steps = values(outcome, "time_to_target_s")[0], values(outcome, "steps_to_target")[0]
    assert 0 < time_s < values(outcome, "elapsed_s")[0]
    assert values(outcome, "total_time_to_target_s")[0] > time_s
    assert values(outcome, "samples_to_target")[0] == pytest.approx(32 * steps)
    assert values(outcome, "final_test_accuracy") == [curve["test_accuracy"][-1]]
    assert values(outcome, "best_test_accuracy") == [max(curve["test_accuracy"])]
    assert values(outcome, "best_test_loss") == [min(values(outcome, "curve_test_loss"))]
    assert len(values(outcome, "step_s")) == len(values(outcome, "optimizer_step_s")) == 6
    for bucket in ("data", "forward", "backward", "optimizer", "evaluation", "compile"):
        assert values(outcome, f"bucket_{bucket}_s")[0] > 0
    assert values(outcome, "bucket_optimizer_apply_s")[0] == pytest.approx(6e-4)
    spent = sum(values(outcome, f"bucket_{name}_s")[0] for name in ("data", "forward", "backward", "optimizer"))
    assert 0 < spent <= values(outcome, "elapsed_s")[0]
    assert values(outcome, "final_norm")[0] > 0
    assert values(outcome, "stall")[0] < 1
    detail = outcome.detail
    assert detail["coverage"] == {"sgd": 244}
    assert detail["warmup_hash_ok"]
    assert not detail["resumed"]
    assert detail["split"] == "test"
    assert [c["level"] for c in detail["crossings"]][:2] == [0.9, 0.6]
    assert detail["hyper"]["schedule"] == "linear"
    assert values(outcome, "optimizer_state_bytes") == [4 * 244]


@pytest.mark.parametrize(
    ("method", "status", "text"),
    [
        ("nan", "diverged", "nan after"),
        ("blows-up", "diverged", "10 times the initial"),
        ("oom", "out_of_memory", "gibibyte"),
        ("raises", "error", "no luck today at toy_training.py"),
        ("refuses", "unsupported", "only convex problems"),
        ("deaf", "unsupported", "never called the closure"),
        ("impure", "error", "thread count"),
        ("hidden", "error", "does not restore its whole state"),
        ("hooks", "error", "hash of model, optimizer and generators differs"),
    ],
)
def test_every_way_to_fail_is_a_status_with_a_reason(run_one, method, status, text):
    threads = torch.get_num_threads()
    outcome, _ = run_one(method)
    assert outcome.status == status, outcome.reason
    assert text in outcome.reason
    assert "time_to_target_s" not in outcome.measurements
    assert torch.get_num_threads() == threads
    assert outcome.detail["hyper"]["epochs"] == 6


def test_failed_runs_stay_at_risk_to_the_end_of_the_budget(run_one):
    outcome, _ = run_one("oom")
    censored = outcome.detail["censored_at"]
    assert censored["steps_to_target"] == 96
    assert censored["samples_to_target"] == 96 * 32
    assert values(outcome, "censored_at_s") == [censored["time_to_target_s"]]
    mean = sum(values(outcome, "step_s")) / len(values(outcome, "step_s"))
    elapsed = values(outcome, "elapsed_s")[0]
    assert censored["time_to_target_s"] == pytest.approx(max(96 * mean, elapsed))


def test_a_failed_run_is_not_at_risk_beyond_the_budget_in_seconds():
    from harness.measure.training.log import Log
    from harness.measure.training.outcome import _censored

    log = Log(done=10, train_s=5.0, step_s=[0.5, 0.5])
    assert _censored(log, "diverged", 100, 32, 60.0)["time_to_target_s"] == 50.0
    slow = Log(done=10, train_s=55.0, step_s=[0.5, 0.5])  # a stall that no block shows
    assert _censored(slow, "diverged", 100, 32, 60.0)["time_to_target_s"] == 55.0
    found = _censored(log, "diverged", 100, 32, 20.0)
    assert found == {"time_to_target_s": 20.0, "steps_to_target": 40.0, "samples_to_target": 1280.0}


def test_compiling_and_warming_up_is_charged_to_every_run_alike(run_one):
    """The first arm of a process builds what the later ones reuse; no arm's total may depend on the order."""
    _, first = run_one("sgd")
    charged = dict.fromkeys(first.costs, 1000.0)
    assert {key[-1] for key in charged} == {"graph", "training.toy-sgd"}
    later, _ = run_one("sgd", costs=charged)
    assert values(later, "bucket_compile_s") == [2000.0]
    assert 0 < later.detail["warmup_own_s"] < 1000
    reached = values(later, "time_to_target_s")[0]
    assert values(later, "total_time_to_target_s")[0] == pytest.approx(2000 + reached)
    other, _ = run_one("adam", costs=charged)
    assert 1000 < values(other, "bucket_compile_s")[0] < 2000


def test_a_method_tells_what_it_is_made_of(run_one, monkeypatch):
    monkeypatch.setattr(torch.optim.SGD, "describe", lambda self: {"engine": "toy"}, raising=False)
    assert run_one("sgd")[0].detail["optimizer"] == {"engine": "toy"}
    assert run_one("adam")[0].detail["optimizer"] is None


def test_a_brake_of_the_device_is_noted_and_stays(run_one):
    from harness.measure.training.log import Log

    log = Log()
    log.saw({"sm_mhz": 1700, "temperature_c": 60, "throttle": ["software power cap"]})
    assert log.braked is None
    log.saw({"sm_mhz": 900, "throttle": ["hardware thermal slowdown"], "discarded": "hardware thermal slowdown"})
    log.saw({"sm_mhz": 1700})
    assert (log.sm_mhz, log.braked) == ([1700.0, 900.0, 1700.0], "hardware thermal slowdown")
    assert log.throttle == ["hardware thermal slowdown", "software power cap"]
    assert run_one("sgd", hyper=("epochs=1",))[0].detail["braked"] is None


def test_a_missed_target_is_censored_at_its_own_clock(run_one):
    outcome, _ = run_one("sgd", hyper=("lr=1e-6",))
    assert outcome.status == "budget_exhausted"
    assert "wanted at least 0.9" in outcome.reason
    assert values(outcome, "censored_at_s") == values(outcome, "elapsed_s")
    assert outcome.detail["censored_at"]["steps_to_target"] == 96


def test_the_budget_in_seconds_ends_a_run(run_one):
    outcome, _ = run_one("slow", "blobs-long", max_s=0.1)
    assert outcome.status == "budget_exhausted"
    assert "budget of 0.1 s" in outcome.reason
    assert 0 < values(outcome, "steps")[0] < 640
    assert outcome.detail["stopped_by"] == "max_s"


def test_a_run_stops_after_its_last_level_unless_it_is_full(run_one):
    early, _ = run_one("sgd", "blobs-loss", full=False)
    whole, _ = run_one("sgd", "blobs-loss", full=True)
    assert early.detail["stopped_early"]
    assert not whole.detail["stopped_early"]
    assert values(early, "steps")[0] < values(whole, "steps")[0] == 96
    assert values(early, "steps_to_target") == values(whole, "steps_to_target")
    # 100 samples a turn in batches of 32: evaluated as soon as each multiple is seen
    assert values(whole, "curve_steps")[:5] == [0, 4, 7, 10, 13]


#: A rate at which the levels of ``blobs`` are crossed one after the other.
SLOW = ("lr=0.003",)


def test_a_run_ends_at_the_level_that_was_asked_for(run_one):
    whole, _ = run_one("sgd", hyper=SLOW, full=True)
    early, _ = run_one("sgd", hyper=SLOW, full=False, until=0.6)
    crossed = {found["level"]: found["steps"] for found in whole.detail["crossings"]}
    assert [found["level"] for found in early.detail["crossings"]] == [0.6]
    assert early.detail["crossings"][0]["steps"] == crossed[0.6]
    assert early.status == "budget_exhausted"
    assert "stopped at 0.6, as asked" in early.reason
    assert early.detail["stopped_early"]
    assert early.detail["spec"]["until"] == 0.6
    assert early.detail["censored_at"]["steps_to_target"] == values(early, "steps")[0] < values(whole, "steps")[0]


def test_a_fixed_schedule_is_judged_at_its_end(run_one):
    outcome, _ = run_one("sgd", "blobs-final", full=False)
    assert outcome.status == "target_reached"
    assert values(outcome, "steps_to_target") == [96]
    assert values(outcome, "time_to_target_s") == values(outcome, "elapsed_s")


def test_a_metric_that_the_runtime_does_not_know(run_one):
    outcome, _ = run_one("sgd", "blobs-wrong")
    assert outcome.status == "unsupported"
    assert "test_beauty" in outcome.reason


def test_the_validation_split_hides_the_test_set(run_one):
    outcome, run = run_one("sgd", validation=True)
    assert run.data.split == "validation"
    assert outcome.detail["split"] == "validation"
    assert "final_val_accuracy" in outcome.measurements
    assert not any("test" in name for name in outcome.measurements)


def test_arms_of_a_seed_share_weights_and_data_and_the_alias_does_not(run_one):
    first, run_a = run_one("sgd", hyper=("epochs=1",))
    other, run_b = run_one("adam", hyper=("epochs=1",))
    alias, run_c = run_one("sgd", hyper=("epochs=1",), stream=1_000_003)
    for name in ("test_accuracy", "test_loss", "train_loss"):
        assert values(first, f"curve_{name}")[0] == values(other, f"curve_{name}")[0]
        assert values(first, f"curve_{name}")[0] != values(alias, f"curve_{name}")[0]
    asked = [[(f, c) for _, f, c in run.data.asked[-16:]] for run in (run_a, run_b, run_c)]
    assert asked[0] == asked[1] == asked[2] == [(32 * i, 32) for i in range(16)]
    assert {s for s, *_ in run_a.data.asked} == {s for s, *_ in run_b.data.asked} == {0}
    assert {s for s, *_ in run_c.data.asked} == {1_000_003}
    assert first.detail["weights_sha256"] != other.detail["weights_sha256"]


def test_the_same_seed_twice_gives_the_same_weights(run_one):
    one, _ = run_one("sgd", "blobs-long", hyper=("epochs=2",))
    two, _ = run_one("sgd", "blobs-long", hyper=("epochs=2",))
    assert one.detail["weights_sha256"] == two.detail["weights_sha256"]
    assert values(one, "curve_test_loss") == values(two, "curve_test_loss")


def _trained(run):
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


def test_accumulation_equals_a_large_batch(run_one):
    plain = {"plain": True}
    _, whole = run_one("sgd", hyper=("epochs=2",), model_params=plain)
    for parts in (2, 3):
        _, split = run_one("sgd", hyper=("epochs=2", f"accumulate={parts}"), model_params=plain)
        torch.testing.assert_close(_trained(split), _trained(whole), rtol=1e-4, atol=1e-5)


def test_a_closure_over_halves_equals_the_whole_batch(run_one):
    plain = {"plain": True}
    _, whole = run_one("sgd", hyper=("epochs=2", "momentum=0"), model_params=plain)
    halves, split = run_one("halves", hyper=("epochs=2",), model_params=plain)
    torch.testing.assert_close(_trained(split), _trained(whole), rtol=1e-4, atol=1e-5)
    assert values(halves, "bucket_forward_s")[0] > 0
    both, accumulated = run_one("halves", hyper=("epochs=2", "accumulate=2"), model_params=plain)
    torch.testing.assert_close(_trained(accumulated), _trained(whole), rtol=1e-4, atol=1e-5)
    assert len(both.measurements) == len(halves.measurements)


def test_targets_drawn_from_the_model(run_one):
    outcome, _ = run_one("halves", hyper=("epochs=1", 'targets="model"'))
    assert outcome.status == "budget_exhausted", outcome.reason
    assert math.isfinite(values(outcome, "final_test_loss")[0])


def test_clipping_bounds_the_gradient_and_is_refused_where_only_the_method_sees_it(run_one):
    _, free = run_one("sgd", hyper=("epochs=0.07", "momentum=0", "schedule=constant"))
    _, tight = run_one("sgd", hyper=("epochs=0.07", "momentum=0", "schedule=constant", "clip_norm=1e-3"))
    assert free.updates == 1
    _, start = run_one("sgd", hyper=("epochs=0.07", "momentum=0", "lr=0.0"))
    moved = [float((_trained(run) - _trained(start)).norm()) for run in (free, tight)]
    assert moved[1] == pytest.approx(0.1 * 1e-3, rel=1e-3)
    assert moved[0] > 10 * moved[1]
    refused, _ = run_one("halves", hyper=("clip_norm=1",))
    assert refused.status == "unsupported"
    assert "clip" in refused.reason


@pytest.mark.parametrize("precision", ["ieee", "bf16", "fp16"])
def test_precision_modes_train(run_one, precision):
    outcome, _ = run_one("sgd", hyper=("epochs=2", f'precision="{precision}"'))
    assert outcome.status in ("budget_exhausted", "target_reached"), outcome.reason
    assert outcome.detail["spec"]["precision"] == precision
    assert values(outcome, "final_test_accuracy")[0] > values(outcome, "curve_test_accuracy")[0]


def test_a_whole_run_resumes_bitwise_from_any_checkpoint(run_one, tmp_path):
    """Cut by an exception at several updates; momentum, batch norm, dropout and generators go on exactly."""
    whole, _ = run_one("sgd", "blobs-long", hyper=("epochs=3",), block_updates=5)
    for cut in (7, 16, 33):
        path = tmp_path / f"{cut}.pt"
        fields = {"checkpoint": str(path), "checkpoint_updates": 1, "block_updates": 5}
        import toy_training

        def stop(self, closure=None, cut=cut, path=path, step=torch.optim.SGD.step):
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls > cut + 13 and path.exists():
                raise KeyboardInterrupt
            return step(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(toy_training.torch.optim.SGD, "step", stop)
            with pytest.raises(KeyboardInterrupt):
                run_one("sgd", "blobs-long", hyper=("epochs=3",), **fields)
        assert path.exists()
        assert not list(tmp_path.glob("*.partial"))
        again, _ = run_one("sgd", "blobs-long", hyper=("epochs=3",), **fields)
        assert again.detail["resumed"]
        assert again.detail["weights_sha256"] == whole.detail["weights_sha256"]
        for name in ("steps", "test_loss"):
            assert values(again, f"curve_{name}") == values(whole, f"curve_{name}")
        losses = [values(run, "curve_train_loss") for run in (again, whole)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5), "sums of blocks cut elsewhere"


def test_a_checkpoint_of_another_run_or_a_torn_one_is_not_taken(run_one, tmp_path):
    path = tmp_path / "c.pt"
    fields = {"checkpoint": str(path), "checkpoint_updates": 1, "block_updates": 5}
    run_one("sgd", hyper=("epochs=1",), **fields)
    assert path.exists()
    other, _ = run_one("sgd", hyper=("epochs=1", "lr=0.05"), **fields)
    assert not other.detail["resumed"]
    path.write_bytes(path.read_bytes()[:500])
    torn, _ = run_one("sgd", hyper=("epochs=1", "lr=0.05"), **fields)
    assert not torn.detail["resumed"]
    assert torn.detail["weights_sha256"] == other.detail["weights_sha256"]


def test_the_hash_sees_values_whatever_the_strides():
    odd = torch.empty_strided((1, 1, 1), (7, 5, 3)).fill_(2.0)
    assert state.digest(odd) == state.digest(torch.full((1, 1, 1), 2.0))
    assert state.digest(odd) != state.digest(torch.full((1, 1, 1), 3.0))
    wide = torch.arange(12.0).reshape(3, 4)
    assert state.digest(wide.t()) == state.digest(wide.t().contiguous()) != state.digest(wide)
    assert state.digest(wide.bfloat16()) != state.digest(wide)
    assert state.digest(torch.empty(0, 3)) != state.digest(torch.empty(3, 0))
