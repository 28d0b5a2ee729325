"""Training of one dictionary, whatever its kind: centring, scaling, shuffled epochs, Adam, history.

The inputs are centred (the ratio |mean| / std predicts dead features) and scaled by one scalar so that E|x|^2 = d
(Templeton et al. 2024); the kind's learner then sees x' = s (x - mean). On return both are folded back:
with z' = W_e (x' - b_d') + b_e' the dictionary

    b_e = b_e' / s,    b_d = mean + b_d' / s,    W_e, W_d unchanged

has f = f' / s and x_hat = mean + x_hat' / s exactly, because ReLU and the choice of the k largest commute with a positive
factor. Adam: Kingma & Ba 2015, arXiv:1412.6980.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..engine.arrays import namespace, to_host
from ..errors import NumericalError
from .dictionary import Dictionary, kernels_for
from .record import SaeSection, Tick

BETA1, BETA2, EPSILON = 0.9, 0.999, 6.25e-10
DECAY = 0.2  # share of the steps over which the learning rate falls to zero


@dataclass
class Parameters:
    """Arrays of a dictionary being trained, or gradients by them: encoder, decoder (F, d); biases (F,), (d,)."""

    encoder: np.ndarray
    decoder: np.ndarray
    encoder_bias: np.ndarray
    decoder_bias: np.ndarray


@dataclass(frozen=True)
class History:
    """Per step: loss per component of the scaled input, mean number of active features, share of dead ones; (steps,)."""

    loss: np.ndarray
    l0: np.ndarray
    dead_fraction: np.ndarray


class Learner(Protocol):
    """A dictionary in training, on centred and scaled inputs."""

    k: int  # active features per input, 0 if that is not fixed
    unit_decoder: bool
    parameters: Parameters

    def gradients(
        self, x: np.ndarray, progress: float, dead: np.ndarray
    ) -> tuple[float, Parameters, np.ndarray]:
        """Loss per component, its gradients, how often each feature fires (F,) on ``x`` (n, d); ``dead`` (F,) mask.

        ``progress`` is the share of the steps done, for schedules. Only the direction and relative size of the gradients
        matter to Adam.
        """

    def finished(self) -> Parameters:
        """The parameters in the convention z = W_e (x - b_d) + b_e."""


class Adam:
    """Adam over the four arrays of a dictionary, in place; decoder rows stay on the unit sphere if asked for."""

    def __init__(self, parameters: Parameters, unit_decoder: bool) -> None:
        self.unit_decoder = unit_decoder
        zeros = namespace(parameters.encoder).zeros_like
        self.moments = {name: (zeros(p), zeros(p)) for name, p in vars(parameters).items()}
        self.steps = 0

    def update(self, parameters: Parameters, gradients: Parameters, learning_rate: float) -> None:
        """One step against ``gradients``."""
        adam = kernels_for(parameters.encoder).adam
        self.steps += 1
        correction = np.sqrt(1 - BETA2**self.steps)
        rate, epsilon = learning_rate * correction / (1 - BETA1**self.steps), EPSILON * correction
        for name, parameter in vars(parameters).items():
            arrays = (parameter, getattr(gradients, name), *self.moments[name])
            p, g, m, v = (array.reshape(-1, array.shape[-1]) for array in arrays)
            adam(p, g, m, v, rate, epsilon, BETA1, BETA2, unit=self.unit_decoder and name == "decoder")


def train(record: SaeSection, x: np.ndarray, seed: int, tick: Tick) -> tuple[Dictionary, History]:
    """Train one dictionary of the kind of ``record`` on the rows of ``x`` (n, d) float32, where they are; ``tick`` is called
    every step.

    The same record, inputs, seed and number of threads give the same bits. Raises NumericalError when the inputs are
    empty, constant or not finite, or when training diverges.
    """
    mean, scale = normalisation(x)
    generator = np.random.default_rng([seed, 0])
    batches = _batches(x, mean, scale, min(record.batch, len(x)), seed)
    learner = record.learner(generator, next(batches))
    optimiser = Adam(learner.parameters, learner.unit_decoder)
    xp = namespace(x)
    idle = xp.zeros(record.features, np.int64)
    history = np.empty((3, record.steps))
    for step, batch in zip(range(record.steps), batches, strict=False):
        dead = idle >= record.dead_after
        with np.errstate(over="ignore", invalid="ignore"):  # shows in the loss
            loss, gradients, counts = learner.gradients(batch, step / record.steps, dead)
        if not np.isfinite(loss):
            raise _diverged(record, step)
        rate = record.learning_rate * min(1.0, (record.steps - step) / (DECAY * record.steps))
        optimiser.update(learner.parameters, gradients, rate)
        idle = xp.where(counts > 0, 0, idle + len(batch))
        history[:, step] = loss, int(counts.sum()) / len(batch), float((idle >= record.dead_after).mean())
        tick(
            step + 1,
            record.steps,
            f"loss {loss:.4g}, {history[1, step]:.1f} active, {history[2, step]:.0%} dead",
        )
    if not all(xp.isfinite(array).all() for array in vars(learner.parameters).values()):
        raise _diverged(record, record.steps)
    return fold(learner.finished(), record.kind, learner.k, mean, scale), History(*history)


def unit_rows(generator: np.random.Generator, n_rows: int, width: int) -> np.ndarray:
    """Independent directions, uniform on the sphere: (n_rows, width) float32."""
    rows = generator.standard_normal((n_rows, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def normalisation(x: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean (d,) float64 of the rows of ``x`` (n, d) and the factor s that makes E|s (x - mean)|^2 = d."""
    if x.size == 0:
        raise NumericalError(
            "no activations to train a dictionary on: raise samples.count or its training share"
        )
    mean = x.mean(axis=0, dtype=np.float64)
    block = max(1, 2**20 // x.shape[1])
    variance = sum(float(((x[a : a + block] - mean) ** 2).sum()) for a in range(0, len(x), block)) / len(x)
    if not np.isfinite(variance):
        raise NumericalError(
            "the activations are not finite: the network has diverged; look at the ground state first"
        )
    mean = to_host(mean)
    rounding = np.finfo(np.float32).eps ** 2 * float(mean @ mean)
    if variance <= rounding:
        raise NumericalError(
            "the activations are the same for every input: there is nothing for a dictionary to learn; "
            "leave this layer out of activations.layers, or train the network further"
        )
    return mean, float(np.sqrt(x.shape[1] / variance))


def fold(parameters: Parameters, kind: str, k: int, mean: np.ndarray, scale: float) -> Dictionary:
    """The dictionary on raw inputs that does what ``parameters`` do on ``scale`` (x - ``mean``), in units of raw inputs.

    Its arrays are on the host.
    """
    return Dictionary(
        kind,
        k,
        to_host(parameters.encoder).astype(np.float32),
        to_host(parameters.decoder).astype(np.float32),
        (to_host(parameters.encoder_bias) / scale).astype(np.float32),
        (mean + to_host(parameters.decoder_bias) / scale).astype(np.float32),
    )


def _batches(x: np.ndarray, mean: np.ndarray, scale: float, size: int, seed: int) -> Iterator[np.ndarray]:
    """Centred, scaled batches (size, d) float32, without end: epoch after epoch, each in its own seeded order."""
    xp = namespace(x)
    shift, factor = xp.asarray(mean.astype(np.float32)), np.float32(scale)
    epoch = 0
    while True:
        epoch += 1
        order = xp.asarray(np.random.default_rng([seed, epoch]).permutation(len(x)))
        for first in range(0, len(x) - size + 1, size):
            yield (x[order[first : first + size]] - shift) * factor


def _diverged(record: SaeSection, step: int) -> NumericalError:
    return NumericalError(
        f"the dictionary diverged at step {step}: lower sae.learning_rate (now {record.learning_rate:g})"
    )
