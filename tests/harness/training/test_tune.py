"""Tuning: ranges, objective, a search that goes on where it stopped, on the validation split alone."""

import pytest

from harness import read_runs
from harness.catalogue import registry
from harness.catalogue.workload import Target
from harness.errors import UserError
from harness.measure.training import space as spaces
from harness.measure.training.plan import TrainRequest, build
from harness.measure.training.tune import FAILED, STREAM, objective, tune

UP = Target(metric="test_accuracy", value=0.9, source="t")


def plan(*methods, **asked):
    request = TrainRequest(
        workloads=("blobs",),
        methods=methods or ("toy-sgd",),
        seeds=1,
        full=True,
        validation=True,
        **{"hyper": ("momentum=0.5",), **asked},
    )
    made = build(request)
    made.phase = "tune"
    return made


def test_objective_orders_hits_before_misses_before_failures():
    def run(status, steps=None, curve=None):
        measured = {"samples_to_target": ("1", [steps], None)} if steps else {}
        return {"status": status, "measurements": {**measured, "curve_val_accuracy": ("1", curve or [], None)}}

    fast = objective(run("target_reached", 100.0), UP, "val_accuracy", 1000.0)
    slow = objective(run("target_reached", 900.0), UP, "val_accuracy", 1000.0)
    close = objective(run("budget_exhausted", curve=[0.1, 0.81, 0.8]), UP, "val_accuracy", 1000.0)
    lost = objective(run("diverged", curve=[0.1]), UP, "val_accuracy", 1000.0)
    assert (fast, slow) == pytest.approx((0.1, 0.9))
    assert close == pytest.approx(1.1)
    assert lost == FAILED > close


def test_objective_of_the_last_value():
    down = Target(metric="test_loss", value=0.9, source="t", larger_is_better=False)

    def run(status, metric, curve):
        measured = {"samples_to_target": ("1", [5.0], None), f"curve_{metric}": ("1", curve, None)}
        return {"status": status, "measurements": measured}

    reached = run("target_reached", "val_accuracy", [0.95, 0.92])
    assert objective(reached, UP, "val_accuracy", 1000.0, "final") == pytest.approx(0.08)
    missed = run("budget_exhausted", "val_loss", [3.0, 1.7])
    assert objective(missed, down, "val_loss", 1000.0, "final") == pytest.approx(1.7)
    assert objective(run("diverged", "val_loss", [0.1]), down, "val_loss", 1000.0, "final") == FAILED
    assert objective(run("budget_exhausted", "val_loss", []), down, "val_loss", 1000.0, "final") == FAILED


def test_spaces(toys, tmp_path):
    made = plan()
    arm = made.parts[0].arms[0]
    method = registry.method("training.toy-sgd")
    with pytest.raises(UserError, match="around a base value"):
        spaces.space(method, arm.hyper)  # the factory's lr has no base value in the descriptor
    file = tmp_path / "space.toml"
    file.write_text(
        "[lr]\nlow = 1e-3\nhigh = 1.0\nlog = true\n[epochs]\nfactors = [0.5, 1]\n[warmup]\nvalues = [0, 0.1]\n"
    )
    found = spaces.space(method, arm.hyper, file)
    assert found == {
        "lr": {"low": 1e-3, "high": 1.0, "log": True},
        "epochs": {"values": [3.0, 6.0]},
        "warmup": {"values": [0, 0.1]},
    }
    assert spaces.decades(found["lr"]) == pytest.approx(3.0)
    file.write_text("[momentum]\ndecades = 2\n")
    [entry] = spaces.space(method, arm.hyper, file).values()
    assert (entry["low"], entry["high"]) == pytest.approx((0.05, 5.0))
    file.write_text("[lr]\nlow = 2\nhigh = 1\n")
    with pytest.raises(UserError, match="low and high"):
        spaces.space(method, arm.hyper, file)


