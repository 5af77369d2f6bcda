"""``cifar10-vgg16bn`` and its relatives: the workloads of the randomized and online K-FAC papers."""

from dataclasses import replace

from harness.catalogue.workload import Reference, Target, Workload

WORKLOAD = Workload(
    name="cifar10-vgg16bn",
    summary="CIFAR-10, VGG-16 with batch norm (14,990,922 parameters), batch 256, to 91, 91.5 and 92 % test accuracy",
    data="cifar10",
    runtime="suites.training.images:RUNTIME",
    params={"net": "vgg16-bn", "augment": {"pad": 4, "flip": "random"}},
    batch=256,
    epochs=50,
    target=Target(
        metric="test_accuracy",
        value=0.92,
        source="C. O. Puiu, Randomized K-FACs, arXiv 2206.15397, section 6",
        others=(0.91, 0.915),
    ),
    max_s=3600.0,
    channels_last=True,
    needs=("cuda",),
    devices=("cuda",),
    reference=Reference(
        value=0.9264, what="test accuracy of VGG16 trained long by SGD", source="kuangliu/pytorch-cifar, README"
    ),
    notes=(
        "The last batch of an epoch is filled from the next one, where the source trains on a smaller batch (196 "
        "updates an epoch there, 195.3 here). Normalization by the training set's own statistics."
    ),
)

#: The same network, data and target; the recipes hold each published arm's own, unequal settings.
PAPER = replace(
    WORKLOAD,
    name="cifar10-vgg16bn-paper",
    summary=(
        "cifar10-vgg16bn with the randomized K-FAC paper's own settings, unequal between arms (refresh periods, "
        "damping, learning rate)"
    ),
    methods=("training.kfac-eigh", "training.rs-kfac", "training.sre-kfac"),
    tiers=("full",),
)

WIDE = replace(
    WORKLOAD,
    name="cifar10-vgg16wide",
    summary="CIFAR-10, VGG-16 with one-dimensional poolings, a head of 16,384 x 2048, batch 128, to 92 % test accuracy",
    params={**WORKLOAD.params, "net_options": {"wide": True}},
    batch=128,
    epochs=30,
    target=Target(
        metric="test_accuracy",
        value=0.92,
        source="C. O. Puiu, arXiv 2210.08494; protocol of the code of its distributed sequel: stop at 92 %",
        others=(0.91, 0.915),
    ),
    methods=("training.rs-kfac", "training.b-kfac", "training.b-r-kfac", "training.b-kfac-c"),
    tiers=("full",),
    reference=None,
    notes=(
        "The last batch of an epoch is filled from the next one. The published target is reached within 30 epochs, the "
        "budget here; SGD was given 105 there. Normalization by the training set's own statistics."
    ),
)
