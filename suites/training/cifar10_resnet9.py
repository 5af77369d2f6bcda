"""``cifar10-resnet9`` and ``cifar10-resnet9-maddness``: ResNet-9 trained exactly, and fine-tuned with look-ups."""

from harness.catalogue.workload import Reference, Target, Workload

#: D. Page, "How to train your ResNet" (2018): padding 4, flips, 8 x 8 cutout.
_AUGMENT = {"pad": 4, "mode": "reflect", "flip": "random", "cutout": 8}
_STELLA_NERA = "Schoenleber et al. (Stella Nera), arXiv 2311.10207, abstract: 92.5 % with look-ups"

WORKLOAD = Workload(
    name="cifar10-resnet9",
    summary="CIFAR-10, ResNet-9 of at most 256 channels (2,440,266 parameters), batch 512, to 93 % test accuracy",
    data="cifar10",
    runtime="suites.training.images:RUNTIME",
    params={"net": "resnet9", "augment": _AUGMENT},
    batch=512,
    epochs=24,
    target=Target(
        metric="test_accuracy",
        value=0.93,
        source="set here: half a point above what the same layout reaches with look-ups",
        others=(0.90, 0.925),
    ),
    methods=("training.sgd", "training.adamw", "training.muon"),
    max_s=900.0,
    precision="bf16",
    channels_last=True,
    needs=("cuda",),
    devices=("cuda",),
    reference=Reference(
        value=0.94,
        what="a wider ResNet-9 (512 channels) after 24 epochs at batch 512",
        source="D. Page, How to train your ResNet (2018)",
    ),
    notes="The exact twin of cifar10-resnet9-maddness. No label smoothing and no scaled logits, unlike the reference.",
)

MADDNESS = Workload(
    name="cifar10-resnet9-maddness",
    summary="CIFAR-10, trained ResNet-9 whose seven inner convolutions become look-ups, fine-tuned to 92.5 %",
    data="cifar10",
    runtime="suites.training.replaced:RUNTIME",
    params={
        "net": "resnet9",
        "augment": _AUGMENT,
        "pretrain": {"epochs": 24, "batch": 512, "lr": 0.4, "weight_decay": 5e-4, "warmup": 5 / 24},
        "calibration": 2000,
        "replace": {"patch": 9, "rows": 32_000, "temperature": 2.0, "hyper": {"tables": "direct"}},
    },
    batch=256,
    epochs=25,
    target=Target(metric="test_accuracy", value=0.925, source=_STELLA_NERA, others=(0.85, 0.90)),
    methods=("training.adamw", "training.sgd"),
    seeds=3,
    max_s=1800.0,
    precision="tf32",
    channels_last=True,
    needs=("cuda",),
    devices=("cuda",),
    reference=Reference(value=0.925, what="test accuracy of ResNet-9 with look-ups", source=_STELLA_NERA),
    notes=(
        "Starts from one exact network, trained outside the clock on nine tenths of the training set and kept in the "
        "cache (its accuracy is final_dense_accuracy); a seed changes the order of the data alone. First and last "
        "layer stay exact, one codebook per input channel, 8-bit tables. The published training is not printed in "
        "the abstract: optimizer, length and augmentation are choices made here."
    ),
)
