"""Inputs and output gradients of layers, caught while the ordinary backward runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import Unsupported
from methods.kfac.layers import Layer

#: ``take(layer, module, inputs, output_gradient, backward_id)``.
Take = Callable[[Layer, Any, Tensor, Tensor, int], None]


def _retained() -> bool:
    """Whether the backward under way may be followed by another through the same graph; True where torch cannot say."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return asked is None or bool(asked())


class Capture:
    """One forward hook for each module; while ``enabled``, it puts a hook on the output tensor.

    The tensor's hook hands inputs and gradient over together, so a forward without a backward leaves nothing behind,
    a module may be called many times, and an in-place activation behind it does not matter. The modules' hooks stay
    for good (a compiled graph then has one form for each state of ``enabled``), do nothing under ``no_grad``, hold
    this object weakly and ignore copies of the modules.

    Attributes:
        enabled: whether the next forward passes are watched.
        wanted: whether a layer's are; None for all.
    """

    def __init__(self, layers: Sequence[Layer], take: Take) -> None:
        self.enabled = False
        self.wanted: Callable[[Layer], bool] | None = None
        self._take = take
        self._layers = {id(module): layer for layer in layers for module in layer.modules}
        me = weakref.ref(self)

        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            capture = me()
            # Compiled, one form must do for all steps: there :meth:`attach` asks who is wanted, out of the graph.
            if capture is not None and capture.enabled and (torch.compiler.is_compiling() or capture.wants(module)):
                capture.attach(module, inputs, output)

        self._handles = [module.register_forward_hook(hook) for layer in layers for module in layer.modules]

    def wants(self, module: nn.Module) -> bool:
        """Whether the module is one of ours, not of a copy, and its layer is watched now."""
        layer = self._layers.get(id(module))
        return layer is not None and (self.wanted is None or self.wanted(layer))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def attach(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Hook one output, if a gradient will reach it and the weight.

        Raises:
            Unsupported: an empty batch.
        """
        if not self.wants(module) or not torch.is_grad_enabled():
            return
        layer = self._layers[id(module)]
        if not layer.weight.requires_grad:
            return
        if not isinstance(output, Tensor) or not output.requires_grad:
            return
        held, take = [inputs[0].detach()], self._take
        if not held[0].numel():
            raise Unsupported(
                f"layer {layer.name} was called with an empty batch {tuple(held[0].shape)}: it has no statistics and "
                f"no mean gradient; skip empty batches."
            )

        @torch.no_grad()
        def caught(gradient: Tensor) -> None:
            # The hook lives as long as the graph: inputs that it kept would all be there until the end of backward.
            if not held:
                raise Unsupported(
                    f"layer {layer.name}: its output was differentiated again after a pass that did not retain the "
                    f"graph; give retain_graph=True to the first one, or differentiate once."
                )
            kept = held[0] if _retained() else held.pop()
            take(layer, module, kept, gradient.detach(), torch._C._current_graph_task_id())

        output.register_hook(caught)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Remove every hook; may be called twice."""
        self.enabled = False
        for handle in self._handles:
            handle.remove()
        self._handles = []
