"""One number per Born sample for every feature: its mean activation over the tokens.

A dictionary with input "token" sees every token as a row x_t, and the activation of a sample is the mean of
f_i(x_t) over t; with input "pooled" its one row is the mean of the tokens. Activations are read and averaged
in blocks of samples, so that (all tokens x features) never exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Load = Callable[[NDArray[np.int64], slice], NDArray]
Average = Callable[[NDArray], NDArray]

BLOCK = 2**22  # rows x features treated at once: fixed, because block shapes can touch the last bit


@dataclass(frozen=True)
class Rows:
    """The rows of one layer on some chains, read on demand.

    ``load(chains, draws)`` returns (chain, draw, token, width) for an array of chain indices and a slice of
    draws. ``pooled`` averages the tokens before anything looks at them. ``tick`` is called after every block.
    """

    load: Load
    chains: NDArray[np.int64]
    n_draws: int
    n_tokens: int
    pooled: bool = False
    tick: Callable[[], object] = lambda: None

    def blocks(self, features: int) -> Iterator[tuple[slice, slice, NDArray]]:
        """Blocks (chains, draws, x (sample, row, width)) of about ``BLOCK`` rows x features each."""
        samples = max(1, BLOCK // (self.n_tokens * features))
        n_chains, n_draws = max(1, samples // self.n_draws), min(samples, self.n_draws)
        for first in range(0, len(self.chains), n_chains):
            chains = slice(first, first + n_chains)
            for draw in range(0, self.n_draws, n_draws):
                draws = slice(draw, min(draw + n_draws, self.n_draws))
                x = np.asarray(self.load(self.chains[chains], draws))
                x = x.reshape(-1, *x.shape[2:])
                yield chains, draws, x.mean(axis=1, keepdims=True) if self.pooled else x
                self.tick()


@dataclass(frozen=True)
class RowMoments:
    """Number, mean (width,) and covariance (width, width) of rows, in float64."""

    count: int
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


def per_sample(average: Average, rows: Rows, features: int) -> NDArray[np.float32]:
    """Activations of every sample, (chain, draw, features) float32.

    ``average`` maps x (sample, row, width) to the mean activations over the rows, (sample, features).
    """
    f = np.empty((len(rows.chains), rows.n_draws, features), np.float32)
    for chains, draws, x in rows.blocks(features):
        block = f[chains, draws]
        block[...] = average(x).reshape(block.shape)
    return f


def row_moments(rows: Rows, width: int) -> RowMoments:
    """Moments of all rows, accumulated about the mean of the first block (no cancellation)."""
    total, square, count = np.zeros(width), np.zeros((width, width)), 0
    origin = np.zeros(width)
    for _, _, x in rows.blocks(width):
        block = x.reshape(-1, width).astype(np.float64)
        origin = origin if count else block.mean(axis=0)
        block -= origin
        total += block.sum(axis=0)
        square += block.T @ block
        count += len(block)
    mean = total / count
    return RowMoments(count, origin + mean, square / count - np.outer(mean, mean))


def pooled_moments(parts: Sequence[RowMoments]) -> RowMoments:
    """Moments of the rows of all parts together."""
    count = sum(part.count for part in parts)
    mean = sum(part.count / count * part.mean for part in parts)
    covariance = sum(
        part.count / count * (part.covariance + np.outer(part.mean - mean, part.mean - mean))
        for part in parts
    )
    return RowMoments(count, np.asarray(mean), np.asarray(covariance))
