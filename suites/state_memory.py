"""Suite ``state_memory``: bytes that an optimizer keeps and needs on known networks. Imports no torch.

Nothing is timed. Measured by a command of its own that writes an ordinary record::

    python -m suites.state_memory --out results                  # small networks, and the formula on the true ones
    python -m suites.state_memory --device cuda --out results    # the true ones, with the device's peak
    python -m suites.state_memory --dtype float16 --out results  # factors in float16; default: float32 and bfloat16
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.catalogue import registry
from harness.catalogue.suite import Problem, Suite, Tier
from harness.catalogue.task import Task
from harness.errors import UnknownName, UserError
from suites import command

ERRORS: Mapping[str, str] = {
    "optimizer_state_bytes": "bytes of the optimizer's state after two steps: every storage in its state_dict",
    "held_bytes": "the same with caches that a checkpoint leaves out, as the optimizer's memory_usage() tells",
    "formula_bytes": "the state's bytes by counting: entries of factors, structures and buffers times their size",
    "peak_device_bytes": "largest allocation over the two steps: weights, gradients, activations, state, work space",
    "parameter_bytes": "bytes of the weights in float32",
    "formula_ratio": "measured state ÷ formula; 1 means that nothing else is kept",
}

TASK = Task(
    name="state_memory",
    summary="Bytes that an optimizer keeps between steps, and needs at most during one",
    contract="make(model, **hyper) -> torch.optim.Optimizer of the task training; two whole updates, nothing timed",
    runtime="suites.state_memory_run:run",
    oracle="entries counted by the structure's formula, independently of the method's code",
    needs=("torch",),
    errors=ERRORS,
    primary_error="formula_ratio",
)


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network to be trained for two updates.

    Attributes:
        net: name in :mod:`suites.training.nets`.
        options: of its constructor.
        part: attribute that is trained instead of the whole (a transformer's blocks).
        inputs: shape of one sample.
        batch: samples.
        tokens: number of different tokens when the input is text, else 0.
    """

    net: str
    inputs: tuple[int, ...]
    batch: int
    options: Mapping[str, Any] = field(default_factory=dict)
    part: str = ""
    tokens: int = 0


_GPT2 = {"vocabulary": 64, "context": 1024, "layers": 12, "heads": 12, "width": 768, "bias": True}
#: True sizes. VGG16 and batch 256 as in the randomized K-FAC papers (arXiv 2206.15397); ViT-B/16 on
#: 224 pixels has 196 patches and a class token; GPT-2 small has 12 blocks of width 768 over 1,024 tokens.
NETWORKS: Mapping[str, Network] = {
    "vgg16_bn": Network(net="vgg16-bn", inputs=(3, 32, 32), batch=256),
    "resnet50": Network(net="resnet50", inputs=(3, 224, 224), batch=64),
    "vit_b16_blocks": Network(
        net="vit", part="blocks", inputs=(197, 768), batch=64,
        options={"side": 224, "patch": 16, "width": 768, "layers": 12, "heads": 12, "classes": 1000},
    ),
    "gpt2_blocks": Network(net="char-gpt", part="blocks", inputs=(1024, 768), batch=8, options=_GPT2),
    "convmixer": Network(net="convmixer", inputs=(3, 32, 32), batch=256),
}  # fmt: skip
#: The same kinds of layers, small enough for two steps on a CPU; widths beyond a block of 30.
SMALL: Mapping[str, Network] = {
    "cnn_small": Network(net="digits-cnn", inputs=(1, 8, 8), batch=4),
    "resnet_small": Network(net="resnet32-cifar", inputs=(3, 32, 32), batch=2, options={"depth": 8}),
    "vit_small": Network(
        net="vit", inputs=(1, 8, 8), batch=4,
        options={"side": 8, "patch": 2, "channels": 1, "width": 48, "layers": 2, "heads": 2},
    ),
    "gpt_small": Network(
        net="char-gpt", inputs=(16,), batch=2, tokens=40,
        options={"vocabulary": 40, "context": 16, "layers": 2, "heads": 2, "width": 48, "bias": True},
    ),
    "convmixer_small": Network(
        net="convmixer", inputs=(3, 16, 16), batch=2, options={"width": 48, "depth": 2, "kernel": 3}
    ),
}  # fmt: skip

