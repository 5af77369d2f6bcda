"""Replace the layers of a network, one after another, each fitted to what the layers before it now give."""

from __future__ import annotations

import contextlib
import fnmatch
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import Unsupported, UserError
from methods.approximate_matmul.learned.geometry import unsupported
from methods.approximate_matmul.learned.layers import NAME, MaddnessConv2d, MaddnessLayer, MaddnessLinear
from methods.approximate_matmul.learned.report import Replaced, Report, Skipped
from methods.approximate_matmul.tables import largest_exact

#: Columns that a codebook sees unless told: the window of one channel of a 3 x 3 convolution (arXiv 2311.10207).
PATCH = 9
#: Training rows of a layer: more change the splits of a tree of 16 leaves little.
ROWS = 20_000
#: Layers that multiply by weights: all of them appear in the report.
_PRODUCTS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)


def replace_layers(
    model: nn.Module,
    calibration_batches: Iterable[Any],
    *,
    codebooks: int | Mapping[str, int] | None = None,
    patch: int = PATCH,
    skip: Sequence[str] = ("first", "last"),
    on_unsupported: str = "error",
    rows: int = ROWS,
    hyper: Mapping[str, Any] | None = None,
    **options: Any,
) -> Report:
    """Replace Linear and Conv2d layers of ``model`` in place.

    A layer is fitted to its inputs in evaluation mode, with all layers before it replaced already; it is taken to run
    as often in every batch as in the first. When anything fails, layers that were replaced until then stay replaced.

    Args:
        model: the network.
        calibration_batches: inputs of the model: a tensor, or a tuple of arguments, per batch.
        codebooks: C of every layer, or of layers by name; others follow ``patch``.
        patch: columns per codebook, C = max(D // patch, 1). With 9 a 3 x 3 convolution has one codebook per channel,
            up to 257 channels: of 8-bit entries (``lut_bits``) no more codebooks sum in 16 bits, so that beyond
            D = 257 ``patch`` a codebook sees more columns.
        skip: layers to keep: names or patterns (``blocks.*``), ``first`` and ``last`` in order of execution.
        on_unsupported: ``error``, or ``skip`` to list such layers in the report instead.
        rows: training rows of a layer, spread evenly over all that the batches give.
        hyper: options of MADDNESS: ``candidates``, ``ridge``, ``tables``, ``nonzeros``, ``min_leaf``, ``compare``.
        options: of the layers: ``lut_bits``, ``trains``, ``temperature``.

    Raises:
        Unsupported: a layer that is no single matrix product, unless it is skipped.
        UserError: no batches, a name that fits no layer, or an option out of range.
    """
    batches = [batch if isinstance(batch, tuple | list) else (batch,) for batch in calibration_batches]
    if not batches:
        raise UserError(f"{NAME}: replace_layers needs at least one calibration batch, got none.")
    if isinstance(model, _PRODUCTS):
        raise UserError(f"{NAME}: a single layer has no place to be replaced in; wrap it: nn.Sequential(layer).")
    if on_unsupported not in ("error", "skip"):
        raise UserError(f"{NAME}: on_unsupported must be error or skip, got {on_unsupported!r}.")
    if patch < 1 or rows < 1:
        raise UserError(f"{NAME}: patch and rows must be positive, got {patch} and {rows}.")
    was_training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        found = _executed(model, batches[0])
        wanted, skipped = _sorted_out(model, list(found), tuple(skip), on_unsupported)
        by_name = codebooks if isinstance(codebooks, Mapping) else {}
        if unknown := sorted(set(by_name) - set(wanted)):
            raise UserError(f"{NAME}: codebooks are given for {', '.join(unknown)}, replaced are: {', '.join(wanted)}.")
        replaced = []
        for name in wanted:
            default = codebooks if isinstance(codebooks, int) else None
            layer = model.get_submodule(name)
            made = _unfitted(layer, by_name.get(name, default), patch, options)
            seen = _captured(model, layer, made, batches, rows, found[name])
            replaced.append(_replace(model, name, made, seen, dict(hyper or {})))
    finally:
        for module, training in was_training:
            module.training = training
        for module in model.modules():
            if isinstance(module, MaddnessLayer):
                module.train(model.training)
    return Report(replaced=tuple(replaced), skipped=tuple(skipped))


def rebuild(model: nn.Module, report: Report | Mapping[str, Any]) -> None:
    """Put unfitted layers of a report's structure into a fresh ``model``, ready for ``load_state_dict``.

    Args:
        model: a network of the same class, not replaced.
        report: what :func:`replace_layers` gave, or its JSON form.

    Raises:
        UserError: the report names a layer that the model does not have.
    """
    known = report if isinstance(report, Report) else Report.from_json(report)
    layers = dict(model.named_modules())
    for entry in known.replaced:
        if type(layers.get(entry.name)).__name__ != entry.kind:
            kind = type(layers[entry.name]).__name__ if entry.name in layers else "nothing"
            raise UserError(f"{NAME}: the report replaced a {entry.kind} called {entry.name!r}, the model has {kind}.")
        _put(model, layers[entry.name], _like(layers[entry.name], dict(entry.options)))


