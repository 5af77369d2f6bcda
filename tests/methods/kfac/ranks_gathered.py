"""Script: SENG and Brand's updates on three forked ranks, whose samples are gathered; prints one JSON object."""

import json
import warnings

import torch
from torch import nn

from harness.errors import UserError
from harness.measure.training.distributed import ALONE
from harness.measure.training.together import together
from methods.kfac.brand import BrandKFAC
from methods.kfac.seng import SENG

RANKS = 3
SENG_HYPER = {"damping": 0.3, "update_period": 2, "momentum": 0.9, "svd_rank": 3}
BRAND = {"damping": 0.1, "update_period": 1, "refresh_period": 2, "rank": 6, "brand_rank": 4, "clip": "none"}
ARMS = {
    "seng": (SENG, {**SENG_HYPER, "exact": True}),
    "seng-sampled": (SENG, {**SENG_HYPER, "col_sample": 5, "explicit_threshold": 40}),
    "b-kfac": (BrandKFAC, BRAND),
    "seng-sum": (SENG, {**SENG_HYPER, "exact": True, "reduction": "sum"}),
    "b-kfac-sum": (BrandKFAC, {**BRAND, "reduction": "sum"}),
    "b-r-kfac-c": (BrandKFAC, {**BRAND, "overwrite_period": 2, "correction_period": 2}),
}


def net(kind):
    torch.manual_seed(0)
    if kind is SENG:
        front = [nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 6), nn.Tanh()]
        return nn.Sequential(*front, nn.Linear(6, 5)).double()
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 40), nn.Tanh(), nn.Linear(40, 5)).double()


def batch(step, count):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(count, 2, 6, 6, generator=generator).double()
    return x, torch.randint(0, 5, (count,), generator=generator)


def trained(ranks, name, first=9, sizes=(10, 11, 9)):
    """The first batch is even, later ones are not: 10 samples are 4, 3 and 3."""
    kind, hyper = ARMS[name]
    model = net(kind)
    optimizer = kind(model, 0.1, **hyper)
    for step, count in enumerate((first, *sizes)):
        x, y = batch(step, count)
        begin, here = ranks.slice(0, count)
        optimizer.zero_grad()
        whole = hyper.get("reduction") == "sum"
        for part in (slice(begin, begin + 1), slice(begin + 1, begin + here)):  # accumulated
            loss = nn.functional.cross_entropy(model(x[part]), y[part], reduction="sum")
            (loss if whole else loss * ranks.size / count).backward()
        ranks.average(list(model.parameters()))
        for parameter in model.parameters() if whole else ():
            parameter.grad *= ranks.size / count  # a mean's step, the statistics a sum's
        optimizer.step()
    sides = sorted(held.sides for held in optimizer.held.values()) if kind is BrandKFAC else []
    weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return {"weights": weights, "sides": sides, "parts": sorted(optimizer.parts()), "counters": optimizer.counters}


class Branches(nn.Module):
    """Two layers of one shape, of which a call takes those that it is told."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(40, 30), nn.Linear(40, 30)

    def forward(self, x, which):
        return sum(getattr(self, name)(x) for name in which)


def refused(ranks, kind, hyper, first, then):
    """What is said when the ranks go through different layers in the second step; ``none``: no backward at all."""
    torch.manual_seed(0)
    model = Branches().double()
    optimizer = kind(model, 0.1, **hyper)
    told = ""
    for which in (first, then):
        optimizer.zero_grad()
        if which[ranks.rank]:
            model(torch.randn(3, 40).double(), which[ranks.rank]).square().mean().backward()
        used = [p for name, p in model.named_parameters() if name[0] in "".join(which)]
        for parameter in used:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        ranks.average(used)
        try:
            optimizer.step()
        except UserError as error:
            told = str(error)
    return told


def uneven(ranks):
    """A first batch of 11, 4 + 4 + 3, and a width between 4 + 3 * 3 and 4 + 3 * 4 rows."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(13, 5)).double()
    optimizer = BrandKFAC(model, 0.1, **BRAND)
    begin, here = ranks.slice(0, 11)
    x = torch.randn(11, 13).double()[begin : begin + here]
    nn.functional.cross_entropy(model(x), torch.arange(here)).backward()
    try:
        optimizer.step()
    except UserError as error:
        return str(error)
    return ""


def skipped(ranks, kind, hyper):
    """One rank's batch is not finite: no rank moves, and all count it."""
    model = net(kind)
    optimizer = kind(model, 0.1, **hyper)
    before = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    x, y = batch(0, 4)
    x = x * float("nan") if ranks.rank == 1 else x
    nn.functional.cross_entropy(model(x), y).backward()
    for parameter in model.parameters():
        parameter.grad.nan_to_num_()
    optimizer.step()
    after = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return [torch.equal(before, after), optimizer.counters["skipped_batches"]]


def one(ranks):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dense = {**BRAND, "overwrite_period": 2}
    every = {"damping": 0.3, "update_period": 1}
    kinds = {"seng": (SENG, every), "b-kfac": (BrandKFAC, BRAND), "b-r-kfac": (BrandKFAC, dense)}
    refusals = {
        f"{name}, {case}": refused(ranks, kind, hyper, first, then)
        for name, (kind, hyper) in kinds.items()
        for case, first, then in (
            ("other layers", ("ab", "ab", "ab"), ("a", "a", "b")),
            ("a layer less", ("ab", "ab", "ab"), ("ab", "ab", "a")),
            ("nothing", ("ab", "ab", "ab"), ("ab", "", "ab")),
            ("a late layer", ("a", "a", "a"), ("ab", "ab", "a")),
        )
    }
    told = {**{name: trained(ranks, name) for name in ARMS}, "refusals": refusals, "uneven": uneven(ranks)}
    return {**told, "skipped": {name: skipped(ranks, *kinds[name]) for name in ("seng", "b-kfac")}}


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    alone = {name: trained(ALONE, name) for name in ARMS}
    many = together(RANKS, one)
    told = {}
    for name, whole in alone.items():
        start = torch.cat([p.detach().reshape(-1) for p in net(ARMS[name][0]).parameters()])
        size = float((whole["weights"] - start).norm())
        told[name] = {
            "moved": size / float(start.norm()),
            "apart": max(float((r[name]["weights"] - whole["weights"]).norm()) / size for r in many),
            "between": max(float((r[name]["weights"] - many[0][name]["weights"]).norm()) for r in many),
            "sides": [r[name]["sides"] for r in many], "alone": whole["sides"], "parts": many[0][name]["parts"],
            "counters": [r[name]["counters"] for r in many],
        }  # fmt: skip
    others = {name: [r[name] for r in many] for name in ("refusals", "uneven", "skipped")}
    print(json.dumps({"arms": told, **others}))


main()
