"""When statistics are taken and layers are refreshed."""

import itertools

import pytest

from harness.errors import UserError
from methods.kfac.policy import Policy, value_at


def test_stagger_refreshes_every_layer_once_a_period_with_even_loads():
    costs = [8.0, 1.0, 1.0, 4.0, 2.0, 2.0, 1.0, 1.0]
    policy = Policy(1, 5, True, costs)
    assert policy.due(0) == list(range(8))
    for start in (5, 10, 100):
        due = [layer for step in range(start, start + 5) for layer in policy.due(step)]
        assert sorted(due) == list(range(8))
    loads = [sum(costs[layer] for layer in policy.due(step)) for step in range(5, 10)]
    assert max(loads) == 8.0
    plain = Policy(1, 5, False, costs)
    assert [bool(plain.due(step)) for step in range(6)] == [True, False, False, False, False, True]


def test_stagger_avoids_the_steps_that_take_statistics():
    policy = Policy(3, 6, True, [8.0, 8.0, 4.0, 1.0])
    slots = policy.slots(6)
    assert all(slot % 3 for slot in slots)
    assert sorted(slots)[0] == 1
    crowded = Policy(2, 2, True, [2.0, 2.0, 2.0]).slots(2)
    assert sorted(crowded) == [0, 1, 1]


@pytest.mark.parametrize(("groups", "statistics", "refreshes"), [(0, 10, 13), (5, 5, 5), (3, 3, 3), (99, 10, 13)])
def test_groups_gather_layers_on_few_steps_and_leave_none_out(groups, statistics, refreshes):
    policy = Policy(10, 30, True, [float(1 + index % 4) for index in range(13)], True, groups)
    assert all(policy.takes(index, 0) for index in range(13))
    taken = [[index for index in range(13) if policy.takes(index, step)] for step in range(30, 40)]
    due = [policy.due(step) for step in range(30, 60)]
    assert sorted(itertools.chain(*taken)) == sorted(itertools.chain(*due)) == list(range(13))
    assert sum(map(bool, taken)) == statistics
    assert sum(map(bool, due)) == refreshes
    assert [policy.statistics_due(step) for step in range(30, 40)] == [bool(one) for one in taken]
    if 0 < groups < 10:
        assert not any(due[step] and taken[step % 10] for step in range(30))


def test_schedules():
    assert [value_at([[0, 3.0], [4, 1.0]], step) for step in (0, 3, 4, 9)] == [3.0, 3.0, 1.0, 1.0]
    assert value_at(lambda step: step / 2, 3) == 1.5
    with pytest.raises(UserError, match="from step 0"):
        value_at([[2, 1.0]], 3)
