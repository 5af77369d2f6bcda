"""``cifar10-vit``: a small vision transformer in bfloat16."""

from harness.catalogue.workload import Reference, Target, Workload

WORKLOAD = Workload(
    name="cifar10-vit",
    summary="CIFAR-10, vision transformer of 6 blocks of width 192, 4 x 4 patches, batch 256, bf16, to 75 % accuracy",
    data="cifar10",
    runtime="suites.training.images:RUNTIME",
    params={
        "net": "vit",
        "net_options": {"side": 32, "patch": 4, "width": 192, "layers": 6, "heads": 3},
        "augment": {"pad": 4, "flip": "random"},
    },
    batch=256,
    epochs=60,
    target=Target(
        metric="test_accuracy",
        value=0.75,
        source="PROVISIONAL: to be set from the 75 % point of tuned AdamW's runs on tuning seeds",
        others=(0.65, 0.70, 0.80),
    ),
    methods=("training.adamw", "training.sgd", "training.kfac-cholesky", "training.singd-dense"),
    max_s=1800.0,
    precision="bf16",
    needs=("cuda",),
    devices=("cuda",),
    reference=Reference(
        value=0.80,
        what="test accuracy of a larger one with 4 x 4 patches after 200 epochs, with stronger augmentation",
        source="kentaroy47/vision-transformers-cifar10, README",
    ),
    notes=(
        "The data sets and networks of SINGD's experiments (arXiv 2312.05705: CIFAR-100, ImageWoof-10, transformers of "
        "larger size) are not these: this one is small enough for ten seeds. In float32: --hyper precision=tf32."
    ),
)
