"""``cifar100lt-resnet32*``: long-tailed CIFAR-100, imbalance factors 100 and 50, from the user's own copy."""

from harness.catalogue.workload import Reference, Target, Workload

#: Top-1 error in per cent by imbalance factor: baseline of Bag of Tricks, FOP's "Baselines" row, FOP.
PUBLISHED = {100: (61.68, 62.27, 58.97), 50: (56.15, 56.22, 53.67)}


def _workload(factor: int) -> Workload:
    bag, baseline, fop = (1 - error / 100 for error in PUBLISHED[factor])
    return Workload(
        name="cifar100lt-resnet32" + ("" if factor == 100 else f"-f{factor}"),
        summary=f"Long-tailed CIFAR-100 (user-supplied, factor {factor}), ResNet-32 (470,004 parameters), 200 epochs",
        data=f"cifar100-lt{factor}",
        runtime="suites.training.images:RUNTIME",
        params={
            "net": "resnet32-cifar",
            "net_options": {"classes": 100},
            "augment": {"pad": 4, "flip": "random"},
            "classes": 100,
        },
        batch=128,
        epochs=200,
        eval_every=5 * 10_847,
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
            "CIFAR-100 is in no package registry: SPEEDCLAIM_CIFAR100 names the folder of the user's copy. The test "
            "set is balanced. SGD has the published schedule: 5 epochs of warm-up, a hundredth of the rate after "
            "epochs 160 and 180. --synthetic measures step time and memory without the data."
        ),
    )


WORKLOAD, F50 = _workload(100), _workload(50)