def test_a_space_of_an_unknown_name_or_of_nothing_is_refused(toys, tmp_path):
    made = plan()
    arm = made.parts[0].arms[0]
    method = registry.method("training.toy-sgd")
    file = tmp_path / "space.toml"
    file.write_text("[nope]\nlow = 0.1\nhigh = 1\n")
    with pytest.raises(UserError, match=r"has no hyper-parameter 'nope' \(from the --space .*space.toml\)"):
        spaces.space(method, arm.hyper, file)
    file.write_text("# nothing yet\n")
    with pytest.raises(UserError, match="got an empty file"):
        spaces.space(method, arm.hyper, file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"lr = 5", "space of 'lr': expected low and high .*, got 5"),
        (b"lr = [0.1, 1]", r"space of 'lr': expected low and high .*, got \[0.1, 1\]"),
        (b'[lr]\nlow = "a"\nhigh = 1', "space of 'lr': expected low and high .*, got {'low': 'a'"),
        (b"[lr]\nlow = 0\nhigh = 1\nlog = true", "space of 'lr': expected low and high"),
        (b"[lr]\nlow = 0.1\nhigh = inf", "space of 'lr': expected low and high"),
        (b'[lr]\nvalues = "abc"', "space of 'lr': expected low and high"),
        (b'[momentum]\nfactors = ["a"]', "space of 'momentum': expected low and high"),
        (b'[momentum]\ndecades = "two"', "space of 'momentum': expected low and high"),
        (b"\xff\xfe", "expected a TOML table per hyper-parameter"),
    ],
)
def test_a_space_that_is_none_is_one_clear_error(toys, tmp_path, content, message):
    arm = plan().parts[0].arms[0]
    file = tmp_path / "space.toml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        spaces.space(registry.method("training.toy-sgd"), arm.hyper, file)


def test_a_search_without_any_value_has_no_best(toys, tmp_path):
    pytest.importorskip("optuna")
    arm = "training.toy-raises"
    found = tune(plan("toy-raises", hyper=()), {arm: {"lr": {"values": [0.1, 0.2]}}}, 2, tmp_path, "test").found[arm]
    assert (found.trials, found.best, found.objective) == (2, None, None)


def test_every_first_order_method_has_equal_ranges():
    from harness.measure.training import recipe

    workload = registry.workload("digits-cnn")
    found = {}
    for name in ("sgd", "adamw", "lars", "muon", "torch-muon"):
        method = registry.method(f"training.{name}")
        found[name] = spaces.space(method, recipe.resolve(workload, method, {}))
    for own in found.values():
        widths = {key: spaces.decades(entry) for key, entry in own.items() if entry.get("log")}
        assert widths == pytest.approx(dict.fromkeys(widths, 3.0))
        assert {"lr", "weight_decay"} <= set(widths)
        assert own["warmup"] == {"values": [0.0, 0.05, 0.2]}
        assert own["epochs"] == {"values": [workload.epochs * share for share in (0.25, 0.5, 0.75, 1.0)]}
        assert len((own.get("momentum") or own["beta2"])["values"]) == 4


def test_a_search_begins_with_the_recipe_and_never_mixes_questions(toys):
    from harness.measure.training.tune import _question, starting_point

    made = plan()
    arm = made.parts[0].arms[0]
    ranges = {
        "momentum": {"low": 0.1, "high": 0.9, "log": True},
        "epochs": {"values": [3.0, 6.0]},
        "lr": {"values": [9]},
    }
    assert starting_point(arm, ranges) == {"momentum": 0.5, "epochs": 6}
    assert "momentum" not in starting_point(arm, {"momentum": {"low": 0.6, "high": 0.9, "log": True}})
    part, other = made.parts[0], plan(hyper=("momentum=0.7",)).parts[0]
    same = _question(part, arm, ranges)
    assert same == _question(plan().parts[0], plan().parts[0].arms[0], ranges)
    assert same != _question(part, arm, {**ranges, "epochs": {"values": [3.0]}})
    assert same != _question(part, arm, ranges, "final")
    assert _question(part, arm, {}) != _question(other, other.arms[0], {})


