"""The update of K and C: H and N of all pools, their traces, the momenta, the products, what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from methods.kfac.graphs import Graphs, Scalars, places
from methods.kfac.layers import Layer
from methods.kfac.policy import value_at
from methods.singd.options import Options
from methods.singd.pools import Pool, clusters, pools
from methods.singd.products import precision
from methods.singd.rows import wide
from methods.singd.stacks import Stack
from methods.singd.tensors import split


class Update:
    """m <- alpha_1 m + h [w H + lam w' N - I], K <- K - beta K m for K and C of all layers with statistics.

    Args:
        stacks: of layers.
        options: hyper-parameters.
        graphs: the optimizer's.
    """

    def __init__(self, stacks: Sequence[Stack], options: Options, graphs: Graphs) -> None:
        self.stacks, self.options, self.graphs = list(stacks), options, graphs
        self._layers: dict[Layer, Any] = {}
        self.pools: list[Pool] = []
        self._clusters: list[tuple[list[Pool], Tensor]] = []
        self._scalars: dict[tuple[torch.dtype, torch.device], Scalars] = {}
        self._numbers: dict[tuple[torch.dtype, torch.device, str], Tensor] = {}
        self._good: Tensor | None = None
        self._finite: Tensor | None = None
        self._held = self._whole = False

    def nbytes(self) -> int:
        """Bytes of scratch that is held between updates."""
        return sum(buffer.untyped_storage().nbytes() for pool in self.pools for buffer in pool.buffers)

    def step(self, sums: dict[Layer, tuple[Tensor, Tensor]], step: int, good: Tensor | None) -> tuple[Tensor, Tensor]:
        """Move the factors of the layers in ``sums``, which it takes over, unless something is not finite.

        Returns:
            Whether all sums are finite, and that it was so and ``good``: 0-d bools on the first layer's device, of
            which the next update takes the places.
        """
        self._plan(sums)
        home = self.stacks[0].a.value.device
        if self._good is None or self._finite is None or self._good.device != home:
            self._good, self._finite = (torch.ones((), dtype=torch.bool, device=home) for _ in range(2))
        self._fill(step)
        direct = not all(pool.padded for pool in self.pools)
        static = not direct and len({pool.device for pool in self.pools} | {home}) == 1 and self.graphs.usable(home)
        self._load(sums)
        self._good.fill_(True) if good is None else self._good.copy_(good)
        if not static or not self.graphs.run("update", self._key(), home, self._work):
            self._work()
            static = False
        if not static:
            self._release()
        if not self._whole:
            self.keep()
        return self._finite, self._good

    def keep(self) -> None:
        """K K^T of all layers, with the rounding of an update of all layers: a resumed run has the same."""
        layers = {layer for stack in self.stacks for layer in stack.layers}
        with precision(self.options.products):
            for pool in pools(self.stacks, layers, None):
                pool.hold()
                if pool.targets:
                    torch._foreach_copy_(pool.targets, pool.sources)
                _keep(pool)

    # -- on what -------------------------------------------------------------------------------------------------------

    def _plan(self, sums: dict[Layer, tuple[Tensor, Tensor]]) -> None:
        """Pools for these layers; those of the last update if they fit."""
        shapes = {layer: (pair[0].shape, pair[1].shape) for layer, pair in sums.items()}
        if shapes == self._layers and self.pools:
            return
        self._release()
        self._layers, self.pools = shapes, pools(self.stacks, sums, sums)
        self._whole = len(shapes) == sum(len(stack.layers) for stack in self.stacks)
        self._clusters = clusters(self.pools)
        self._release()

    def _release(self) -> None:
        for pool in self.pools:
            pool.release()
        self._held = False

    def _load(self, sums: dict[Layer, tuple[Tensor, Tensor]]) -> None:
        """Take scratch memory and bring the sums there."""
        sources: list[Tensor] = []
        for pool in self.pools:
            if not self._held:
                pool.hold()
            found = [sums[layer][member.number] for member in pool.members for layer in member.layers]
            if pool.padded:
                sources += found
            else:
                pool.sums = found[0] if len(found) == 1 else torch.cat(found)
        self._held = True
        targets = [flat for pool in self.pools for flat in pool.flat]
        if targets:
            torch._foreach_copy_(targets, sources)
        sums.clear()

    def _fill(self, step: int) -> None:
        """Bring this step's numbers to the devices."""
        lam, beta = value_at(self.options.damping, step), value_at(self.options.lr_cov, step)
        for pool in self.pools:
            key = (wide(pool.dtype), pool.device)
            if key not in self._scalars:
                self._scalars[key] = made = Scalars(("lam", "beta"), *key)
                # (1, 1), not 0-d: a number of the sums' dtype then widens a half-precision product.
                self._numbers |= {(*key, name): made[name].view(1, 1) for name in made.names}
            self._scalars[key].set({"lam": lam, "beta": beta})

    def _number(self, pool: Pool, name: str) -> Tensor:
        return self._numbers[wide(pool.dtype), pool.device, name]

    def _key(self) -> tuple[Any, ...]:
        """Whatever a capture bakes in."""
        assert self._good is not None
        assert self._finite is not None
        tensors = [self._good, self._finite, *(one for held in self._scalars.values() for one in held.tensors())]
        for pool in self.pools:
            tensors += pool.buffers
            for member in pool.members:
                side = member.side
                tensors += [one for one in (side.value, side.momentum, side.kept) if one is not None]
        return places(tensors), torch.backends.cuda.matmul.allow_tf32

    # -- the work ------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Everything behind the loading; a graph may record it."""
        with precision(self.options.products):
            targets = [one for pool in self.pools for one in pool.targets]
            if targets:
                torch._foreach_copy_(targets, [one for pool in self.pools for one in pool.sources])
            self._check()
            for part, partners in self._clusters:
                self._move(part, partners)
                for pool in part:
                    if not pool.padded:
                        pool.sums = None

    def _check(self) -> None:
        """What is not finite anywhere has a norm that is not."""
        assert self._good is not None
        assert self._finite is not None
        everything = [pool.sums for pool in self.pools if pool.sums is not None]
        probes = [one.to(self._good.device, torch.float32) for one in torch._foreach_norm(everything, 1)]
        self._finite.copy_(torch.stack(probes).isfinite().all())
        self._good.logical_and_(self._finite)

    def _move(self, part: list[Pool], partners: Tensor) -> None:
        opt = self.options
        half = 0.5 * (1 - opt.alpha1 if opt.normalize_lr_cov else 1.0)
        inner, gram = [], []
        for pool in part:
            assert pool.sums is not None
            inner.append(pool.kind.inner(pool.value, pool.sums))
            gram.append(pool.kind.gram(pool.value))
        weights = self._weights(part, partners, inner, gram, half)
        for i, pool in enumerate(part):
            of_inner, of_gram = weights[i]
            new = inner[i] * of_inner
            new.addcmul_(gram[i], of_gram)
            pool.kind.add_identity(new, -half)
            if pool.momentum is not None:
                new.add_(pool.momentum, alpha=opt.alpha1)
            inner[i] = gram[i] = new
            self._write(pool, new)

    def _weights(
        self, part: list[Pool], partners: Tensor, inner: list[Tensor], gram: list[Tensor], half: float
    ) -> list[tuple[Tensor, Tensor]]:
        """Half tr(H) / d and half lam tr(N) / d of the other factor of each matrix: (B, 1), or (1, 1)."""
        if self.options.kfac_like:
            found = []
            for pool in part:
                lam = self._number(pool, "lam")
                found.append((torch.full_like(lam, half), lam * half))
            return found
        traces = []
        for pool, h, n in zip(part, inner, gram, strict=True):
            traces.append(torch.stack([pool.kind.trace(h), pool.kind.trace(n)]).mul_(self._share(pool, half)))
        every = (traces[0] if len(part) == 1 else torch.cat(traces, 1)).index_select(1, partners).unsqueeze(2)
        found = []
        for pool, own in zip(part, split(every, [pool.rows for pool in part], 1), strict=True):
            first, second = own.to(wide(pool.dtype)).unbind()
            found.append((first, second * self._number(pool, "lam")))
        return found

    def _share(self, pool: Pool, half: float) -> Tensor:
        """Half over the size of each matrix."""
        if pool.share is None:
            pool.share = half / pool.sizes
        return pool.share

    def _write(self, pool: Pool, new: Tensor) -> None:
        """K - beta K m and m to where they belong, unless the batch was not finite."""
        beta, kind, good = self._number(pool, "beta"), pool.value.dtype, self._good
        assert good is not None
        good = good.to(pool.device)
        if self.options.normalize_lr_cov:
            beta = beta / new.abs().amax(1, keepdim=True).clamp_min(1.0)
        new = new.to(kind)
        moved = torch.addcmul(pool.value, pool.kind.compose(pool.value, new), beta, value=-1)
        torch.where(good, moved.to(kind), pool.value, out=pool.value)
        if pool.momentum is not None:
            torch.where(good, new, pool.momentum, out=pool.momentum)
        if pool.back:
            torch._foreach_copy_([there for there, _ in pool.back], [here for _, here in pool.back])
        if self._whole:
            _keep(pool)


def _keep(pool: Pool) -> None:
    there, here = pool.keep()
    if there:
        torch._foreach_copy_(there, here)
