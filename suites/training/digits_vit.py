"""``digits-vit`` and ``digits-convmixer``: CPU twins of the CIFAR-10 workloads of the same networks."""

from harness.catalogue.workload import Target, Workload

WORKLOAD = Workload(
    name="digits-vit",
    summary="8 x 8 digits of scikit-learn, a vision transformer of 2 x 2 patches, batch 64, to 90 % test accuracy",
    data="digits",
    runtime="suites.training.images:RUNTIME",
    params={
        "net": "vit",
        "net_options": {"side": 8, "patch": 2, "channels": 1, "width": 32, "layers": 2, "heads": 2},
        "channels": 1,
        "stored_side": 8,
    },
    batch=64,
    epochs=25,
    target=Target(
        metric="test_accuracy",
        value=0.90,
        source="set here: AdamW, SGD and K-FAC end at 91 to 96 % on single seeds by hand",
        others=(0.85, 0.93),
    ),
    methods=("training.adamw", "training.sgd", "training.kfac-cholesky", "training.singd-dense"),
    max_s=300.0,
    tiers=("full",),
    notes="A smoke test of the transformer's layers. No augmentation. In bf16: --hyper precision=bf16.",
)

CONVMIXER = Workload(
    name="digits-convmixer",
    summary="8 x 8 digits of scikit-learn, a ConvMixer of 2 x 2 patches, batch 64, to 97 % test accuracy",
    data="digits",
    runtime="suites.training.images:RUNTIME",
    params={
        "net": "convmixer",
        "net_options": {"channels": 1, "width": 32, "depth": 3, "kernel": 3, "patch": 2},
        "channels": 1,
        "stored_side": 8,
    },
    batch=64,
    epochs=12,
    target=Target(
        metric="test_accuracy",
        value=0.97,
        source="set here: AdamW, SGD and K-FAC reach it in 3 to 4 epochs",
        others=(0.90, 0.95),
    ),
    methods=("training.adamw", "training.sgd", "training.kfac-cholesky", "training.singd-dense"),
    max_s=300.0,
    tiers=("full",),
    notes="A smoke test of grouped convolutions. No augmentation. In bf16: --hyper precision=bf16.",
)
