"""Gated dictionaries: whether a feature is active, and how much, are two questions (Rajamanoharan et al. 2024,
arXiv:2404.16014, section 3.2).

    g = W x + b_g,   m = e^r W x + b_m,   f = 1[g > 0] ReLU(m),   x_hat = W_d^T f + b_d
    L = E[ |x - x_hat|^2 + lambda sum_i ReLU(g_i) + |x - (W_d^T ReLU(g) + b_d)|^2 ],   W_d, b_d detached in the last term

on centred inputs scaled to E|x|^2 = d, with unit decoder rows. Only the gate pays the penalty, so that what it shrinks is not
the activation; only the last term teaches the gate what it opens for, and it must not shape the decoder. lambda grows linearly
over the first 5 % of the steps. The gate is a threshold (appendix E there): W_e = e^r W and m > theta = b_m - e^r b_g.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from ..engine.arrays import namespace
from ..engine.ranks import ALONE, Ranks
from .dense import WARM_UP, bias_in_convention, row_blocks, tied_length, unit_update
from .record import SaeSection
from .training import Adam, Parameters, Thresholded, unit_rows


class Gated(SaeSection):
    """``[sae] kind = "gated"``: a gate that pays for being open, and a magnitude that does not."""

    thresholds = True

    kind: Literal["gated"] = Field(description="gate with an L1 penalty, magnitude without one")
    l1: float = Field(
        1.0, ge=0, le=1e6, description="penalty lambda on the gate, for inputs scaled to E|x|^2 = width"
    )

    def learner(
        self, generator: np.random.Generator, sample: np.ndarray, ranks: Ranks = ALONE
    ) -> GatedLearner:
        """A tied dictionary with open gates wherever there is something to see, for inputs like ``sample`` (n, d)."""
        return GatedLearner(self, generator, sample, ranks)


@dataclass
class GatedParameters(Parameters):
    """``encoder`` is W, ``encoder_bias`` b_m; gate_bias b_g and log_scale r (F,)."""

    gate_bias: np.ndarray
    log_scale: np.ndarray


class GatedLearner:
    """A gated dictionary in training."""

    def __init__(
        self, record: Gated, generator: np.random.Generator, sample: np.ndarray, ranks: Ranks = ALONE
    ) -> None:
        self.l1, self.ranks, xp, width = record.l1, ranks, namespace(sample), sample.shape[1]
        own = ranks.share(record.features)
        decoder = xp.asarray(unit_rows(generator, own.stop, width, own.start))
        encoder = decoder * tied_length(decoder, sample, ranks)
        none = [xp.zeros(len(decoder), np.float32) for _ in range(3)]
        self.parameters = GatedParameters(encoder, decoder, none[0], xp.zeros(width, np.float32), *none[1:])

    def step(
        self, x: np.ndarray, progress: float, dead: np.ndarray, adam: Adam, learning_rate: float
    ) -> tuple[float, np.ndarray]:
        """See ``training.Learner``; this kind does nothing about dead features."""
        penalty = self.l1 * min(1.0, progress / WARM_UP)
        losses, gradients, counts = gated_gradients(self.parameters, x, penalty, self.ranks)
        loss = sum(losses.values())
        if np.isfinite(loss):
            unit_update(self.parameters, gradients, adam, learning_rate)
        return loss / x.shape[1], counts

    def finished(self, batches: Iterable[np.ndarray] = ()) -> Thresholded:
        """See ``training.Learner``."""
        p = self.parameters
        xp, scale = namespace(p.encoder), namespace(p.encoder).exp(p.log_scale)
        encoder = scale[:, None] * p.encoder
        bias = bias_in_convention(encoder, p.encoder_bias, p.decoder_bias)
        threshold = xp.maximum(p.encoder_bias - scale * p.gate_bias, 0)
        return Thresholded(encoder, p.decoder, bias, p.decoder_bias, threshold)


def gated_gradients(
    parameters: GatedParameters, x: np.ndarray, l1: float, ranks: Ranks = ALONE
) -> tuple[dict[str, float], GatedParameters, np.ndarray]:
    """The terms of L by name, its gradients, and how often each feature fires (F,), for ``x`` (n, d), any precision.

    No gradient passes through a closed gate, nor through m <= 0. Where ``ranks`` share the features, gradients and counts are
    those of this rank's; only the two reconstructions are summed over the ranks.
    """
    p, xp = parameters, namespace(x)
    losses = dict.fromkeys(("reconstruction", "sparsity", "auxiliary"), 0.0)
    gradients = GatedParameters(*(xp.zeros_like(array) for array in vars(p).values()))
    scale, counts = xp.exp(p.log_scale), xp.zeros(len(p.encoder), np.int64)
    for rows in row_blocks(x, len(p.encoder), ranks):
        y = rows @ p.encoder.T
        gate = xp.maximum(y + p.gate_bias, 0)
        magnitude = xp.maximum(scale * y + p.encoder_bias, 0)
        f = xp.where(gate > 0, magnitude, magnitude.dtype.type(0))
        active = f > 0
        error = rows - (ranks.sum(f @ p.decoder) + p.decoder_bias)
        error_of_gate = rows - (ranks.sum(gate @ p.decoder) + p.decoder_bias)
        losses["reconstruction"] += float((error**2).sum(dtype=np.float64)) / len(x)
        losses["auxiliary"] += float((error_of_gate**2).sum(dtype=np.float64)) / len(x)
        losses["sparsity"] += l1 / len(x) * float(gate.sum(dtype=np.float64))
        pull, pull_of_gate = error * (-2 / len(x)), error_of_gate * (-2 / len(x))
        by_magnitude = (pull @ p.decoder.T) * active
        by_gate = (pull_of_gate @ p.decoder.T + l1 / len(x)) * (gate > 0)
        gradients.encoder += (scale * by_magnitude + by_gate).T @ rows
        gradients.decoder += f.T @ pull
        gradients.encoder_bias += by_magnitude.sum(axis=0)
        gradients.decoder_bias += pull.sum(axis=0)
        gradients.gate_bias += by_gate.sum(axis=0)
        gradients.log_scale += (by_magnitude * y).sum(axis=0) * scale
        counts += active.sum(axis=0)
    losses["sparsity"] = float(ranks.sum(np.asarray([losses["sparsity"]]))[0])
    return losses, gradients, counts
