"""Counter-based random integers: the same bits on every device, for any batch split, from any position.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), written in
int64 tensor operations. A word is an int64 in [0, 2³²). No product passes 2⁴⁸, so nothing depends on how a device
treats overflow. The key is the 64-bit seed; the counter is (index low, index high, epoch, stream).
"""

from __future__ import annotations

import math

import torch

#: Constants of Philox4x32-10 (Salmon et al. 2011, section 3.3 and Random123's reference implementation).
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MASK = 0xFFFFFFFF

#: Streams: one number per use, so that two uses never share bits.
ORDER, AUGMENT, OFFSET, NOISE, SPLIT, SYNTHETIC, FLIP = range(7)

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _multiply(word: torch.Tensor, constant: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of ``word * constant`` through two products under 2⁴⁸."""
    low = word * (constant & 0xFFFF)
    upper = word * (constant >> 16) + (low >> 16)
    return upper >> 16, ((upper & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Philox4x32-10: four words per counter.

    Args:
        counter: four int64 tensors of one shape, values in [0, 2³²).
        key: two words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _multiply(c0, MULTIPLIERS[0])
        high1, low1 = _multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def uniform_bits(seed: int, stream: int, epoch: int, index: torch.Tensor) -> torch.Tensor:
    """Four independent 32-bit words per index.

    Args:
        seed: any integer, taken modulo 2⁶⁴.
        stream: one of the streams of this module.
        epoch: pass over the data, taken modulo 2³².
        index: int64, not negative, shape [...].

    Returns:
        int64 in [0, 2³²), shape [..., 4].
    """
    counter = (index & MASK, index >> 32, torch.full_like(index, epoch & MASK), torch.full_like(index, stream & MASK))
    return torch.stack(philox(counter, (seed & MASK, (seed >> 32) & MASK)), dim=-1)


def below(words: torch.Tensor, bound: int) -> torch.Tensor:
    """Integers in [0, bound) from 32-bit words by the multiply-shift map; bias under ``bound / 2³²``.

    Raises:
        ValueError: a bound outside 1 to 2³¹.
    """
    if not 1 <= bound <= 1 << 31:
        raise ValueError(f"expected a bound in [1, 2^31], got {bound}")
    return (words * bound) >> 32


def unit(words: torch.Tensor) -> torch.Tensor:
    """float32 in (0, 1), exact on every device: ``(top 23 bits + ½) / 2²³``."""
    return ((words >> 9).to(torch.float32) + 0.5) * 2.0**-23


def normal(seed: int, stream: int, count: int, device: torch.device | str) -> torch.Tensor:
    """``count`` float32 standard normals (Box and Muller 1958); equal over devices up to rounding."""
    words = uniform_bits(seed, stream, 0, torch.arange(-(-count // 4), device=device))
    radius = (-2.0 * unit(words[:, :2]).log()).sqrt()
    angle = 2.0 * math.pi * unit(words[:, 2:])
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1).flatten()[:count]


def permutation(seed: int, epoch: int, size: int, device: torch.device | str, stream: int = ORDER) -> torch.Tensor:
    """Order of the epoch's ``size`` samples: stable argsort of 63-bit words, ties broken by index.

    Returns:
        int64, shape [size], on ``device``.
    """
    words = uniform_bits(seed, stream, epoch, torch.arange(size, device=device))
    return torch.argsort(((words[:, 0] >> 1) << 32) | words[:, 1], stable=True)
