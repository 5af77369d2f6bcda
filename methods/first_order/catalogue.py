"""Descriptors of the first-order methods of the task ``training``. Imports no torch."""

from __future__ import annotations

from harness.catalogue.method import Method

_HERE = "methods.first_order"
_DTYPES = ("float32", "bfloat16", "float64")
_FACTORS = {"norm_bias_lr_factor": 1.0, "bias_lr_factor": 1.0}

SGD = Method(
    name="training.sgd",
    impl=f"{_HERE}.sgd:make",
    summary="SGD with Nesterov momentum (torch, fused)",
    source="torch.optim.SGD; Sutskever et al., On the importance of initialization and momentum (ICML 2013)",
    formula="g <- g + wd w; v <- mu v + g; w <- w - lr (g + mu v)",
    needs=("torch",),
    reference=f"{_HERE}.reference:sgd",
    hyper={
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 0.0,
        "decay": "all",
        "fused": True,
        **_FACTORS,
    },
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
    hyper={
        "lr": 1e-3,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.01,
        "decay": "matrices",
        "fused": True,
    },
    dtypes=_DTYPES,
    origin="library",
)

LARS = Method(
    name="training.lars",
    impl=f"{_HERE}.lars:make",
    summary="LARS for large batches, MLPerf's form; biases and norms get plain momentum SGD",
    source="You, Gitman and Ginsburg, arXiv 1708.03888; the ResNet-50 reference of MLPerf Training",
    formula="t = eta |w| / (|g| + wd |w|); v <- mu v + lr t (g + wd w); w <- w - v",
    needs=("torch",),
    reference=f"{_HERE}.reference:lars",
    hyper={"lr": 2.0, "momentum": 0.9, "weight_decay": 5e-5, "eta": 1e-3, "eps": 0.0, "nesterov": False},
    dtypes=_DTYPES,
    origin="published design",
)

_FALLBACK = {
    "fallback_lr": 3e-4,
    "fallback_beta1": 0.9,
    "fallback_beta2": 0.95,
    "fallback_eps": 1e-10,
    "fallback_weight_decay": 0.0,
}
_MUON = {"lr": 0.02, "momentum": 0.95, "nesterov": True, "weight_decay": 0.0, "adjust": "spectral", "exclude": []}
_MUON_FORMULA = "m <- m + (1 - mu)(g - m); o = orthogonalize(g + mu (m - g)); w <- (1 - lr wd) w - lr f(m, n) o"

MUON = Method(
    name="training.muon",
    impl=f"{_HERE}.muon:make",
    summary="Muon, matrices of one shape in one batched call of any polar.* method; AdamW or SGD for the rest",
    source="K. Jordan et al., Muon (2024), KellerJordan/Muon; factor 'rms': arXiv 2502.16982; batching: ours",
    formula=_MUON_FORMULA,
    needs=("torch",),
    reference=f"{_HERE}.reference:muon",
    hyper={
        **_MUON,
        "orthogonalizer": "auto",
        "iteration_dtype": "auto",
        "renormalize": False,
        "fallback": "adamw",
        "fallback_momentum": 0.85,
        **_FALLBACK,
        **_FACTORS,
    },
    dtypes=_DTYPES,
    origin="own design",
)

TORCH_MUON = Method(
    name="training.torch-muon",
    impl=f"{_HERE}.torch_muon:make",
    summary="torch.optim.Muon, matrix by matrix in bfloat16, convolutions as flattened views; AdamW for the rest",
    source="torch.optim.Muon (torch 2.9 and later); K. Jordan et al., Muon (2024)",
    formula=f"{_MUON_FORMULA}; 5 steps of (3.4445, -4.7750, 2.0315)",
    needs=("torch",),
    reference=f"{_HERE}.reference:torch_muon",
    hyper={**_MUON, **_FALLBACK},
    dtypes=_DTYPES,
    origin="library",
    tags=("slow-cpu",),
)
