"""Script: bytes, owners and resuming of K-FAC on four forked ranks; prints one JSON object."""

import json
import warnings
from itertools import pairwise
from types import MappingProxyType

import torch
from torch import nn

from harness.errors import UserError
from harness.measure.training.together import together
from methods.fop.fop import FOP
from methods.kfac.ekfac import EKFAC
from methods.kfac.kfac import KFAC

RANKS = 4
HYPER = {"damping": 0.1, "update_period": 1, "refresh_period": 2, "clip_value": 0.01, "weight_decay": 0.01}


def net(narrow=False):
    """``narrow``: fewer dimensions than samples, so that no factor has equal eigenvalues (whose bases are open)."""
    torch.manual_seed(0)
    widths = [24] * 9
    if narrow:
        return nn.Sequential(
            nn.Linear(24, 5).requires_grad_(False), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5)
        ).double()
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers, nn.LayerNorm(24), nn.Linear(24, 5)).double()


def five():
    """Five equal layers and a small one: on four ranks one has two of the five, and hands momenta over."""
    torch.manual_seed(0)
    layers = [part for _ in range(5) for part in (nn.Linear(24, 24, bias=False), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(24, 5)).double()


def batch(step, count=10):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(count, 24, generator=generator).double(), torch.randint(0, 5, (count,), generator=generator)


def steps(model, optimizer, ranks, first, last, left_out=MappingProxyType({})):
    """Uneven slices: 10 samples on four ranks. ``left_out``: step -> module that gets no gradient."""
    for step in range(first, last):
        x, y = batch(step)
        if isinstance(optimizer, FOP):
            x, y = batch(step, 4 * RANKS)
            if ranks.size == 1:  # the first half of every rank's four samples, then the second halves
                order = torch.arange(len(x)).view(RANKS, 2, 2).transpose(0, 1).flatten()
                x, y = x[order], y[order]
        begin, count = ranks.slice(0, len(x))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[begin : begin + count]), y[begin : begin + count])
        (loss * count * ranks.size / len(x)).backward()
        ranks.average(list(model.parameters()))
        if step in left_out:
            model[left_out[step]].weight.grad = None
        optimizer.step()


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def trained(ranks, kind=KFAC, **own):
    model = net(narrow=kind is EKFAC)
    optimizer = kind(model, 0.1, **{**HYPER, **own})
    steps(model, optimizer, ranks, 0, 6)
    return model, optimizer


def handed(ranks, kind, **own):
    """Momenta on another rank than the owner, in a step without one layer too, and over a saved state."""
    model = five()
    optimizer = kind(model, 0.1, **{**HYPER, **own})
    steps(model, optimizer, ranks, 0, 4, {3: 2})
    told, memory = optimizer.describe().get("sharding", {}), optimizer.memory_usage()
    again = kind(model, 0.1, **{**HYPER, **own})
    again.load_state_dict(optimizer.state_dict())
    optimizer.close()
    steps(model, again, ranks, 4, 7)
    return {"weights": weights(model), "told": told, "memory": memory}


def resumed(ranks):
    """Saved after three steps and loaded into a new optimizer: the same bits as one that went through."""
    whole, _ = trained(ranks, sharding="owner")
    model = net()
    optimizer = KFAC(model, 0.1, **HYPER, sharding="owner")
    steps(model, optimizer, ranks, 0, 3)
    stored = json.loads(json.dumps({"probe": optimizer.ranks.mark()}))["probe"]
    state = optimizer.state_dict()
    again = KFAC(model, 0.1, **HYPER, sharding="owner")
    again.load_state_dict(state)
    optimizer.close()
    steps(model, again, ranks, 3, 6)
    refusal = ""
    try:
        KFAC(net(), 0.1, **HYPER).load_state_dict(state)
    except UserError as error:
        refusal = str(error)
    return {"same": torch.equal(weights(model), weights(whole)), "mark": stored, "refusal": refusal}


def skipped(ranks):
    """One rank's batch is not finite: no rank moves, and all count it."""
    model = net()
    optimizer = KFAC(model, 0.1, **HYPER, sharding="owner")
    before = weights(model).clone()
    x, y = batch(0)
    if ranks.rank == 2:
        x = x * float("nan")
    nn.functional.cross_entropy(model(x), y).backward()
    for parameter in model.parameters():
        parameter.grad.nan_to_num_()
    optimizer.step()
    return {"still": torch.equal(before, weights(model)), "skipped": optimizer.counters["skipped_batches"]}


def one(ranks):
    warnings.simplefilter("ignore")
    plain, kept = trained(ranks)
    owned, owner = trained(ranks, sharding="owner")
    ekfac, _ = trained(ranks, EKFAC, sharding="none", clip="none")
    return {
        "plain": weights(plain), "owned": weights(owned), "ekfac": weights(ekfac),
        "kept": kept.memory_usage(), "share": owner.memory_usage(), "owners": owner.describe().get("sharding", {}),
        "parts": sorted(owner.parts()),
        "resumed": resumed(ranks), "skipped": skipped(ranks),
        "handed": {kind.__name__: handed(ranks, kind, sharding="owner") for kind in (KFAC, FOP)},
    }  # fmt: skip


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    from harness.measure.training.distributed import ALONE

    alone = weights(trained(ALONE)[0])
    alone_ekfac = weights(trained(ALONE, EKFAC, clip="none")[0])
    start, narrow = weights(net()), weights(net(narrow=True))
    handed_alone = {kind.__name__: handed(ALONE, kind) for kind in (KFAC, FOP)}
    many = together(RANKS, one)
    size = float((alone - start).norm())
    print(json.dumps({
        "moved": size / float(start.norm()),
        "plain": max(float((r["plain"] - alone).norm()) / size for r in many),
        "owned": max(float((r["owned"] - alone).norm()) / size for r in many),
        "ekfac": max(float((r["ekfac"] - alone_ekfac).norm() / (alone_ekfac - narrow).norm()) for r in many),
        "between": max(float((r["owned"] - many[0]["owned"]).norm()) for r in many),
        "kept": [r["kept"] for r in many], "share": [r["share"] for r in many],
        "handed": {name: {
            "apart": max(float((r["handed"][name]["weights"] - one["weights"]).norm()) for r in many)
            / float((one["weights"] - weights(five())).norm()),
            "told": many[0]["handed"][name]["told"], "whole": one["memory"],
            "memory": [r["handed"][name]["memory"] for r in many],
        } for name, one in handed_alone.items()},
        "owners": many[0]["owners"], "parts": many[0]["parts"],
        "resumed": [r["resumed"] for r in many], "skipped": [r["skipped"] for r in many],
    }))  # fmt: skip


main()
