"""Counter-based random numbers: Philox4x32-10 (Salmon et al., SC11, doi:10.1145/2063384.2063405).

A random word is a pure function of a key (seed, stream) and a counter (step, chain, draw): nothing has to be stored in a
checkpoint, chains can be computed in any order, and a GPU produces the very same words.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from .arrays import namespace

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


class Stream(IntEnum):
    """Independent streams of one seed: what the random numbers are used for."""

    CHAINS = 0
    TRAINING = 1
    FINAL_ENERGY = 2
    SAMPLES = 3
    STEERING = 4
    RECONSTRUCTION = 5
    DYNAMICS = 6
    DYNAMICS_MEASUREMENT = 7
    CHECK = 8
    TRANSFER = 9


def philox(counter, key: tuple[int, int]):
    """Ten rounds of Philox4x32 on every counter.

    ``counter``: uint32 array (..., 4); ``key``: two 32-bit integers. Returns uint32 words (..., 4). Works on NumPy and CuPy.
    """
    xp = namespace(counter)
    c0, c1, c2, c3 = (counter[..., i].astype(xp.uint64) for i in range(4))
    k0, k1 = (int(k) & 0xFFFFFFFF for k in key)
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return xp.stack([c0, c1, c2, c3], axis=-1).astype(xp.uint32)


def words(
    seed: int,
    stream: Stream,
    step: int,
    rows: int,
    chains: int,
    xp=np,
    start: int = 0,
    first_row: int = 0,
):
    """Random words (rows, chains, 4), uint32, of one step, for chains counted from ``start`` and rows from ``first_row`` on.

    The counter is (row, chain, step low, step high), the key (seed, stream).
    """
    counter = xp.empty((rows, chains, 4), dtype=xp.uint32)
    counter[..., 0] = xp.arange(first_row, first_row + rows, dtype=xp.uint32)[:, None]
    counter[..., 1] = xp.arange(start, start + chains, dtype=xp.uint32)
    counter[..., 2] = step & 0xFFFFFFFF
    counter[..., 3] = step >> 32
    return philox(counter, (seed, int(stream)))


def uniform(high, low):
    """Doubles in (0, 1] from two words: 53 random bits, never 0 so that the logarithm is finite."""
    xp = namespace(high)
    bits = (high.astype(xp.uint64) << np.uint64(21)) ^ (low.astype(xp.uint64) >> np.uint64(11))
    return (bits.astype(xp.float64) + 0.5) * 2.0**-53


def below(word, n: int):
    """Integers in [0, n) from one word, by multiplication (bias below n / 2^32)."""
    xp = namespace(word)
    return ((word.astype(xp.uint64) * np.uint64(n)) >> _SHIFT).astype(xp.int64)