#: Statistics, inverses and structures exist after the first step; nothing else changes what is kept.
_EACH_STEP: Mapping[str, Any] = {"update_period": 1}
STRUCTURES = (
    *("dense", "diagonal", "block30", "hierarchical15", "tril-toeplitz", "triu-toeplitz", "tril", "triu"),
    *("rank1-arrow", "rankk-arrow"),
)
METHODS: Mapping[str, Mapping[str, Any]] = {
    "training.adamw": {},
    "training.sgd": {},
    "training.muon": {},
    "training.kfac-cholesky": {**_EACH_STEP, "refresh_period": 1},
    "training.ikfac": _EACH_STEP,
    "training.ingd": _EACH_STEP,
    **{f"training.singd-{name}": _EACH_STEP for name in STRUCTURES},
}
#: Dtypes of the factors, and those that are measured when none is named.
DTYPES = ("float32", "bfloat16", "float16")
USUAL = ("float32", "bfloat16")
#: Methods whose factors may be kept in half precision by an option.
HALVES = ("training.ikfac", "training.ingd", *(f"training.singd-{name}" for name in STRUCTURES))


def _problems() -> Iterator[Problem]:
    """One problem a network, device and dtype of the factors; its size is told by the record."""
    both: tuple[Tier, ...] = ("quick", "standard", "full")
    for dtype in DTYPES:
        for name in SMALL:
            yield Problem(kind=name, shape=(1,), dtype=dtype, device="cpu", tiers=both)
        for name in NETWORKS:
            yield Problem(kind=name, shape=(1,), dtype=dtype, device="cpu", tiers=both, params={"meta": True})
            yield Problem(kind=name, shape=(1,), dtype=dtype, device="cuda", tiers=both)


SUITE = Suite(name="state_memory", task=TASK, problems=tuple(_problems()), baseline="training.adamw")


def main(arguments: list[str] | None = None) -> None:
    """Count and measure every method on every network and write one record."""
    parser = argparse.ArgumentParser(prog="python -m suites.state_memory", description=main.__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--network", action="append", default=[], help="only this network (repeat)")
    parser.add_argument("--method", action="append", default=[], help="only this method (repeat)")
    parser.add_argument(
        "--dtype", action="append", default=[], metavar="DTYPE",
        help=f"keep the factors in this dtype (repeat): {', '.join(DTYPES)}; default: {' and '.join(USUAL)}",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="on CUDA: an eighth of the batch")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the record")
    given = parser.parse_args(arguments)
    networks = {**NETWORKS, **SMALL}
    asked = ((given.method, METHODS, "method"), (given.network, networks, "network"), (given.dtype, DTYPES, "dtype"))
    for names, known, what in asked:
        for name in names:
            if name not in known:
                raise UnknownName(what, name, known)
    found = registry.methods("training")
    chosen = {name: hyper for name, hyper in METHODS.items() if name in (given.method or METHODS) and name in found}
    for name in given.method or METHODS:
        if name not in found:
            print(f"{name}: not registered, left out", flush=True)
    dtypes = given.dtype or USUAL
    halves = [dtype for dtype in given.dtype if dtype != "float32"]
    wide = [name for name in chosen if name not in HALVES] if halves else []
    for name in wide:
        print(f"{name}: its state is float32, left out of {', '.join(halves)}", flush=True)
    if len(wide) == len(chosen) and "float32" not in dtypes:
        raise UserError(f"nothing to measure: of these methods only {', '.join(HALVES)} take --dtype {halves[0]}.")
    problems = [
        p
        for p in SUITE.tier("full", (given.device,))
        if p.dtype in dtypes and (not given.network or p.kind in given.network)
    ]
    registry.resolve(TASK.runtime)(problems, [found[name] for name in chosen], chosen, given.out, given.quick)


if __name__ == "__main__":
    sys.exit(command.ended(main))
