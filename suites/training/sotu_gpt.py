"""``sotu-gpt`` and ``sotu-gpt-cpu``: a character transformer on the State of the Union addresses.

Two workloads and not one with two sizes, because a case must name one thing: the losses of the two are not comparable.
"""

from harness.catalogue.workload import Reference, Target, Workload

#: Characters of the card's vocabulary.
VOCABULARY = 98

WORKLOAD = Workload(
    name="sotu-gpt",
    summary="State of the Union, character GPT of 6 layers, 6 heads, width 384, context 256, batch 64, 5,000 updates",
    data="sotu",
    runtime="suites.training.texts:RUNTIME",
    params={
        "vocabulary": VOCABULARY,
        "context": 256,
        "layers": 6,
        "heads": 6,
        "width": 384,
        "dropout": 0.2,
        "bias": False,
        "windows": 1024,
    },
    batch=64,
    epochs=8,
    eval_every=250 * 64,
    target=Target(
        metric="test_loss",
        value=0.952,
        source=(
            "AdamW after 75 % of its updates at 1e-3, the better of 1e-3 and 2e-3 (0.9523 and 0.9563; 0.9318 and "
            "0.9334 at the end), seed 1000: reports/records/h100/20261122T202104279330Z-vm-778 and "
            "20261122T202242383340Z-vm-1120"
        ),
        larger_is_better=False,
        others=(1.30, 1.10, 1.00),
    ),
    methods=("training.adamw", "training.muon", "training.sgd"),
    max_s=1800.0,
    precision="bf16",
    compile=True,
    needs=("cuda",),
    devices=("cuda",),
    reference=Reference(
        value=1.4697,
        what="validation loss (nats a character) of this network on tiny Shakespeare: a sanity level, another text",
        source="karpathy/nanoGPT, README",
    ),
    notes=(
        "Sizes of nanoGPT's character model. Every twentieth speech is the evaluation text, of which 1,024 evenly "
        "spaced windows are evaluated. An epoch cuts the text into consecutive windows from a random offset. The "
        "output layer shares the embedding's weight. SGD is there as an arm that is known to fail on transformers."
    ),
)

CPU = Workload(
    name="sotu-gpt-cpu",
    summary="State of the Union, character GPT of 4 layers, 4 heads, width 128, context 64, batch 12, 800 updates",
    data="sotu",
    runtime="suites.training.texts:RUNTIME",
    params={
        "vocabulary": VOCABULARY,
        "context": 64,
        "layers": 4,
        "heads": 4,
        "width": 128,
        "dropout": 0.0,
        "bias": False,
        "windows": 256,
    },
    batch=12,
    epochs=0.0598,
    eval_every=100 * 12,
    target=Target(
        metric="test_loss",
        value=1.84,
        source=(
            "AdamW at 7e-3, the best of 3e-3, 5e-3 and 7e-3 on tuning seeds 1000 and 1001, after 75 % of its updates: "
            "1.841 and 1.839 (reports/records/cpu/20261123T010945068356Z-vm-25574.jsonl; 1.723 and 1.718 at the end)"
        ),
        larger_is_better=False,
        others=(2.2, 2.05, 1.92),
    ),
    methods=("training.adamw", "training.muon"),
    max_s=900.0,
    devices=("cpu", "cuda"),
    reference=Reference(
        value=1.88,
        what="validation loss after 2,000 updates of this network on tiny Shakespeare: a sanity level, another text",
        source="karpathy/nanoGPT, README",
    ),
    notes=(
        "Sizes of nanoGPT's CPU example. A seventeenth of the text is seen, once; 256 evenly spaced windows of the "
        "evaluation text are evaluated."
    ),
)