def _executed(model: nn.Module, batch: Sequence[Any]) -> dict[str, int]:
    """Names of the product layers that a batch passes, in order of their first call, and their numbers of calls."""
    names: dict[nn.Module, str] = {
        module: name for name, module in model.named_modules() if isinstance(module, _PRODUCTS)
    }
    calls: dict[str, int] = {}

    def note(module: nn.Module, *_: Any) -> None:
        calls[names[module]] = calls.get(names[module], 0) + 1

    handles = [module.register_forward_pre_hook(note) for module in names]
    try:
        with torch.no_grad():
            model(*batch)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _sorted_out(
    model: nn.Module, executed: list[str], skip: tuple[str, ...], on_unsupported: str
) -> tuple[list[str], list[Skipped]]:
    """Names to replace, and what is kept and why."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _PRODUCTS)}
    for pattern in skip:
        if pattern not in ("first", "last") and not fnmatch.filter(layers, pattern):
            raise UserError(f"{NAME}: skip={pattern!r} fits no layer; there are {', '.join(layers) or 'none'}.")
    shared = _shared(model)
    wanted, skipped = [], []
    for name in [*executed, *(n for n in layers if n not in executed)]:
        hits = [pattern for pattern in skip if fnmatch.fnmatchcase(name, pattern)]
        if hits:
            why = f"skip={hits[0]!r}"
        elif name not in executed:
            why = "no calibration batch reaches it as a module"
        elif name == executed[0] and "first" in skip:
            why = "it is the first layer"
        elif name == executed[-1] and "last" in skip:
            why = "it is the last layer"
        elif (problem := unsupported(layers[name]) or shared.get(name)) is None:
            wanted.append(name)
            continue
        elif on_unsupported == "error":
            raise Unsupported(
                f"{NAME}: layer {name!r} cannot be replaced: {problem}; name it in skip or use on_unsupported='skip'."
            )
        else:
            why = problem
        skipped.append(Skipped(name=name, why=why))
    if not wanted:
        kept = "; ".join(f"{s.name}: {s.why}" for s in skipped) or "the model has no Linear and no convolution"
        raise UserError(f"{NAME}: there is nothing to replace ({kept}).")
    return wanted, skipped


def _shared(model: nn.Module) -> dict[str, str]:
    """Layers whose weight another module holds too: replacing would untie them."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    tied = [names for names in owners.values() if len(names) > 1]
    return {
        name: f"it shares parameters with {', '.join(n for n in names if n != name)}"
        for names in tied
        for name in names
    }


def _unfitted(
    layer: nn.Module, codebooks: int | None, patch: int, options: Mapping[str, Any]
) -> MaddnessLinear | MaddnessConv2d:
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    inner, bits = layer.weight[0].numel(), options.get("lut_bits", 8)
    most = largest_exact(bits) if isinstance(bits, int) and bits > 0 else inner
    count = min(max(inner // patch, 1), most) if codebooks is None else codebooks
    return _like(layer, {"codebooks": count, **options})


def _replace(
    model: nn.Module, name: str, made: MaddnessLinear | MaddnessConv2d, seen: Tensor, hyper: dict[str, Any]
) -> Replaced:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    weight = layer.weight.detach().flatten(1)
    start = time.perf_counter()
    made.fit(seen, weight, layer.bias, **hyper)
    seconds = time.perf_counter() - start
    _put(model, layer, made)
    with torch.no_grad():
        exact = seen @ weight.T
        nmse = float((made.to_operator("torch")(seen) - exact).square().sum() / exact.square().sum().clamp_min(1e-38))
    return Replaced(
        name=name,
        kind=type(layer).__name__,
        inner=weight.shape[1],
        outer=len(weight),
        codebooks=made.codebooks,
        rows=len(seen),
        nmse=nmse,
        seconds=seconds,
        options={**made.options(), "temperature": float(made.temperature)},
    )


def _like(layer: nn.Module, options: dict[str, Any]) -> MaddnessLinear | MaddnessConv2d:
    count = options.pop("codebooks")
    if isinstance(layer, nn.Conv2d):
        return MaddnessConv2d.like(layer, count, **options)
    assert isinstance(layer, nn.Linear)
    return MaddnessLinear.like(layer, count, **options)


class _Reached(Exception):
    """The last call of a layer: what the network would do after it is of no interest."""


def _captured(
    model: nn.Module,
    layer: nn.Module,
    made: MaddnessLinear | MaddnessConv2d,
    batches: list[Any],
    limit: int,
    times: int,
) -> Tensor:
    """At most ``limit`` rows of the layer's product over all batches, evenly spread over each of ``times`` calls."""
    calls: list[Tensor] = []
    share = max(limit // len(batches), 1)
    left = times

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal left
        calls.append(made.some_rows(inputs[0].detach(), share).to(made.thresholds.dtype).clone())
        left -= 1
        if not left:
            raise _Reached

    handle = layer.register_forward_pre_hook(keep)
    try:
        with torch.no_grad():
            for batch in batches:
                left = times
                with contextlib.suppress(_Reached):
                    model(*batch)
    finally:
        handle.remove()
    rows = torch.cat(calls)
    if len(rows) <= limit:
        return rows
    return rows[torch.arange(limit, device=rows.device) * len(rows) // limit]


def _put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` is registered."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)
