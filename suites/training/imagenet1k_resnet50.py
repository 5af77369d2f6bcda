"""``imagenet1k-resnet50*``: ResNet-50 on ImageNet-1K, from the user's own copy of the data."""

from harness.catalogue.workload import Reference, Target, Workload

#: Batch sizes of FOP's Table 3 (arXiv 2508.13898); 1024 carries no suffix.
BATCHES = (1024, 2048, 4096, 8192)


def _workload(batch: int) -> Workload:
    return Workload(
        name="imagenet1k-resnet50" + ("" if batch == 1024 else f"-b{batch}"),
        summary=f"ImageNet-1K (user-supplied), ResNet-50 (25,557,032 parameters), batch {batch}, to 75.9 % top-1",
        data="imagenet1k",
        runtime="suites.training.images:SMOOTHED",
        params={
            "net": "resnet50",
            "augment": {"area": 0.08, "flip": "random"},
            "label_smoothing": 0.1,
            "side": 224,
            "classes": 1000,
            "stored_side": 256,
            "synthetic_images": max(1024, batch),
        },
        batch=batch,
        epochs=80,
        eval_every=4 * 1_281_167,
        target=Target(
            metric="test_accuracy",
            value=0.759,
            source="MLPerf Training, ResNet-50 v1.5; Lu and Armour, arXiv 2508.13898, Table 3",
        ),
        methods=("training.sgd", "training.lars", "training.adamw"),
        seeds=6,
        max_s=7 * 24 * 3600.0,
        precision="bf16",
        channels_last=True,
        compile=True,
        needs=("cuda",),
        devices=("cuda",),
        tiers=("full",),
        reference=Reference(
            value=35.2,
            what="epochs to 75.9 % at batch 3264 with LARS, mean of 15 reference runs",
            source="mlcommons/logging, RCPs of training 4.0, resnet",
        ),
        notes=(
            "Not run by us: the data have no open download. Files are decoded on host threads, so expect a stall "
            "unless there are many cores; --synthetic measures step time and memory without the data."
        ),
    )


WORKLOAD, B2048, B4096, B8192 = (_workload(batch) for batch in BATCHES)
