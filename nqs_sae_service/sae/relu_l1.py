"""ReLU dictionaries with the L1 penalty of Scaling Monosemanticity (Templeton et al. 2024, "Sparse Autoencoder").

    f = ReLU(W_e x + b_e),   x_hat = W_d^T f + b_d,   L = E[ |x - x_hat|^2 + lambda sum_i f_i |d_i| ]

on centred inputs scaled to E|x|^2 = d. There is no constraint on lengths: the effective activation is f_i |d_i|. lambda grows
linearly over the first 5 % of the steps. Near its optimum the penalty shrinks every effective activation by lambda / 2, while
the inputs have length sqrt(d): the published lambda = 5 belongs to widths of thousands, narrow networks want less.

Many features are active early on, so the step is dense (``dense.py``): five matrix products, 10 n F d operations.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from pydantic import Field

from ..engine.arrays import namespace
from ..engine.ranks import ALONE, Ranks
from .dense import WARM_UP, bias_in_convention, row_blocks
from .record import SaeSection
from .training import Adam, Parameters, unit_rows

DECODER_LENGTH = 0.1  # of the rows at the start


class ReluL1(SaeSection):
    """``[sae] kind = "relu-l1"``: as many active features as the penalty lets through."""

    kind: Literal["relu-l1"] = Field(description="ReLU with an L1 penalty weighted by decoder length")
    l1: float = Field(
        5.0,
        ge=0,
        le=1e6,
        description="penalty lambda, for inputs scaled to E|x|^2 = width (about 1 suits a width of 32)",
    )

    def learner(
        self, generator: np.random.Generator, sample: np.ndarray, ranks: Ranks = ALONE
    ) -> ReluL1Learner:
        """A tied dictionary with short decoder rows, for inputs like ``sample`` (n, d)."""
        return ReluL1Learner(self, generator, sample, ranks)


class ReluL1Learner:
    """A ReLU dictionary in training."""

    def __init__(
        self, record: ReluL1, generator: np.random.Generator, sample: np.ndarray, ranks: Ranks = ALONE
    ) -> None:
        self.l1, self.ranks, xp, width = record.l1, ranks, namespace(sample), sample.shape[1]
        own = ranks.share(record.features)
        decoder = xp.asarray(np.float32(DECODER_LENGTH) * unit_rows(generator, own.stop, width, own.start))
        no_bias = xp.zeros(len(decoder), np.float32)
        self.parameters = Parameters(decoder.copy(), decoder, no_bias, xp.zeros(width, np.float32))

    def step(
        self, x: np.ndarray, progress: float, dead: np.ndarray, adam: Adam, learning_rate: float
    ) -> tuple[float, np.ndarray]:
        """See ``training.Learner``; this kind does nothing about dead features."""
        loss, gradients, counts = relu_l1_gradients(
            self.parameters, x, self.l1 * min(1.0, progress / WARM_UP), self.ranks
        )
        if np.isfinite(loss):
            adam.update(self.parameters, gradients, learning_rate)
        return loss / x.shape[1], counts

    def finished(self, batches: Iterable[np.ndarray] = ()) -> Parameters:
        """See ``training.Learner``."""
        p = self.parameters
        bias = bias_in_convention(p.encoder, p.encoder_bias, p.decoder_bias)
        return Parameters(p.encoder, p.decoder, bias, p.decoder_bias)


def relu_l1_gradients(
    parameters: Parameters, x: np.ndarray, l1: float, ranks: Ranks = ALONE
) -> tuple[float, Parameters, np.ndarray]:
    """L of the module's formula, its gradients, and how often each feature fires (F,), for ``x`` (n, d), any precision.

    L has kinks: at z = 0 the derivative of the inactive side is taken, at |d_i| = 0 zero. Where ``ranks`` share the features,
    gradients and counts are those of this rank's; only the reconstructions are summed over the ranks.
    """
    p = parameters
    xp = namespace(x)
    lengths = xp.linalg.norm(p.decoder, axis=1)
    loss, counts, total_f = 0.0, xp.zeros(len(lengths), np.int64), xp.zeros_like(lengths)
    gradients = Parameters(*(xp.zeros_like(array) for array in vars(p).values()))
    for rows in row_blocks(x, len(lengths), ranks):
        f = xp.maximum(rows @ p.encoder.T + p.encoder_bias, 0)
        error = rows - (ranks.sum(f @ p.decoder) + p.decoder_bias)
        loss += float((error**2).sum(dtype=np.float64)) / len(x)
        active, g = f > 0, error * (-2 / len(x))
        delta = (g @ p.decoder.T + lengths * (l1 / len(x))) * active
        gradients.encoder += delta.T @ rows
        gradients.decoder += f.T @ g
        gradients.encoder_bias += delta.sum(axis=0)
        gradients.decoder_bias += g.sum(axis=0)
        total_f += f.sum(axis=0)
        counts += active.sum(axis=0)
    weight = l1 / max(len(x), 1) * total_f
    loss += float(ranks.sum((weight @ lengths).reshape(1))[0])
    divisor = xp.where(lengths > 0, lengths, lengths.dtype.type(1))
    gradients.decoder += (weight / divisor)[:, None] * p.decoder
    return loss, gradients, counts
