"""``fashion-cnn``: Fashion-MNIST and a small convolutional network."""

from harness.catalogue.workload import Reference, Target, Workload

WORKLOAD = Workload(
    name="fashion-cnn",
    summary="Fashion-MNIST, two convolutions with batch norm and two linear layers, batch 256, to 90 % test accuracy",
    data="fashion-mnist",
    runtime="suites.training.images:RUNTIME",
    params={"net": "fashion-cnn", "channels": 1, "stored_side": 28},
    batch=256,
    epochs=3,
    eval_every=15_000,
    target=Target(metric="test_accuracy", value=0.90, source="set here", others=(0.88,)),
    max_s=600.0,
    channels_last=True,
    tiers=("standard",),
    reference=Reference(
        value=0.916,
        what="test accuracy of two convolutions with max pooling (TensorFlow), as submitted to the benchmark table",
        source="zalandoresearch/fashion-mnist, README; Xiao, Rasul and Vollgraf, arXiv 1708.07747",
    ),
    notes="No augmentation.",
)
