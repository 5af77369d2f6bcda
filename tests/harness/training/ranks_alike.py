"""Script: trains a tiny net with some methods in one process and in several, and prints how far the weights are apart.

``python ranks_alike.py SIZES METHOD…`` prints JSON: ``{"SIZE METHOD": {"apart", "moved", "status", …}}``. ``METHOD``
may carry hyper-parameters: ``kfac-cholesky:damping=0.1``.
"""

import gc
import json
import sys
import warnings

import torch
from torch import nn

from harness.catalogue import registry
from harness.catalogue.workload import Batch, Target, Workload
from harness.measure.training import recipe, warmup
from harness.measure.training.distributed import ALONE
from harness.measure.training.loop import Run
from harness.measure.training.spec import RunSpec
from harness.measure.training.together import together
from harness.measure.training_device import open_training

#: 30 samples a batch: 2 and 3 ranks share them evenly, 4 do not.
WORKLOAD = Workload(
    name="tiny",
    summary="a tiny net",
    data="",
    runtime="",
    batch=30,
    epochs=2,
    target=Target(metric="test_accuracy", value=1.01, source="tests"),
)


class Data:
    size = 120

    def __init__(self):
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(self.size + 50, 1, 6, 6, generator=generator)
        self.y = (self.x.sum((1, 2, 3)) > 0).long() + 2 * (self.x[:, 0, 0, 0] > 0).long()

    def train(self, seed, first, count):
        index = torch.tensor([(k * 7919 + seed) % self.size for k in range(first, first + count)])
        return Batch(self.x[index], self.y[index])

    def constant(self, count):
        return Batch(self.x[:count], self.y[:count])

    def evaluation(self, split, batch):
        for start in range(self.size, self.size + 50, 20):
            stop = min(start + 20, self.size + 50)
            yield Batch(self.x[start:stop], self.y[start:stop])


class Runtime:
    def model(self, workload):
        return nn.Sequential(
            nn.Conv2d(1, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(80, 12), nn.Tanh(), nn.Linear(12, 4)
        )

    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)

    def evaluate(self, model, batches):
        hits, count = 0, 0
        for inputs, targets in batches:
            hits, count = hits + int((model(inputs).argmax(1) == targets).sum()), count + len(targets)
        return {"accuracy": hits / count}


def spec(text, size):
    name, _, given = text.partition(":")
    method = registry.method(recipe.full_name(name))
    values = recipe.parse([one for one in given.split(",") if one], [method.name])[method.name]
    hyper = recipe.resolve(WORKLOAD, method, values)
    return RunSpec(workload="tiny", method=method.name, arm=method.name, seed=1, block=0, stream=1, full=True,
                   world=size, factory=dict(hyper.factory), trainer={**hyper.trainer, "precision": "ieee"})  # fmt: skip


def train(text, ranks=ALONE):
    runtime = Runtime()
    run = Run(
        spec=spec(text, ranks.size),
        workload=WORKLOAD,
        runtime=runtime,
        data=Data(),
        device=open_training("cpu", "ieee"),
        loss=lambda model, inputs, targets: runtime.loss(model(inputs), targets),
        ranks=ranks,
    )
    told = {}
    tell = run._tell

    def also():
        told["weights"] = [p.detach().clone() for p in run.model.parameters()]
        memory = getattr(run.optimizer, "memory_usage", None)
        told["memory"] = memory() if callable(memory) else {}
        tell()

    def begin(place=run._warm_up):
        told["start"] = [p.detach().clone() for p in run.model.parameters()]
        place()

    run._tell, run._warm_up = also, begin
    torch.manual_seed(0)
    found = run.run()
    return {**told, "status": found.status, "reason": found.reason, "measured": dict(found.measurements)}


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    warmup.STALL_MOST = 2
    sizes, texts = json.loads(sys.argv[1]), sys.argv[2:]
    one = [train(text) for text in texts]
    gc.collect()
    gc.freeze()  # each training collects garbage: nine ranks would walk, and so copy, all that they share
    many = {size: together(size, lambda ranks: [train(text, ranks) for text in texts]) for size in sizes}
    answer = {}
    for size in sizes:
        for place, text in enumerate(texts):
            alone, all_ = one[place], [rank[place] for rank in many[size]]
            complete = all("weights" in one for one in (alone, *all_))
            answer[f"{size} {text}"] = {
                "status": [r["status"] for r in (alone, *all_)],
                "reason": [r["reason"] for r in (alone, *all_)],
                "apart": max(apart(alone, r) for r in all_) if complete else None,
                "moved": float((alone["weights"][0] - alone["start"][0]).norm()) if complete else None,
                "between": max(apart(all_[0], r) for r in all_) if complete else None,
                "memory": [r.get("memory") for r in (alone, *all_)],
                "loss": [r["measured"].get("curve_train_loss", [0, [0]])[1] for r in (alone, all_[0])],
                "accuracy": [r["measured"].get("curve_test_accuracy", [0, [0]])[1] for r in (alone, all_[0])],
                "ranks": all_[0]["measured"].get("rank_optimizer_state_bytes", [0, []])[1],
                "share": all_[0]["measured"].get("communication_share", [0, [0]])[1][0],
            }
    print(json.dumps(answer))


def apart(one, other):
    """Largest distance of a tensor's two final values over how far it moved."""
    triples = zip(one["weights"], other["weights"], one["start"], strict=True)
    return max(float((a - b).norm() / (a - start).norm().clamp_min(1e-12)) for a, b, start in triples)


main()
