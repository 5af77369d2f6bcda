"""``cifar10-vgg16bn``: the workload of the randomized K-FAC papers."""

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
