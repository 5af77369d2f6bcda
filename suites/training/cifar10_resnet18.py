"""``cifar10-resnet18*``: ResNet-18 at batch sizes from 512 to the whole training set."""

from harness.catalogue.workload import Reference, Target, Workload

#: Batch sizes of FOP's Table 1 (arXiv 2508.13898); 512 is the usual one and carries no suffix.
BATCHES = (512, 2048, 4096, 8192, 16384, 32768, 50000)


def _workload(batch: int) -> Workload:
    return Workload(
        name="cifar10-resnet18" + ("" if batch == 512 else f"-b{batch}"),
        summary=f"CIFAR-10, ResNet-18 with the CIFAR stem (11,173,962 parameters), batch {batch}, to 91 and 94 %",
        data="cifar10",
        runtime="suites.training.images:RUNTIME",
        params={"net": "resnet18-cifar", "augment": {"pad": 4, "flip": "random"}},
        batch=batch,
        epochs=30 if batch == 512 else 50 if batch < 16384 else 100,
        eval_every=max(50_000, batch),
        target=Target(
            metric="test_accuracy",
            value=0.91,
            source="Lu and Armour, arXiv 2508.13898, Table 1 (91 %); 94 % is a usual level of this network",
            others=(0.94,),
        ),
        max_s=3600.0,
        precision="bf16",
        channels_last=True,
        compile=True,
        needs=("cuda",),
        devices=("cuda",),
        tiers=("standard",) if batch == 512 else ("full",),
        reference=Reference(
            value=0.9302, what="test accuracy of ResNet18 trained long by SGD", source="kuangliu/pytorch-cifar, README"
        ),
        notes="The paper does not print precision, augmentation or which ResNet-18; these are the usual choices.",
    )


WORKLOAD, B2048, B4096, B8192, B16384, B32768, B50000 = (_workload(batch) for batch in BATCHES)
