"""Metropolis proposals on a GPU, for any wave function: one kernel that draws a sweep, two around every call of log psi.

``propose`` makes all proposals of a row, ``decide`` accepts them in place: 2 chains sites bytes each, against dozens of
bytes and ten launches a site for the same in array operations. Nothing is fetched from the device until the last row is
done, so that launches queue up behind each other; what remains is the latency of the network's own launches. A network that
can make the whole walk in one kernel (``states.fused.Walks``) is asked first.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..engine.arrays import namespace
from ..engine.cuda import Kernels
from ..states import LogPsi

Array = Any

_KERNELS = Kernels(Path(__file__).with_suffix(".cu"))
_THREADS = 256
_LANES = 32


def proposals(
    xp: ModuleType,
    key: tuple[int, int],
    step: int,
    rows: int,
    chains: int,
    sites: int,
    shares: tuple[float, float, float],
    pairs: Array,
    start: int = 0,
) -> tuple[Array, Array, Array]:
    """First site, length and log threshold (rows, chains) of a sweep, from one kernel instead of some 200.

    The very sites and lengths of ``metropolis.proposals`` of ``random.words``. ``key``: seed and stream; ``shares`` of the
    proposals that flip all spins, flip a stretch, and exchange one of the ``pairs`` (n_pairs, 2) int32 on the device;
    ``start``: number of the first chain.
    """
    shape = (rows, chains)
    first, length = xp.empty(shape, dtype=xp.int64), xp.empty(shape, dtype=xp.int64)
    threshold = xp.empty(shape, dtype=xp.float64)
    words = (np.uint32(word & 0xFFFFFFFF) for word in (*key, step, step >> 32))
    _KERNELS.launch(
        "proposals", -(-rows * chains // _THREADS), (_THREADS,), first, length, threshold, *words, rows, chains, start, sites,
        *map(np.float64, shares), pairs, len(pairs),
    )  # fmt: skip
    return first, length, threshold


def propose(sigma: Array, first: Array, length: Array, row: int) -> Array:
    """sigma (chains, n_sites) int8 after the proposals of a row, for every chain: ``metropolis.flipped_sites`` flipped."""
    proposed = namespace(sigma).empty_like(sigma)
    blocks = -(-sigma.size // _THREADS)
    _KERNELS.launch("propose", blocks, (_THREADS,), sigma, first, length, proposed, row, *sigma.shape)
    return proposed


def decide(
    sigma: Array,
    log_psi: Array,
    proposed: Array,
    log_proposed: Array,
    first: Array,
    length: Array,
    threshold: Array,
    accepted: Array,
    row: int,
) -> None:
    """Take the proposals where ``threshold[row]`` < 2 (log|psi'| - log|psi|), in place on sigma, log_psi and the counts.

    sigma, proposed (chains, n_sites) int8; log psi (chains,) float64 or complex128; threshold (rows, chains) float64; accepted
    (chains,) int32. Null moves, exchanges of equal spins by ``first`` and ``length`` (rows, chains), are passed over. A chain
    whose log psi' is NaN stays, and its log_psi becomes NaN.
    """
    chains, sites = sigma.shape
    now, new = (_as_doubles(values) for values in (log_psi, log_proposed))
    rows = _THREADS // _LANES
    _KERNELS.launch(
        "decide", -(-chains // rows), (_LANES, rows), sigma, now, proposed, new, first, length, threshold, accepted, row,
        chains, sites, now.size // max(chains, 1),
    )  # fmt: skip


def walk(psi: LogPsi, sigma: Array, log_psi: Array, first: Array, length: Array, threshold: Array) -> int:
    """``states.fused.Walks.walk`` for any wave function, on the device.

    Null moves are evaluated with the others, since a launch has all chains, but not looked at.
    """
    xp = namespace(sigma)
    accepted = xp.zeros(len(sigma), dtype=xp.int32)
    for row in range(len(threshold)):
        proposed = propose(sigma, first, length, row)
        decide(sigma, log_psi, proposed, psi.log_psi(proposed), first, length, threshold, accepted, row)
    return int(accepted.sum())


def _as_doubles(values: Array) -> Array:
    xp = namespace(values)
    return xp.ascontiguousarray(values).view(xp.float64)
