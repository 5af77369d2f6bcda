"""Suite ``polar``: orthogonalization of a matrix, the inner loop of Muon. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from harness.catalogue.protocol import Protocol
from harness.catalogue.suite import Problem, Suite, Tier
from harness.catalogue.task import Task

ERRORS: Mapping[str, str] = {
    "polar_error": "accuracy: ||X - UV^T||_F / sqrt(rank), the distance to the true polar factor",
    "orthogonality_error": "||X X^T - I||_F / sqrt(n) on the smaller side; blind to a wrong direction",
    "sigma_min": "smallest singular value of the output (1 is exact)",
    "sigma_p02": "2 % quantile of the output's singular values",
    "sigma_p50": "median of the output's singular values",
    "sigma_p98": "98 % quantile of the output's singular values",
    "sigma_max": "largest singular value of the output; above 2 the gate refuses it",
    "cosine": "cosine between the output and the true polar factor; must be positive",
    "dual_gap": "1 - <G, X> / ||G||_*: what the update loses of the steepest descent in spectral norm",
    "projected_error": "||U_k^T X V_k - I||_F / sqrt(k) over the directions with sigma >= 0.02 ||G||_F; gated at 0.30",
    "fidelity_error": "the same projection of output minus plain reference; gated by dtype",
    "fidelity_full": "||X - X_ref||_F / sqrt(n) without the projection; gated on gaussian inputs",
    "rescaling_error": "polar error of the best scalar multiple of the input: what doing nothing achieves",
    "bias_floor": "polar error that the AOL row rescaling leaves on this input whatever follows (an input's property)",
}

TASK = Task(
    name="polar",
    summary="Orthogonal polar factor U V^T of a matrix or a batch of matrices (Muon's orthogonalization)",
    contract="f(G: Tensor[..., m, n]) -> Tensor[..., m, n], same dtype and device, the input untouched",
    runtime="suites.polar_runtime:RUNTIME",
    oracle=(
        "float64 SVD polar factor of the tensor passed, after its rounding; a float64 iteration to 1e-10 above 2048 on "
        "the smaller side; at most four sampled members of a batch"
    ),
    needs=("torch",),
    errors=ERRORS,
    primary_error="polar_error",
)

Device = Literal["cpu", "cuda"]

#: Which captured layer each kind of real gradient is: kind -> card, key, shape.
GRADIENTS: Mapping[str, tuple[str, str, tuple[int, int]]] = {
    "grad_cnn_conv2": ("gradients-digits-cnn", "conv2", (64, 288)),
    "grad_cnn_fc1": ("gradients-digits-cnn", "fc1", (128, 1024)),
    "grad_cnn_fc2": ("gradients-digits-cnn", "fc2", (10, 128)),
    "grad_text_qkv": ("gradients-text-transformer", "qkv", (384, 128)),
    "grad_text_mlp_in": ("gradients-text-transformer", "mlp_in", (512, 128)),
    "grad_text_mlp_out": ("gradients-text-transformer", "mlp_out", (128, 512)),
    "grad_air_groups0_conv2": ("gradients-cifar10-airbench", "groups0_conv2", (64, 576)),
    "grad_air_groups1_conv1": ("gradients-cifar10-airbench", "groups1_conv1", (256, 576)),
    "grad_air_groups2_conv2": ("gradients-cifar10-airbench", "groups2_conv2", (256, 2304)),
    "grad_sotu_qkv": ("gradients-sotu-gpt-cpu", "qkv", (384, 128)),
    "grad_sotu_mlp_in": ("gradients-sotu-gpt-cpu", "mlp_in", (512, 128)),
    "grad_sotu_wide_qkv": ("gradients-sotu-gpt", "qkv", (1152, 384)),
    "grad_sotu_wide_mlp_out": ("gradients-sotu-gpt", "mlp_out", (384, 1536)),
}

QUICK: tuple[Tier, ...] = ("quick", "standard")
STANDARD: tuple[Tier, ...] = ("standard",)
FULL: tuple[Tier, ...] = ("full",)
#: Marks the problems on which the compiled methods run too: those of the claims about compiled baselines.
COMPILED = True


def _problems(device: Device, rows: list[tuple[Any, ...]]) -> list[Problem]:
    """Problems from rows ``kind, shape, dtype, tiers[, compiled]``; a gradient's shape and source are its card's."""
    made = []
    for kind, shape, dtype, tiers, *compiled in rows:
        params: dict[str, Any] = {}
        if kind in GRADIENTS:
            card, key, shape = GRADIENTS[kind]
            params = {"file": card, "key": key}
        made.append(
            Problem(
                kind=kind,
                shape=shape,
                dtype=dtype,
                device=device,
                tiers=tiers,
                params=params,
                compiled=bool(compiled),
            )
        )
    return made


#: In the order of importance: a time budget drops whole problems from the end.
CPU = _problems(
    "cpu",
    [
        ("gaussian", (512, 512), "float32", QUICK, COMPILED),
        ("gaussian", (256, 1024), "float32", QUICK),
        ("grad_text_mlp_in", None, "float32", QUICK),
        ("levy15", (512, 512), "float32", QUICK),
        ("gaussian", (128, 128), "float32", QUICK),
        ("gaussian", (100, 257), "float32", QUICK),
        ("gaussian", (1024, 1024), "float32", STANDARD, COMPILED),
        ("grad_cnn_fc1", None, "float32", STANDARD),
        ("rowscaled", (512, 512), "float32", STANDARD),
        ("logspec3", (512, 512), "float32", STANDARD),
        ("gaussian", (768, 3072), "float32", STANDARD),
        ("grad_text_qkv", None, "float32", STANDARD),
        ("grad_text_mlp_out", None, "float32", STANDARD),
        ("grad_cnn_conv2", None, "float32", STANDARD),
        ("gaussian", (8, 256, 256), "float32", STANDARD),
        ("gaussian", (256, 256), "bfloat16", STANDARD),
        ("gaussian", (256, 256), "float16", STANDARD),
        ("gaussian", (256, 256), "float64", STANDARD),
        ("gaussian", (256, 256), "float32", STANDARD),
        ("logspec6", (512, 512), "float32", STANDARD),
        ("lowrank", (512, 512), "float32", STANDARD),
        ("levy15", (1024, 1024), "float32", STANDARD),
        ("gaussian", (1024, 4096), "float32", STANDARD),
        ("grad_air_groups1_conv1", None, "float32", STANDARD),
        ("grad_sotu_qkv", None, "float32", STANDARD),
        ("grad_cnn_fc2", None, "float32", FULL),
        ("gaussian", (1024, 256), "float32", FULL),
        ("gaussian", (4096, 1024), "float32", FULL),
        ("gaussian", (2048, 2048), "float32", FULL),
        ("grad_air_groups0_conv2", None, "float32", FULL),
        ("grad_air_groups2_conv2", None, "float32", FULL),
        ("grad_sotu_mlp_in", None, "float32", FULL),
        ("grad_sotu_wide_qkv", None, "float32", FULL),
        ("grad_sotu_wide_mlp_out", None, "float32", FULL),
    ],
)

#: The squares in batches of 128 are the grid of the claim made for the AOL Triton kernels.
CUDA = _problems(
    "cuda",
    [
        ("gaussian", (4096, 4096), "bfloat16", QUICK, COMPILED),
        ("gaussian", (2048, 2048), "bfloat16", QUICK, COMPILED),
        ("gaussian", (1024, 1024), "bfloat16", QUICK),
        ("gaussian", (768, 3072), "bfloat16", QUICK),
        ("grad_text_mlp_out", None, "bfloat16", QUICK),
        ("gaussian", (512, 512), "bfloat16", QUICK),
        ("gaussian", (128, 512, 512), "bfloat16", STANDARD, COMPILED),
        ("gaussian", (128, 1024, 1024), "bfloat16", STANDARD, COMPILED),
        ("gaussian", (128, 2048, 2048), "bfloat16", STANDARD, COMPILED),
        ("gaussian", (128, 4096, 4096), "bfloat16", STANDARD, COMPILED),
        ("gaussian", (4096, 11008), "bfloat16", STANDARD),
        ("gaussian", (8192, 8192), "bfloat16", STANDARD),
        ("gaussian", (32, 1024, 1024), "bfloat16", STANDARD),
        ("levy15", (2048, 2048), "bfloat16", STANDARD),
        ("rowscaled", (1024, 1024), "bfloat16", STANDARD),
        ("logspec3", (1024, 1024), "bfloat16", STANDARD),
        ("gaussian", (11008, 4096), "bfloat16", STANDARD),
        ("gaussian", (12, 768, 3072), "bfloat16", STANDARD),
        ("gaussian", (1024, 4096), "bfloat16", STANDARD),
        ("gaussian", (100, 257), "bfloat16", STANDARD),
        ("grad_cnn_fc1", None, "bfloat16", STANDARD),
        ("grad_text_mlp_in", None, "bfloat16", STANDARD),
        ("grad_text_qkv", None, "bfloat16", STANDARD),
        ("grad_cnn_conv2", None, "bfloat16", STANDARD),
        ("gaussian", (2048, 2048), "float16", STANDARD),
        ("gaussian", (2048, 2048), "float32", STANDARD),
        ("grad_air_groups2_conv2", None, "bfloat16", STANDARD),
        ("grad_sotu_wide_mlp_out", None, "bfloat16", STANDARD),
        ("grad_air_groups1_conv1", None, "bfloat16", STANDARD),
        ("grad_air_groups0_conv2", None, "bfloat16", STANDARD),
        ("grad_sotu_mlp_in", None, "bfloat16", STANDARD),
        ("grad_sotu_qkv", None, "bfloat16", STANDARD),
        ("logspec6", (1024, 1024), "bfloat16", FULL),
        ("lowrank", (1024, 1024), "bfloat16", FULL),
        ("gaussian", (4096, 1024), "bfloat16", FULL),
        ("gaussian", (256, 256), "bfloat16", FULL),
        ("gaussian", (128, 128), "bfloat16", FULL),
        ("gaussian", (1024, 1024), "float64", FULL),
        # Nearly of rank seven: what little an iteration gains there decides about gates more than about methods.
        ("grad_sotu_wide_qkv", None, "bfloat16", FULL),
    ],
)

SUITE = Suite(
    name="polar",
    task=TASK,
    problems=(*CPU, *CUDA),
    baseline="polar.ns-torch",
    protocol=Protocol(),
)
