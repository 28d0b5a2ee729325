"""JumpReLU dictionaries: every feature learns the threshold that it must exceed (Rajamanoharan et al. 2024,
arXiv:2407.14435, section 3).

    z = W_e x + b_e,   f = z 1[z > theta],   theta = e^t,   x_hat = W_d^T f + b_d
    L = E[ |x - x_hat|^2 + lambda sum_i 1[z_i > theta_i] ]

on centred inputs scaled to E|x|^2 = d, with unit decoder rows. Almost everywhere L does not depend on theta; its mean does,
through the inputs near the step. They are those with |z - theta| < eps / 2, a rectangular kernel (eqs. 11 and 12 there):

    dL/dtheta_i = E[ -1/eps 1[|z_i - theta_i| < eps / 2] (lambda + theta_i d_i . dL/dx_hat) ]

The step sees z itself, never ReLU(z), whose zeros would all lie at theta = 0. eps is a share of the root mean square of z in
the batch: a window that is small on the scale of z is empty, and its thresholds stay where they are. lambda grows linearly over
the first 5 % of the steps. A feature is worth its penalty where f^2 > lambda, roughly.
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

FIRST_THRESHOLD = 0.5  # times the root mean square of z


class JumpRelu(SaeSection):
    """``[sae] kind = "jumprelu"``: thresholds that are learnt, and a penalty on the number of active features."""

    thresholds = True

    kind: Literal["jumprelu"] = Field(description="learnt thresholds, penalty on the number of features")
    l0: float = Field(
        1.0, ge=0, le=1e6, description="penalty lambda per feature, for inputs scaled to E|x|^2 = width"
    )
    bandwidth: float = Field(
        0.2, gt=0, le=10, description="window at the threshold, in root mean squares of the pre-activations"
    )

    def learner(
        self, generator: np.random.Generator, sample: np.ndarray, ranks: Ranks = ALONE
    ) -> JumpReluLearner:
        """A tied dictionary with thresholds on the scale of its pre-activations of ``sample`` (n, d)."""
        return JumpReluLearner(self, generator, sample, ranks)


@dataclass
class JumpReluParameters(Parameters):
    """``log_threshold`` t (F,)."""

    log_threshold: np.ndarray


class JumpReluLearner:
    """A JumpReLU dictionary in training."""

    def __init__(
        self, record: JumpRelu, generator: np.random.Generator, sample: np.ndarray, ranks: Ranks = ALONE
    ) -> None:
        self.l0, self.bandwidth, self.ranks = record.l0, record.bandwidth, ranks
        xp, width, own = namespace(sample), sample.shape[1], ranks.share(record.features)
        decoder = xp.asarray(unit_rows(generator, own.stop, width, own.start))
        encoder = decoder * tied_length(decoder, sample, ranks)
        bias, decoder_bias = xp.zeros(len(decoder), np.float32), xp.zeros(width, np.float32)
        first = np.log(FIRST_THRESHOLD * scale_of_z(encoder, bias, sample, ranks))
        thresholds = xp.full(len(decoder), np.float32(first), np.float32)
        self.parameters = JumpReluParameters(encoder, decoder, bias, decoder_bias, thresholds)

    def step(
        self, x: np.ndarray, progress: float, dead: np.ndarray, adam: Adam, learning_rate: float
    ) -> tuple[float, np.ndarray]:
        """See ``training.Learner``; this kind does nothing about dead features."""
        p, penalty = self.parameters, self.l0 * min(1.0, progress / WARM_UP)
        width = self.bandwidth * scale_of_z(p.encoder, p.encoder_bias, x, self.ranks)
        losses, gradients, counts = jumprelu_gradients(p, x, penalty, width, self.ranks)
        loss = sum(losses.values())
        if np.isfinite(loss):
            unit_update(p, gradients, adam, learning_rate)
        return loss / x.shape[1], counts

    def finished(self, batches: Iterable[np.ndarray] = ()) -> Thresholded:
        """See ``training.Learner``."""
        p = self.parameters
        bias = bias_in_convention(p.encoder, p.encoder_bias, p.decoder_bias)
        return Thresholded(
            p.encoder, p.decoder, bias, p.decoder_bias, namespace(p.encoder).exp(p.log_threshold)
        )


def scale_of_z(encoder: np.ndarray, encoder_bias: np.ndarray, x: np.ndarray, ranks: Ranks = ALONE) -> float:
    """Root mean square of z = W_e x + b_e over inputs (n, d) and the features of all ``ranks``, without making z.

    From the moments of x: sum_i w_i <x x^T> w_i + 2 b_i w_i <x> + b_i^2; 2 n d^2 + 2 F d^2 operations. 1 where z vanishes.
    """
    n = max(len(x), 1)
    along = encoder @ x.mean(axis=0) if len(x) else encoder_bias
    square = float(((encoder @ (x.T @ x)) * encoder).sum()) / n
    square += float((encoder_bias * (2 * along + encoder_bias)).sum())
    square, count = ranks.sum(np.asarray([square, float(len(encoder))]))
    return float(np.sqrt(square / count)) if square > 0 else 1.0


def jumprelu_gradients(
    parameters: JumpReluParameters, x: np.ndarray, l0: float, bandwidth: float, ranks: Ranks = ALONE
) -> tuple[dict[str, float], JumpReluParameters, np.ndarray]:
    """The terms of L by name, its gradients, and how often each feature fires (F,), for ``x`` (n, d), any precision.

    The gradient by t is theta times that of the module's formula, with eps = ``bandwidth``; the others hold the step fixed.
    Where ``ranks`` share the features, gradients and counts are those of this rank's; only the reconstruction is summed over
    the ranks.
    """
    p, xp = parameters, namespace(x)
    losses = dict.fromkeys(("reconstruction", "sparsity"), 0.0)
    gradients = JumpReluParameters(*(xp.zeros_like(array) for array in vars(p).values()))
    theta, counts = xp.exp(p.log_threshold), xp.zeros(len(p.encoder), np.int64)
    for rows in row_blocks(x, len(p.encoder), ranks):
        z = rows @ p.encoder.T + p.encoder_bias
        active = z > theta
        f = xp.where(active, z, z.dtype.type(0))
        error = rows - (ranks.sum(f @ p.decoder) + p.decoder_bias)
        losses["reconstruction"] += float((error**2).sum(dtype=np.float64)) / len(x)
        pull = error * (-2 / len(x))
        by_f = pull @ p.decoder.T
        near = xp.abs(z - theta) < bandwidth / 2
        by_theta = -(near * (l0 / len(x) + theta * by_f)).sum(axis=0) / bandwidth
        delta = by_f * active
        gradients.encoder += delta.T @ rows
        gradients.decoder += f.T @ pull
        gradients.encoder_bias += delta.sum(axis=0)
        gradients.decoder_bias += pull.sum(axis=0)
        gradients.log_threshold += theta * by_theta
        counts += active.sum(axis=0)
    fired = float(ranks.sum(counts.sum(keepdims=True))[0])
    losses["sparsity"] = l0 * fired / max(len(x), 1)
    return losses, gradients, counts
