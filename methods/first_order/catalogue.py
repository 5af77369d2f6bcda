"""Descriptors of the first-order methods of the task ``training``. Imports no torch."""

from __future__ import annotations

from harness.catalogue.method import Method

_HERE = "methods.first_order"
_DTYPES = ("float32", "bfloat16", "float64")

SGD = Method(
    name="training.sgd",
    impl=f"{_HERE}.sgd:make",
    summary="SGD with Nesterov momentum (torch, fused)",
    source="torch.optim.SGD; Sutskever et al., On the importance of initialization and momentum (ICML 2013)",
    formula="g <- g + wd w; v <- mu v + g; w <- w - lr (g + mu v)",
    needs=("torch",),
    reference=f"{_HERE}.reference:sgd",
    hyper={"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0, "decay": "all"},
    dtypes=_DTYPES,
    origin="library",
)

ADAMW = Method(
    name="training.adamw",
    impl=f"{_HERE}.adamw:make",
    summary="AdamW (torch, fused); biases and norms are not decayed",
    source="torch.optim.AdamW; Loshchilov and Hutter, arXiv 1711.05101",
    formula="w <- (1 - lr wd) w - lr m^ / (sqrt(v^) + eps), m and v running means of g and g^2",
    needs=("torch",),
    reference=f"{_HERE}.reference:adamw",
    hyper={"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01, "decay": "matrices"},
    dtypes=_DTYPES,
    origin="library",
)
