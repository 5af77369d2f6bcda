"""FOP's directions inside a graph of the step (:mod:`methods.kfac.static`): all of equations 4 to 18 on the device.

g and d of a layer lie one below the other in one stack, so that both right-hand sides read each inverse once and no
column is moved: [g; d] A^-1 is one product, and G^-1, the smaller factor of a convolution, is repeated for the other.
The arithmetic is that of :mod:`methods.fop.fop` up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from methods.fop import projection
from methods.kfac import damping, products
from methods.kfac.inverse.base import State
from methods.kfac.static import Directions, Held

if TYPE_CHECKING:
    from methods.fop.fop import FOP

#: Dtypes whose inner products keep their precision as one call.
_WIDE = (torch.float32, torch.float64)


class Pairs(Directions):
    """Directions of :class:`methods.fop.fop.FOP`.

    Not with random signs, which the host draws, a damped F, whose damping may change, or factors that are not kept as
    they are used (packed or bias-corrected).

    Args:
        optimizer: whose.
    """

    def __init__(self, optimizer: FOP) -> None:
        super().__init__(optimizer)
        self._rooms: dict[Any, Tensor] = {}
        #: Coefficients and their layers in the graph's memory: those of the last replay.
        self.told: tuple[projection.Chosen, list[Any]] | None = None

    def suits(self) -> bool:
        """Whether nothing of the host's enters, and no relative looks at a layer of its own."""
        o, rule = self.optimizer, self.optimizer.rule
        if not o.own_directions:
            return False
        if rule.beta == "zero":
            return True
        kept = not o.options.packed and o.options.factor_init != "bias-corrected"
        return bool(kept and rule.beta == "optimal" and not rule.damped)

    def prepare(self, held: Sequence[Held]) -> list[Tensor]:
        """Fill in d; its stacks, the factors and the running sums."""
        o = self.optimizer
        if o.rule.beta == "zero":
            return []
        layers = [layer for one in held for layer in one.stack.layers]
        views = []
        for one in held:
            room = self._rooms.get(one.stack)
            if room is None or room.dtype != one.x.dtype or room.device != one.x.device:
                room = one.x.new_zeros((len(one.x), 2, *one.x.shape[1:]))
                self._rooms[one.stack] = room
            groups, inner = one.stack.groups, room[:, 1, : one.stack.d_out, : one.stack.d_in]
            views += [inner[i * groups : (i + 1) * groups] for i in range(len(one.stack.layers))]
        o._fill(layers, views)
        factors = [matrix for layer in layers for matrix in o.statistics.held(layer).held]
        return [*self._rooms.values(), *factors, *o.sums_on_device(layers)]

    def own(self) -> list[Tensor]:
        """The stacks of g and d."""
        return list(self._rooms.values())

    def forget(self) -> None:
        """Drop them."""
        self._rooms, self.told = {}, None

    def write(self, held: Sequence[Held]) -> list[Tensor]:
        """FOP's directions into the gradients' places."""
        o = self.optimizer
        if o.rule.beta == "zero":
            return self._scaled(super().write(held), held)
        numbers = [one for part in held for one in self._solved(part)]
        found = projection.Products(*torch.cat(numbers).double().unbind(1))
        layers = [layer for one in held for layer in one.stack.layers]
        chosen = projection.choose(found, o.rule, torch.finfo(held[0].x.dtype).eps)
        o._keep(layers, chosen)
        self.told = (chosen, layers)
        start = 0
        for one in held:
            count = len(one.stack.layers)
            self._mix(one, chosen.of_p[start : start + count], chosen.of_r[start : start + count])
            start += count
        if o.options.clip != "kl":
            return []
        # <P, g> and <R, g> are known.
        return [(chosen.of_p * found.gp + chosen.of_r * found.gr).sum().to(held[0].x.dtype)]

    def _scaled(self, dots: list[Tensor], held: Sequence[Held]) -> list[Tensor]:
        eta = self.optimizer._eta()
        if eta == 1.0:
            return dots
        for one in held:
            one.inner(one.x).mul_(eta)
        return [eta * dot for dot in dots]

    def _solved(self, one: Held) -> list[Tensor]:
        """Inner products of every layer, (layers, 5) in pieces; then P and R lie where g and d were."""
        room, groups, found = self._rooms[one.stack], one.stack.groups, []
        room[:, 0].copy_(one.x)
        for cut in one.cuts():
            pair = room[cut]
            solved = self._solve(*one.inverses(cut), pair)
            layers = one.stack.layers[cut.start // groups : cut.start // groups + len(pair) // groups]
            for index, layer in enumerate(layers):
                mine = slice(index * groups, (index + 1) * groups)
                found.append(self._inner(one, layer, pair[mine], solved[mine]))
            inside = (..., slice(one.stack.d_out), slice(one.stack.d_in))
            # d's padding is never written again: what is not finite must not get into it.
            pair[inside].copy_(solved[inside])
        return found

    def _solve(self, a: State, g: State, pair: Tensor) -> Tensor:
        """F^-1 of both, (k, 2, height, width)."""
        o = self.optimizer
        count, _, height, width = pair.shape
        if o.options.damping_mode in damping.JOINT or height > width:
            return torch.stack(o.solve_pairs(a, g, pair[:, 0], pair[:, 1]), dim=1)
        right = o.backend.apply_right(a, pair.view(count, 2 * height, width))
        both = {key: _repeated(value) for key, value in g.items()}
        return o.backend.apply(both, right.reshape(2 * count, height, width)).view(pair.shape)  # type: ignore[no-any-return]

    def _inner(self, one: Held, layer: Any, pair: Tensor, solved: Tensor) -> Tensor:
        """(1, 5) inner products of one layer, in the order of :class:`projection.Products`."""
        v, d, p, r = pair[:, 0], pair[:, 1], solved[:, 0], solved[:, 1]
        kept = self.optimizer.statistics.held(layer).held
        if all(matrix.shape[1] >= size for matrix, size in zip(kept, (v.shape[2], v.shape[1]), strict=True)):
            # Padded as the stack is.
            f = self._image(kept[0][:, : v.shape[2], : v.shape[2]], kept[1][:, : v.shape[1], : v.shape[1]], v)
            images = [_dot(v, f), _dot(d, f)]
        else:
            factors = self.optimizer.statistics.held(layer)
            f = self._image(factors.a, factors.g, one.inner(v))
            images = [_dot(one.inner(v), f), _dot(one.inner(d), f)]
        return torch.stack([_dot(v, p), _dot(v, r), _dot(d, r), *images])[None]

    def _image(self, a: Tensor, g: Tensor, v: Tensor) -> Tensor:
        """F g = G g A."""
        if self.optimizer.options.product_dtype == "bfloat16":
            return products.multiply(products.multiply(g.bfloat16(), v), a.bfloat16())
        return products.multiply(products.multiply(g, v), a)

    def _mix(self, one: Held, of_p: Tensor, of_r: Tensor) -> None:
        """The gradient's place takes of_p P + of_r R; padding is left alone, as in K-FAC."""
        room, groups = self._rooms[one.stack], one.stack.groups
        for cut in one.cuts():
            x = one.inner(one.x[cut])
            p, r = (one.inner(room[cut][:, side]) for side in (0, 1))
            layers = slice(cut.start // groups, cut.start // groups + len(x) // groups)
            first, second = (_each(c[layers], groups).to(x.dtype) for c in (of_p, of_r))
            torch.mul(p, first, out=x)
            x.addcmul_(r, second)


def _repeated(value: Tensor) -> Tensor:
    """Every matrix twice in a row."""
    return value[:, None].expand(-1, 2, *value.shape[1:]).reshape(2 * len(value), *value.shape[1:])


def _each(numbers: Tensor, groups: int) -> Tensor:
    """(layers,) -> (layers x groups, 1, 1)."""
    return numbers[:, None].expand(-1, groups).reshape(-1, 1, 1)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    if one.dtype in _WIDE and one.is_contiguous() and other.is_contiguous():
        return torch.dot(one.view(-1), other.view(-1))
    wide = torch.promote_types(one.dtype, torch.float32)
    return (one.to(wide) * other.to(wide)).sum()
