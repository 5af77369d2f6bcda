"""``cifar10lt-resnet32*``: long-tailed CIFAR-10, imbalance factors 100 and 50."""

from harness.catalogue.workload import Reference, Target, Workload

#: Top-1 error in per cent by imbalance factor: baseline of Bag of Tricks, FOP's "Baselines" row, FOP.
PUBLISHED = {100: (29.64, 28.05, 26.65), 50: (25.19, 23.55, 20.55)}


def _workload(factor: int) -> Workload:
    bag, baseline, fop = (1 - error / 100 for error in PUBLISHED[factor])
    return Workload(
        name="cifar10lt-resnet32" + ("" if factor == 100 else f"-f{factor}"),
        summary=f"Long-tailed CIFAR-10 (factor {factor}), ResNet-32 (464,154 parameters), accuracy after 200 epochs",
        data=f"cifar10-lt{factor}",
        runtime="suites.training.images:RUNTIME",
        params={"net": "resnet32-cifar", "augment": {"pad": 4, "flip": "random"}},
        batch=128,
        epochs=200,
        eval_every=5 * 12_406,
        target=Target(
            metric="test_accuracy",
            value=round(baseline, 4),
            source="Lu and Armour, arXiv 2508.13898, Table 4, row Baselines",
            others=(round(bag, 4), round(fop, 4)),
            mode="final",
        ),
        max_s=3600.0,
        channels_last=True,
        needs=("cuda",),
        devices=("cuda",),
        tiers=("full",),
        reference=Reference(
            value=round(bag, 4),
            what="accuracy of the plain baseline after 200 epochs",
            source="Zhang et al., Bag of Tricks for Long-Tailed Visual Recognition (AAAI 2021), published baseline",
        ),
        notes=(
            "The test set is balanced. SGD has the published schedule: 5 epochs of warm-up, a hundredth of the rate "
            "after epochs 160 and 180; the other methods decay by a cosine."
        ),
    )


WORKLOAD, F50 = _workload(100), _workload(50)
