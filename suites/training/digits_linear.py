"""``digits-linear-*``: a deep linear network in three precisions: does rounding alone add a useful non-linearity?"""

from harness.catalogue.protocol import Precision
from harness.catalogue.workload import Target, Workload


def _workload(suffix: str, precision: Precision) -> Workload:
    return Workload(
        name=f"digits-linear-{suffix}",
        summary=f"8 x 8 digits, six linear layers without any activation, forward and backward in {suffix}",
        data="digits",
        runtime="suites.training.images:RUNTIME",
        params={"net": "deep-linear", "channels": 1, "stored_side": 8},
        batch=64,
        epochs=15,
        target=Target(
            metric="test_accuracy",
            value=0.98,
            source="set here: digits-cnn reaches it in a few epochs, a linear classifier was never seen above 97.2 %",
            mode="final",
        ),
        max_s=120.0,
        precision=precision,
        tiers=("full",),
        notes=(
            "In exact arithmetic the network is one matrix, whatever its depth, so accuracy beyond a linear "
            "classifier's in low precision would come from rounding (J. Foerster, Nonlinear computation in deep linear "
            "networks, OpenAI, 2017, who used evolution strategies and underflow in float32; here gradients are used, "
            "through which rounding is invisible). Precisions differ by autocast: the weights stay float32."
        ),
    )


WORKLOAD = _workload("fp32", "ieee")
BF16 = _workload("bf16", "bf16")
FP16 = _workload("fp16", "fp16")
