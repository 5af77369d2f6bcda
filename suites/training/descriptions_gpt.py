"""``descriptions-gpt``: a tiny character transformer on text that any installation of scikit-learn has."""

from harness.catalogue.workload import Target, Workload

WORKLOAD = Workload(
    name="descriptions-gpt",
    summary="scikit-learn's data-set descriptions, character GPT of 2 layers, width 64, context 64, batch 16",
    data="descriptions",
    runtime="suites.training.texts:RUNTIME",
    params={
        "vocabulary": 92,
        "context": 64,
        "layers": 2,
        "heads": 4,
        "width": 64,
        "dropout": 0.0,
        "bias": False,
        "windows": 0,
    },
    batch=16,
    epochs=10,
    target=Target(
        metric="test_loss",
        value=2.75,
        source="PROVISIONAL: one run each by hand; AdamW reaches it after 60 % of its updates, Muon after 30 %",
        larger_is_better=False,
        others=(2.9,),
    ),
    methods=("training.adamw", "training.muon", "training.sgd"),
    max_s=300.0,
    tiers=("standard",),
    notes=(
        "For machines without a network: 40,623 training characters, so a smoke test of language models and nothing "
        "more. The evaluation text is one document of 2,455 characters."
    ),
)
