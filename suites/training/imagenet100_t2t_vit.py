"""``imagenet100-t2t-vit*``: a small vision transformer on 100 classes of ImageNet, from the user's own copy."""

from harness.catalogue.workload import Reference, Target, Workload

#: Batch sizes of FOP's Table 2 (arXiv 2508.13898); 512 carries no suffix.
BATCHES = (512, 1024, 2048, 4096)


def _workload(batch: int) -> Workload:
    return Workload(
        name="imagenet100-t2t-vit" + ("" if batch == 512 else f"-b{batch}"),
        summary=f"ImageNet-100 (user-supplied), T2T-ViT-7 (4,024,010 parameters), batch {batch}, to 80.6 % top-1",
        data="imagenet100",
        runtime="suites.training.images:SMOOTHED",
        params={
            "net": "t2t-vit",
            "augment": {"area": 0.08, "flip": "random"},
            "label_smoothing": 0.1,
            "side": 224,
            "classes": 100,
            "stored_side": 256,
            "synthetic_images": max(1024, batch),
        },
        batch=batch,
        epochs=100,
        target=Target(
            metric="test_accuracy",
            value=0.806,
            source="Lu and Armour, arXiv 2508.13898, Table 2: AdamW's best at batch 512",
        ),
        methods=("training.adamw", "training.muon") if batch == 512 else ("training.adamw",),
        seeds=6,
        max_s=7 * 24 * 3600.0,
        precision="bf16",
        compile=True,
        needs=("cuda",),
        devices=("cuda",),
        tiers=("full",),
        reference=Reference(
            value=0.806, what="AdamW, 97 of 100 epochs at batch 512", source="Lu and Armour, arXiv 2508.13898, Table 2"
        ),
        notes=(
            "Not run by us: the data have no open download. The paper prints neither the size of the T2T-ViT nor the "
            "list of classes nor the augmentation; here it is T2T-ViT-7 with a softmax tokenizer, no stochastic depth, "
            "no mix-up and no RandAugment. --synthetic measures step time and memory without the data."
        ),
    )


WORKLOAD, B1024, B2048, B4096 = (_workload(batch) for batch in BATCHES)
