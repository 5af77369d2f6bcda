"""A toy workload (four Gaussian blobs, a small net with batch norm and dropout) and optimizers, honest and not."""

import os
import signal
import time

import torch
from torch import nn

from harness.catalogue.method import Method
from harness.catalogue.workload import Batch, Target, Workload
from harness.errors import Unsupported


def _workload(name, **fields):
    fields = {
        "target": Target(metric="test_accuracy", value=0.9, source="tests", others=(0.6, 0.95)),
        "batch": 32,
        "epochs": 6,
        **fields,
    }
    return Workload(
        name=name,
        summary="blobs",
        data="",
        runtime="toy_training:RUNTIME",
        methods=("training.toy-sgd", "training.toy-adam"),
        seeds=2,
        max_s=60.0,
        tiers=(),
        **fields,
    )


BLOBS = _workload("blobs")
B64, B512 = (_workload(f"blobs-b{batch}", batch=batch) for batch in (64, 512))
LOSS = _workload(
    "blobs-loss", target=Target(metric="test_loss", value=0.3, source="tests", larger_is_better=False), eval_every=100
)
FINAL = _workload("blobs-final", target=Target(metric="test_accuracy", value=0.9, source="tests", mode="final"))
WRONG = _workload("blobs-wrong", target=Target(metric="test_beauty", value=0.9, source="tests"))
LONG = _workload(
    "blobs-long", epochs=40, target=Target(metric="test_accuracy", value=1.01, source="tests"), params={"dropout": 0.2}
)


class Blobs:
    """512 points; sample k of the stream depends on (seed, k) alone."""

    size = 512

    def __init__(self, validation):
        generator = torch.Generator().manual_seed(7)
        self.centres = 2.0 * torch.randn(4, 8, generator=generator)
        self.labels = torch.arange(self.size + 256) % 4
        self.points = self.centres[self.labels] + torch.randn(self.size + 256, 8, generator=generator)
        self.split = "validation" if validation else "test"
        self.asked = []

    def train(self, seed, first, count):
        self.asked.append((seed, first, count))
        index = torch.tensor([(k * 2654435761 + seed * 97) % self.size for k in range(first, first + count)])
        return Batch(self.points[index], self.labels[index])

    def constant(self, count):
        index = torch.arange(count) % self.size
        return Batch(self.points[index], self.labels[index])

    def evaluation(self, split, batch):
        assert split == self.split
        for start in range(self.size, self.size + 256, batch):
            yield Batch(self.points[start : start + batch], self.labels[start : start + batch])


class Runtime:
    def data(self, workload, device, validation=False):
        return Blobs(validation)

    def model(self, workload):
        dropout = workload.params.get("dropout", 0.0)
        norm = nn.Identity() if workload.params.get("plain") else nn.BatchNorm1d(16)
        return nn.Sequential(nn.Linear(8, 16), norm, nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 4))

    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)

    def evaluate(self, model, batches):
        hits = count = 0
        loss = 0.0
        for inputs, targets in batches:
            outputs = model(inputs)
            hits += int((outputs.argmax(1) == targets).sum())
            loss += float(nn.functional.cross_entropy(outputs, targets, reduction="sum"))
            count += len(targets)
        return {"accuracy": hits / count, "loss": loss / count}

    def final(self, model, data):
        return {"norm": float(sum(p.square().sum() for p in model.parameters()) ** 0.5)}


RUNTIME = Runtime()


def sgd(model, *, lr=0.1, momentum=0.9):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    optimizer.coverage = {"sgd": sum(p.numel() for p in model.parameters())}
    optimizer.parts = lambda: {"apply": 1e-4}
    return optimizer


def adam(model, *, lr=0.01):
    return torch.optim.Adam(model.parameters(), lr=lr)


class _SGD(torch.optim.SGD):
    """SGD with one thing wrong or special in its step."""

    def __init__(self, model, lr=0.1):
        super().__init__(model.parameters(), lr=lr)
        self.model = model
        self.steps = 0

    def before(self): ...

    def step(self, closure=None):
        self.steps += 1
        self.before()
        return super().step()


