"""Wrong hyper-parameters of K-FAC, SENG and SINGD in one line each: never a TypeError, never a text taken for true."""

import pytest
from torch import nn

from harness.errors import Unsupported, UserError
from methods.kfac import factories
from methods.singd import factories as singd

CASES = [
    (factories.cholesky, {"damping": "nan"}, "damping: a schedule is a number"),
    (factories.cholesky, {"damping": None}, "damping: a schedule is a number"),
    (factories.cholesky, {"update_period": [1, 2]}, "update_period: a schedule is a number"),
    (factories.cholesky, {"refresh_period": 0}, "refresh_period is a whole number of at least 1"),
    (factories.cholesky, {"packed": "False"}, "packed is true or false; got 'False'"),
    (factories.cholesky, {"stagger": 1}, "stagger is true or false"),
    (factories.cholesky, {"groups": -1}, "groups is a whole number of at least 0"),
    (factories.cholesky, {"exclude": 3}, "exclude is a list of patterns"),
    (factories.cholesky, {"exclude": [3]}, "exclude is a list of patterns"),
    (factories.cholesky, {"fallback_beta1": 1.5}, "fallback_beta1 is a number of at least 0 and below 1"),
    (factories.cholesky, {"fallback_momentum": "x"}, "fallback_momentum is a number"),
    (factories.cholesky, {"inverse": "eigh"}, "inverse is fixed by kfac-cholesky"),
    (factories.eigh, {"inverse": "cholesky"}, "inverse is fixed by kfac-eigh"),
    (factories.newton_schulz, {"half": "no"}, "half is true or false"),
    (factories.ekfac, {"damping_mode": "pi"}, "damping_mode is fixed by ekfac"),
    (factories.rs, {"warm": "False"}, "warm is true or false"),
    (factories.rs, {"adaptive_rank": "False"}, "adaptive_rank is true or false"),
    (factories.rs, {"rank": "large"}, "rank: a schedule is a number"),
    (factories.rs, {"inverse": "sre"}, "inverse is fixed by"),
    (factories.rs_warm, {"dense": "False"}, "dense is true or false"),
    (factories.b, {"truncate": "yes"}, "truncate is true or false"),
    (factories.b, {"brand_rank": 0}, "brand_rank is a whole number of at least 1"),
    (factories.seng, {"lr": "fast"}, "lr is a number"),
    (factories.seng, {"damping": -1}, "damping is a number above 0"),
    (factories.seng, {"exact": "False"}, "exact is true or false"),
    (factories.seng, {"seed": -1}, "seed is a whole number"),
    (singd.dense, {"cache": "False"}, "cache is true or false"),
    (singd.dense, {"structures": 1}, "structures is a pair of"),
    (singd.dense, {"preconditioner_dtype": None}, "preconditioner_dtype is a pair of"),
    (singd.hierarchical15, {"ranks": 3}, "ranks is a pair of whole numbers"),
    (singd.dense, {"lr_cov": "small"}, "lr_cov: a schedule is a number"),
    (singd.dense, {"fallback_eps": -1.0}, "fallback_eps is a number of at least 0"),
]


@pytest.mark.parametrize(("make", "options", "text"), CASES)
def test_a_wrong_value_is_named(make, options, text):
    with pytest.raises(UserError) as caught:
        make(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), **options)
    assert text in str(caught.value)


@pytest.mark.parametrize("make", [factories.cholesky, factories.seng, singd.dense])
def test_parameters_are_not_a_model(make):
    with pytest.raises(UserError, match="expected the model itself"):
        make(nn.Linear(4, 3).parameters())


@pytest.mark.parametrize("make", [factories.cholesky, singd.dense])
def test_a_model_whose_only_linear_layer_is_refused_says_why(make):
    model = nn.Sequential(nn.Embedding(6, 8), nn.Linear(8, 6, bias=False))
    model[1].weight = model[0].weight
    with pytest.raises(Unsupported, match="Embedding shares the weight has no factors"):
        make(model)
