"""Which weights are hidden matrices (for Muon) and which go to the fallback optimizer."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from torch import Tensor, nn

from harness.errors import UserError
from methods.first_order.groups import NORMS, trainable

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def split(model: nn.Module, exclude: Sequence[str] = ()) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Hidden matrices, and everything else, each in the model's order.

    A hidden matrix is a trainable weight with two dimensions, or a convolution's (of a module ``nn.Conv*d``, or any
    weight of four dimensions), except: the weight of an embedding, that of the model's last ``nn.Linear`` (the
    classifier or language-model head, and so an embedding tied to it), a transposed convolution's, an empty one, and
    what a pattern of ``exclude`` names. Where a model has an embedding and a norm after its last ``nn.Linear``, the
    embedding itself is the head, and that layer is hidden. Tokens and positions kept as plain parameters have three
    dimensions and are no hidden matrices; one kept in two must be excluded by name.

    Args:
        model: the model.
        exclude: shell patterns (``*``) on parameter names.

    Raises:
        UserError: a pattern that matches no trainable parameter.
    """
    patterns = [exclude] if isinstance(exclude, str) else list(exclude)
    named = trainable(model)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name, _ in named):
            raise UserError(
                f"exclude pattern {pattern!r} matches no trainable parameter; names are like {named[0][0]!r}."
            )
    barred, convolved = _by_module(model)
    hidden: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in named:
        matrix = parameter.ndim in (2, 4) or parameter in convolved
        named_out = any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        taken = matrix and parameter.numel() > 0 and parameter not in barred and not named_out
        (hidden if taken else others).append(parameter)
    return hidden, others


def _by_module(model: nn.Module) -> tuple[set[Tensor], set[Tensor]]:
    """Weights that are never hidden matrices, and weights of convolutions."""
    barred: set[Tensor] = set()
    convolved: set[Tensor] = set()
    head: Tensor | None = None
    embedded = normed = False
    for module in model.modules():
        if isinstance(module, _EMBEDDINGS + _TRANSPOSED):
            barred.add(module.weight)
            embedded = embedded or isinstance(module, _EMBEDDINGS)
        elif isinstance(module, _CONVOLUTIONS):
            convolved.add(module.weight)
        elif isinstance(module, nn.Linear):
            head, normed = module.weight, False
        elif isinstance(module, NORMS):
            normed = True
    if head is not None and not (embedded and normed):
        barred.add(head)
    return barred, convolved