class Nan(_SGD):
    def before(self):
        with torch.no_grad():
            self.param_groups[0]["params"][0].mul_(float("nan") if self.steps > 8 else 1.0)


class BlowsUp(_SGD):
    def before(self):
        with torch.no_grad():
            self.param_groups[0]["params"][-2].mul_(3.0)


class OutOfMemory(_SGD):
    def before(self):
        if self.steps > 90:
            raise MemoryError("cannot allocate a gibibyte")


class Raises(_SGD):
    def before(self):
        if self.steps > 90:
            raise ValueError("no luck today")


class Hangs(_SGD):
    def before(self):
        if self.steps > 90:
            time.sleep(60)


class Dies(_SGD):
    def before(self):
        if self.steps > 90:
            os.abort()


class _Lonely(_SGD):
    """Something goes wrong on rank 1 alone."""

    def before(self):
        if self.steps > 40 and os.environ.get("RANK") == "1":
            self.alone()


class LonelyExit(_Lonely):
    def alone(self):
        os._exit(7)


class LonelyKill(_Lonely):
    def alone(self):
        os.kill(os.getpid(), signal.SIGKILL)


class LonelyError(_Lonely):
    def alone(self):
        raise ValueError("only I am unlucky")


class Slow(_SGD):
    def before(self):
        time.sleep(0.004)


class Impure(_SGD):
    def before(self):
        torch.set_num_threads(torch.get_num_threads() + 1)


class HiddenState(_SGD):
    """Keeps a sum of gradients that its state dictionary does not know."""

    def before(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.kept = getattr(parameter, "kept", 0) + parameter.grad
            parameter.grad = parameter.kept.clone()


class LeavesHooks(_SGD):
    def before(self):
        self.model.register_forward_hook(lambda *_: None)


class Refuses(_SGD):
    def __init__(self, model):
        raise Unsupported("only convex problems, please")


class Halves(torch.optim.Optimizer):
    """Gradients of both halves through the closure, averaged: the same as plain SGD where no batch norm is."""

    sub_batches = 2
    step_needs = frozenset({"closure"})

    def __init__(self, model, lr=0.1, targets="data"):
        super().__init__(model.parameters(), {"lr": lr})
        self.targets = targets

    def step(self, closure):
        parameters = self.param_groups[0]["params"]
        closure(0)
        first = [p.grad.clone() for p in parameters]
        for p in parameters:
            p.grad = None
        loss = closure(1)
        if self.targets == "model":
            closure(None, targets="model")
        with torch.no_grad():
            for p, g in zip(parameters, first, strict=True):
                p.sub_((p.grad + g) / 2 * self.param_groups[0]["lr"])
        return loss


class Deaf(Halves):
    """Asks for a closure and never calls it."""

    def step(self, closure):
        return None


def _method(name, attr, **fields):
    return Method(
        name=f"training.toy-{name}", impl=f"toy_training:{attr}", summary=name, source="tests", hyper={}, **fields
    )


SGD, ADAM = _method("sgd", "sgd"), _method("adam", "adam")
NAMES = {
    "nan": "Nan",
    "blows-up": "BlowsUp",
    "oom": "OutOfMemory",
    "raises": "Raises",
    "hangs": "Hangs",
    "dies": "Dies",
    "lonely-exit": "LonelyExit",
    "lonely-kill": "LonelyKill",
    "lonely-error": "LonelyError",
    "slow": "Slow",
    "impure": "Impure",
    "hidden": "HiddenState",
    "hooks": "LeavesHooks",
    "refuses": "Refuses",
    "halves": "Halves",
    "deaf": "Deaf",
}
METHODS = {name: _method(name, attr) for name, attr in NAMES.items()}
globals().update({name.upper().replace("-", "_"): method for name, method in METHODS.items()})
CUDA_ONLY = _method("cuda-only", "sgd", needs=("cuda",))
