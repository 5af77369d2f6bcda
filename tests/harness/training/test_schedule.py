"""Learning-rate schedules by hand."""

import pytest
import torch

from harness.errors import UserError
from harness.measure.training import recipe, schedule


@pytest.mark.parametrize(
    ("name", "warmup", "final", "expected"),
    [
        ("constant", 0.0, 0.0, [1, 1, 1, 1]),
        ("linear", 0.0, 0.0, [1, 0.75, 0.5, 0.25]),
        ("linear", 0.0, 0.5, [1, 0.875, 0.75, 0.625]),
        ("linear", 0.5, 0.0, [0.5, 1, 2 / 3, 1 / 3]),
        ("cosine", 0.0, 0.0, [1, 0.8535533905932737, 0.5, 0.14644660940672627]),
        ("triangle", 0.0, 0.2, [0.6, 1, 1 - 0.8 / 3, 1 - 1.6 / 3]),
    ],
)
def test_factors(name, warmup, final, expected):
    assert [schedule.factor(name, i, 4, warmup, final) for i in range(4)] == pytest.approx(expected)


def test_steps_fall_at_their_epochs():
    """The long-tailed CIFAR baseline: 200 epochs, warm-up of 5, a hundredth at epochs 160 and 180."""
    trainer = {"schedule": "step", "warmup": 0.025, "final_lr": 0.0, "milestones": [0.8, 0.9], "gamma": 0.01}
    found = [schedule.of(trainer, update, 200 * 97) for update in range(200 * 97)]
    assert found[0] == pytest.approx(1 / (5 * 97))
    assert found[5 * 97 - 1] == found[5 * 97] == found[160 * 97 - 1] == 1.0
    assert found[160 * 97] == found[180 * 97 - 1] == pytest.approx(0.01)
    assert found[180 * 97] == found[-1] == pytest.approx(1e-4)


def test_an_unknown_schedule_lists_the_known():
    with pytest.raises(UserError, match="constant, linear, cosine, triangle, step"):
        schedule.factor("saw", 0, 4)


def test_each_group_keeps_its_own_rate_and_tensors_are_filled_in_place():
    first, second = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([{"params": [first], "lr": 1.0}, {"params": [second], "lr": torch.tensor(0.1)}])
    schedule.remember(optimizer)
    rate = optimizer.param_groups[1]["lr"]
    schedule.apply(optimizer, 0.5)
    schedule.apply(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert optimizer.param_groups[1]["lr"] is rate
    assert float(rate) == pytest.approx(0.025)


def test_steps_need_their_places_and_only_they_have_them():
    from harness.catalogue import registry
    from harness.measure.training.recipe import resolve

    def trainer(**given):
        return resolve(registry.workload("cifar10lt-resnet32"), registry.method("training.sgd"), given).trainer

    assert (trainer()["schedule"], trainer()["milestones"], trainer()["gamma"]) == ("step", [0.8, 0.9], 0.01)
    assert (trainer(schedule="cosine")["milestones"], trainer(schedule="cosine")["gamma"]) == (None, None)
    for wrong in ({"milestones": []}, {"milestones": [1.5]}, {"milestones": None}, {"gamma": 0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            trainer(**wrong)
    with pytest.raises(UserError, match="milestones"):
        trainer(schedule="linear", milestones=[0.5])


def test_steps_take_the_last_piece_that_has_begun():
    trainer = {"schedule": "steps", "warmup": 0.0, "final_lr": 0.0, "epochs": 4, "pieces": [[0, 1.0], [1, 0.5], [3, 2]]}
    assert [schedule.of(trainer, update, 8) for update in range(8)] == [1, 1, 0.5, 0.5, 0.5, 0.5, 2, 2]
    # A whole number of updates an epoch is hit in spite of rounding.
    uneven = {**trainer, "epochs": 50, "pieces": [[epoch, epoch] for epoch in range(50)]}
    assert [schedule.of(uneven, update, 50 * 7) for update in range(0, 350, 7)] == list(range(50))
    # Epochs beyond a shortened schedule never begin.
    assert schedule.of({**trainer, "epochs": 2}, 7, 8) == 0.5


def test_pieces_are_checked_and_belong_to_steps_alone():
    check = recipe._check_trainer
    good = {**recipe.DEFAULTS, "epochs": 4, "precision": "ieee", "schedule": "steps", "pieces": [[0, 1], [2.5, 0.1]]}
    check(good)
    for wrong in (None, [], [[1, 0.5]], [[0, 1], [0, 2]], [[0, 1, 2]], [[0, -1]], [[0, 1], [3, 1], [2, 1]], "x"):
        with pytest.raises(UserError, match="pieces"):
            check({**good, "pieces": wrong})
    with pytest.raises(UserError, match="pieces"):
        check({**good, "schedule": "linear"})