def test_a_search_is_resumed_and_every_trial_has_its_row(toys, tmp_path):
    pytest.importorskip("optuna")
    ranges = {"lr": {"low": 1e-2, "high": 1.0, "log": True}, "epochs": {"values": [2.0, 3.0]}}
    arm = "training.toy-sgd"
    first = tune(plan(), {arm: ranges}, 2, tmp_path, "test").found[arm]
    again = tune(plan(), {arm: ranges}, 5, tmp_path, "test").found[arm]
    assert (first.trials, again.trials) == (2, 5)
    assert len(again.objectives) == 5
    assert again.objective == min(again.objectives)
    assert set(again.best) == {"lr", "epochs"}
    frame = read_runs(tmp_path)
    runs = frame.drop_duplicates("run")
    assert sorted(d["trial"] for d in runs["detail"]) == [0, 1, 2, 3, 4]
    assert {d["split"] for d in runs["detail"]} == {"validation"}
    assert {d["stream"] for d in runs["detail"]} == {STREAM}
    assert len({d["hyper"]["lr"] for d in runs["detail"]}) == 5
    assert {d["hyper"]["momentum"] for d in runs["detail"]} == {0.5}
    assert {d["hyper_sources"]["lr"] for d in runs["detail"]} == {"tuning trial"}
    assert not any("test" in str(metric) for metric in frame["metric"])


def test_several_methods_side_by_side_get_a_whole_grid_each(toys, tmp_path):
    pytest.importorskip("optuna")
    grid = {"lr": {"values": [0.03, 0.1, 0.3]}, "epochs": {"values": [2.0]}}
    names = ("training.toy-sgd", "training.toy-adam")
    made = plan(*names, hyper=(), side_by_side=2)
    found = tune(made, dict.fromkeys(names, grid), 9, tmp_path, "test", goal="final").found
    runs = read_runs(tmp_path).drop_duplicates("run")
    assert {name: tuned.trials for name, tuned in found.items()} == dict.fromkeys(names, 3)
    for name in names:
        mine = runs[runs["arm"] == name]
        assert sorted(d["hyper"]["lr"] for d in mine["detail"]) == [0.03, 0.1, 0.3]
        assert {(d["goal"], d["side_by_side"]) for d in mine["detail"]} == {("final", 2)}
        best = min(mine["detail"], key=lambda d: d["objective"])
        assert found[name].best == best["searched"]
        assert found[name].objective == best["objective"]
    # Asked again, nothing is left to do.
    again = tune(plan(*names, hyper=(), side_by_side=2), dict.fromkeys(names, grid), 9, tmp_path, "test", goal="final")
    assert again.result.runs == 0


def test_a_best_value_at_the_edge_is_told():
    space = {
        "lr": {"low": 1e-3, "high": 1.0, "log": True},
        "decay": {"low": 0.0, "high": 1.0, "log": False},
        "epochs": {"values": [4.0, 2.0, 1.0]},
        "warmup": {"values": [0.0, 0.1]},
        "mode": {"values": ["a", "b", "c"]},
    }
    inside = {"lr": 0.03, "decay": 0.5, "epochs": 2.0, "warmup": 0.1, "mode": "c"}
    assert spaces.edges(space, inside) == {}
    assert spaces.edges(space, {**inside, "lr": 0.9, "epochs": 1.0}) == {"lr": "upper", "epochs": "lower"}
    assert spaces.edges(space, {**inside, "lr": 1.2e-3, "decay": 0.99}) == {"lr": "lower", "decay": "upper"}
    assert spaces.edges(space, {}) == {}


def test_a_grid_is_completed_whatever_a_smaller_search_has_tried(toys, tmp_path):
    pytest.importorskip("optuna")
    grid = {"training.toy-sgd": {"lr": {"values": [0.03, 0.1, 0.3]}, "epochs": {"values": [2.0]}}}
    tune(plan(hyper=()), grid, 2, tmp_path, "test")
    tune(plan(hyper=()), grid, 3, tmp_path, "test")
    runs = read_runs(tmp_path).drop_duplicates("run")
    assert {d["hyper"]["lr"] for d in runs["detail"]} == {0.03, 0.1, 0.3}
