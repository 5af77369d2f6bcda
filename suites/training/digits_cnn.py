"""``digits-cnn``: the smoke test of training to a target; a run takes a few seconds on one core."""

from harness.catalogue.workload import Target, Workload

WORKLOAD = Workload(
    name="digits-cnn",
    summary="8 x 8 digits of scikit-learn, a CNN of 38,282 parameters, batch 64, to 98 % test accuracy",
    data="digits",
    runtime="suites.training.images:RUNTIME",
    params={"net": "digits-cnn", "channels": 1, "stored_side": 8},
    batch=64,
    epochs=12,
    target=Target(
        metric="test_accuracy", value=0.98, source="set here: every tuned method reaches it in 2 to 6 epochs"
    ),
    max_s=120.0,
    tiers=("quick", "standard"),
    notes="A smoke test: it does not tell good optimizers apart. No augmentation.",
)
