"""Which modules have Kronecker factors, and their rows, gradients and weights as matrices.

Every layer is a stack of ``groups`` independent linear maps (one, but for grouped convolutions), so rows have the
shape (groups, n, d), gradients (groups, d_out, d_in). A bias is the last column of the weight.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary

from harness.errors import Unsupported, UserError

_KINDS = (nn.Linear, nn.Conv2d)
#: Linear modules whose weight is a subclass' own affair (lazy, quantised, attention's projection).
_REFUSED = (nn.LazyLinear, nn.LazyConv2d, nn.modules.linear.NonDynamicallyQuantizableLinear)
#: Weight of a layer -> whether its columns run (kernel height, kernel width, channel): decided when a layer is found.
_CHANNELS_LAST: Any = WeakIdKeyDictionary()


def channels_last(weight: Tensor) -> bool:
    """Whether the columns of this convolution's matrix have the channel innermost, as its memory had at first.

    Else they run (channel, kernel height, kernel width). K-FAC does not depend on it; copies do.
    """
    return bool(_CHANNELS_LAST.get(weight, False))


def _note_order(weight: Tensor) -> None:
    if weight not in _CHANNELS_LAST:
        last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
        _CHANNELS_LAST[weight] = last and not weight.is_contiguous()


@dataclass(eq=False)
class Layer:
    """One weight (and bias) with the modules that use it.

    Attributes:
        name: the first module's name.
        modules: all modules that share the weight.
        weight: (d_out, ...).
        bias: trained bias or None.
        groups: number of independent maps.
    """

    name: str
    modules: list[nn.Linear | nn.Conv2d]
    weight: nn.Parameter
    bias: nn.Parameter | None
    groups: int = field(default=1)

    @property
    def d_out(self) -> int:
        """Outputs of one group."""
        return self.weight.shape[0] // self.groups

    @property
    def d_in(self) -> int:
        """Inputs of one group, the bias column counted."""
        return self.weight[0].numel() + (self.bias is not None)

    @cached_property
    def channels_last(self) -> bool:
        """See :func:`channels_last`."""
        return channels_last(self.weight)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Weight and, if trained, bias."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of factors: float64 for a float64 weight, else float32."""
        return torch.float64 if self.weight.dtype == torch.float64 else torch.float32

    def matrix(self, tensors: Sequence[Tensor]) -> Tensor:
        """[weight-like, bias-like] as a matrix (groups, d_out, d_in) in the factors' dtype."""
        parts = [part.to(self.dtype) for part in self.parts(tensors)]
        return parts[0] if self.bias is None else torch.cat(parts, dim=2)

    def parts(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """[weight-like, bias-like] as (groups, d_out, columns), views where possible."""
        first = tensors[0].permute(0, 2, 3, 1) if self.channels_last else tensors[0]
        return [one.reshape(self.groups, self.d_out, -1) for one in (first, *tensors[1:])]

    def gradient(self) -> Tensor | None:
        """Gradient (groups, d_out, d_in), None without one."""
        grads = [parameter.grad for parameter in self.parameters]
        if all(grad is None for grad in grads):
            return None
        pairs = zip(self.parameters, grads, strict=True)
        return self.matrix([torch.zeros_like(p) if grad is None else grad for p, grad in pairs])

    def views(self, matrix: Tensor) -> list[Tensor]:
        """The parts of a matrix (groups, d_out, d_in) in the parameters' shapes and dtype."""
        weight = matrix if self.bias is None else matrix[:, :, :-1]
        if self.channels_last:
            out, channels, *kernel = self.weight.shape
            parts = [weight.reshape(out, *kernel, channels).permute(0, 3, 1, 2)]
        else:
            parts = [weight.reshape(self.weight.shape)]
        if self.bias is not None:
            parts.append(matrix[:, :, -1].reshape(self.bias.shape))
        return [part.to(self.weight.dtype) for part in parts]


def find(
    model: nn.Module, exclude: Sequence[str] = ()
) -> tuple[list[Layer], list[tuple[str, nn.Parameter]], dict[str, str]]:
    """Layers with factors, the other trained parameters with their names, and why each of those is not in a layer.

    A weight used by several modules is one layer, if all are of one kind and shape with the same bias. Frozen
    parameters are in neither.

    Args:
        model: the model.
        exclude: shell patterns on module names.

    Raises:
        UserError: a pattern without a match.
        Unsupported: no layer at all.
    """
    patterns = [exclude] if isinstance(exclude, str) else list(exclude)
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise UserError(f"exclude pattern {pattern!r} matches no module; names are like {names[-1]!r}.")
    owners: dict[Tensor, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append((name, module))
    layers: list[Layer] = []
    why: dict[Tensor, str] = {}
    for parameter, users in owners.items():
        held: Any = getattr(users[0][1], "weight", None)
        if not parameter.requires_grad or held is not parameter:
            continue
        reason = _refusal(users, patterns)
        if reason is None:
            module = users[0][1]
            assert isinstance(module, _KINDS)
            weight: Any = module.weight
            bias: Any = module.bias if module.bias is not None and module.bias.requires_grad else None
            groups = module.groups if isinstance(module, nn.Conv2d) else 1
            kept = [user for _, user in users if isinstance(user, _KINDS)]
            _note_order(weight)
            layers.append(Layer(users[0][0] or "(model)", kept, weight, bias, groups))
        else:
            why |= dict.fromkeys(users[0][1].parameters(recurse=False), reason)
    if not layers:
        raise Unsupported(
            "the model has no layer with Kronecker factors: a trained nn.Linear or nn.Conv2d that is not excluded "
            f"(it has {', '.join(sorted({type(m).__name__ for _, m in model.named_modules()}))})"
            + (f"; {'; '.join(sorted(set(why.values())))}." if why else ".")
        )
    taken = {parameter for layer in layers for parameter in layer.parameters}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad and p not in taken]
    reasons = {name: why.get(p) or f"{type(owners[p][0][1]).__name__} has no factors" for name, p in named}
    return layers, named, reasons


def _refusal(users: Sequence[tuple[str, nn.Module]], patterns: Sequence[str]) -> str | None:
    """Why the weight that these modules share has no factors; None if it has."""
    first = users[0][1]
    for name, module in users:
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            return "excluded"
        if not isinstance(module, _KINDS) or isinstance(module, _REFUSED):
            shared = " shares the weight" if len(users) > 1 else ""
            return f"{type(module).__name__}{shared} has no factors"
        if getattr(module, "parametrizations", None) is not None:
            return "its weight is parametrized"
        if type(module) is not type(first) or module.bias is not first.bias:
            return "its weight is shared by modules of other kinds or with other biases"
        if isinstance(module, nn.Conv2d) and module.groups != first.groups:
            return "its weight is shared by convolutions with other groups"
    return None


# -- rows --------------------------------------------------------------------------------------------------------------


def patches(module: nn.Conv2d, inputs: Tensor) -> Tensor:
    """Inputs (N, C, H, W) -> patches (N, out height, out width, C, kernel height, kernel width), not copied.

    Stride, dilation and every padding (integers, ``same``, ``valid``, all padding modes) as in the module.
    """
    if any(sides := _padding(module)):
        inputs = functional.pad(inputs, sides, mode=_mode(module))
    (kernel, step, gap), count = (_pair(module.kernel_size), _pair(module.stride), _pair(module.dilation)), inputs.shape
    out = [(count[2 + i] - gap[i] * (kernel[i] - 1) - 1) // step[i] + 1 for i in (0, 1)]
    n, c, h, w = inputs.stride()
    return inputs.as_strided(
        (count[0], out[0], out[1], count[1], kernel[0], kernel[1]),
        (n, h * step[0], w * step[1], c, h * gap[0], w * gap[1]),
    )


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    return int(value[0]), int(value[1])


def _mode(module: nn.Conv2d) -> str:
    return "constant" if module.padding_mode == "zeros" else module.padding_mode


def _padding(module: nn.Conv2d) -> list[int]:
    """Left, right, top, bottom."""
    sides: list[int] = []
    for i in (1, 0):
        if module.padding == "same":
            total = module.dilation[i] * (module.kernel_size[i] - 1)
            sides += [total // 2, total - total // 2]
        elif module.padding == "valid":
            sides += [0, 0]
        else:
            sides += [int(module.padding[i])] * 2
    return sides


def input_rows(module: nn.Linear | nn.Conv2d, inputs: Tensor) -> Tensor:
    """Rows of the layer's inputs, without the bias' 1: (groups, N, S, d), a view where possible.

    A linear layer's inputs are (N, ..., d) with S the product of the middle dimensions; a single vector is N = 1.
    """
    if isinstance(module, nn.Linear):
        flat = inputs.reshape(1, -1) if inputs.ndim == 1 else inputs
        return flat.reshape(1, flat.shape[0], flat[0].numel() // flat.shape[-1], flat.shape[-1])
    found = patches(module, inputs if inputs.ndim == 4 else inputs[None])
    n, height, width, channels, *kernel = found.shape
    split = found.reshape(n, height, width, module.groups, channels // module.groups, *kernel)
    order = (3, 0, 1, 2, 5, 6, 4) if channels_last(module.weight) else (3, 0, 1, 2, 4, 5, 6)
    return split.permute(order).reshape(module.groups, n, height * width, -1)


def input_positions(module: nn.Linear | nn.Conv2d, inputs: Tensor) -> tuple[int, int]:
    """Samples and shared positions of the rows that :func:`input_rows` gives."""
    if isinstance(module, nn.Linear):
        return (1, 1) if inputs.ndim == 1 else (inputs.shape[0], inputs[0].numel() // inputs.shape[-1])
    kernel, step, gap = _pair(module.kernel_size), _pair(module.stride), _pair(module.dilation)
    left, right, top, bottom = _padding(module)
    sizes = inputs.shape[-2] + top + bottom, inputs.shape[-1] + left + right
    out = [(sizes[i] - gap[i] * (kernel[i] - 1) - 1) // step[i] + 1 for i in (0, 1)]
    return inputs.shape[0] if inputs.ndim == 4 else 1, out[0] * out[1]


def averaged_rows(module: nn.Linear | nn.Conv2d, inputs: Tensor) -> Tensor:
    """Rows averaged over the shared positions: (groups, N, 1, d); a convolution's patches are never copied out."""
    if isinstance(module, nn.Linear):
        return input_rows(module, inputs).mean(dim=2, keepdim=True)
    found = patches(module, inputs if inputs.ndim == 4 else inputs[None]).mean(dim=(1, 2))
    split = found.reshape(len(found), module.groups, -1, *found.shape[2:])
    if channels_last(module.weight):
        split = split.permute(0, 1, 3, 4, 2)
    return split.reshape(found.shape[0], module.groups, 1, -1).transpose(0, 1)


def output_rows(module: nn.Linear | nn.Conv2d, gradients: Tensor) -> Tensor:
    """Rows of the gradient with respect to the layer's outputs: (groups, N, S, d_out)."""
    if isinstance(module, nn.Linear):
        flat = gradients.reshape(1, -1) if gradients.ndim == 1 else gradients
        return flat.reshape(1, flat.shape[0], flat[0].numel() // flat.shape[-1], flat.shape[-1])
    batched = gradients if gradients.ndim == 4 else gradients[None]
    n, channels = batched.shape[:2]
    return batched.reshape(n, module.groups, channels // module.groups, -1).permute(1, 0, 3, 2)
