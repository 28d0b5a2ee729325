"""Training of dictionaries, whatever their kind: centring, scaling, shared batches, Adam, history.

The inputs are centred (the ratio |mean| / std predicts dead features) and scaled by one scalar so that E|x|^2 = d
(Templeton et al. 2024); the kind's learner then sees x' = s (x - mean). On return both are folded back:
with z' = W_e (x' - b_d') + b_e' the dictionary

    b_e = b_e' / s,    b_d = mean + b_d' / s,    W_e, W_d unchanged

has f = f' / s and x_hat = mean + x_hat' / s exactly, because ReLU, the choice of the k largest and a threshold
theta = theta' / s commute with a positive factor. Adam: Kingma & Ba 2015, arXiv:1412.6980.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..engine.arrays import namespace, to_host
from ..engine.devices import HOST, Device
from ..engine.ranks import ALONE, Ranks
from ..errors import NumericalError
from .dictionary import Dictionary, kernels_for
from .distributed import on_the_first
from .inputs import Batches, Held, Inputs
from .metrics import mean_and_variance
from .record import SaeSection, Tick

BETA1, BETA2, EPSILON = 0.9, 0.999, 6.25e-10
CALIBRATION = 16  # batches
DECAY = 0.2  # share of the steps over which the learning rate falls to zero


@dataclass
class Parameters:
    """Arrays of a dictionary being trained, or gradients by them: encoder, decoder (F, d); biases (F,), (d,)."""

    encoder: np.ndarray
    decoder: np.ndarray
    encoder_bias: np.ndarray
    decoder_bias: np.ndarray


@dataclass
class Thresholded(Parameters):
    """With what a pre-activation must exceed to be a feature: threshold (F,) >= 0."""

    threshold: np.ndarray


@dataclass(frozen=True)
class History:
    """Per step: loss per component of the scaled input, mean number of active features, share of dead ones; (steps,)."""

    loss: np.ndarray
    l0: np.ndarray
    dead_fraction: np.ndarray


class Learner(Protocol):
    """A dictionary in training, on centred and scaled inputs."""

    @property
    def parameters(self) -> Parameters:
        """What Adam moves, of this rank's features; more arrays than the four where the kind has them."""

    def step(
        self, x: np.ndarray, progress: float, dead: np.ndarray, adam: Adam, learning_rate: float
    ) -> tuple[float, np.ndarray]:
        """One step on ``x`` (n, d), ``dead`` (F,) mask: loss per component before it, and how often each feature fires (F,).

        ``progress`` is the share of the steps done, for schedules. Nothing changes when the loss is not finite.
        """

    def finished(self, batches: Iterable[np.ndarray]) -> Parameters:
        """The parameters in the convention z = W_e (x - b_d) + b_e, with thresholds where the kind has them.

        ``batches``: ``CALIBRATION`` further batches (n, d), read if asked for.
        """


class Adam:
    """Adam over the arrays of a dictionary: first and second moments, and the number of steps taken."""

    def __init__(self, parameters: Parameters) -> None:
        zeros = namespace(parameters.encoder).zeros_like
        self.moments = {name: (zeros(p), zeros(p)) for name, p in vars(parameters).items()}
        self.steps = 0

    def next(self, learning_rate: float) -> np.ndarray:
        """Begin a step: what ``rows.adam`` wants to know, (6,) float32, with the corrections of both biases."""
        self.steps += 1
        correction = np.sqrt(1 - BETA2**self.steps)
        rate, epsilon = learning_rate * correction / (1 - BETA1**self.steps), EPSILON * correction
        return np.array([rate, epsilon, BETA1, 1 - BETA1, BETA2, 1 - BETA2], np.float32)

    def update(self, parameters: Parameters, gradients: Parameters, learning_rate: float) -> None:
        """One step against ``gradients``."""
        adam_rows, constants = kernels_for(parameters.encoder).adam_rows, self.next(learning_rate)
        for name, parameter in vars(parameters).items():
            adam_rows(parameter, *self.moments[name], getattr(gradients, name), constants)


class _Trainee:
    """One dictionary in training, with everything that its next step depends on: of its features this rank's share."""

    def __init__(self, record: SaeSection, seed: int, sample: np.ndarray, ranks: Ranks) -> None:
        self.record, self.ranks = record, ranks
        self.learner = record.learner(np.random.default_rng([seed, 0]), sample, ranks)
        self.adam = Adam(self.learner.parameters)
        self.idle = namespace(sample).zeros(len(self.learner.parameters.encoder), np.int64)
        self.history = np.zeros((3, record.steps))

    def step(self, step: int, batch: np.ndarray) -> None:
        """Learn from a batch. Raises NumericalError when the loss is no longer finite."""
        record = self.record
        rate = record.learning_rate * min(1.0, (record.steps - step) / (DECAY * record.steps))
        with np.errstate(over="ignore", invalid="ignore"):  # shows in the loss
            loss, counts = self.learner.step(
                batch, step / record.steps, self.idle >= record.dead_after, self.adam, rate
            )
        if not np.isfinite(loss):
            raise _diverged(record, step)
        self.idle += len(batch)
        self.idle[counts > 0] = 0
        dead = int((self.idle >= record.dead_after).sum())
        active, dead = self.ranks.sum(np.asarray([int(counts.sum()), dead]))
        self.history[:, step] = loss, active / len(batch), dead / record.features

    def arrays(self) -> dict[str, np.ndarray]:
        """By name, all arrays that a step changes."""
        parameters = vars(self.learner.parameters)
        first = {f"first_moment_{name}": pair[0] for name, pair in self.adam.moments.items()}
        second = {f"second_moment_{name}": pair[1] for name, pair in self.adam.moments.items()}
        return {**parameters, **first, **second, "idle": self.idle, "history": self.history}

    def state(self) -> dict[str, np.ndarray]:
        """``arrays`` with the features of all ranks on rank 0; elsewhere without any."""
        arrays = {name: to_host(array) for name, array in self.arrays().items()}
        return {
            name: on_the_first(array, self.ranks) if _by_feature(name) else array
            for name, array in arrays.items()
        }

    def restore(self, steps: int, state: Mapping[str, np.ndarray]) -> None:
        """Continue after so many steps with a ``state`` of all features."""
        self.adam.steps, own = steps, self.ranks.share(self.record.features)
        for name, array in self.arrays().items():
            array[...] = namespace(array).asarray(state[name][own] if _by_feature(name) else state[name])


def _by_feature(name: str) -> bool:
    """Whether an array of a trainee has a row for every feature."""
    return not name.endswith(("decoder_bias", "covariance", "rotation", "history"))


class Training:
    """Dictionaries of one record, one per seed, in training on ``device`` on one pass over the same inputs.

    Batches are put together on the host and moved: 4 n d bytes a step for all dictionaries.
    None of them depends on the others. Raises NumericalError when the inputs are empty, constant or not finite, and from
    ``advance`` when one of them diverges. ``ranks`` that call everything alike share the features of every dictionary
    (``distributed.py``).
    """

    def __init__(
        self,
        record: SaeSection,
        inputs: Inputs,
        seeds: Sequence[int],
        device: Device = HOST,
        ranks: Ranks = ALONE,
    ) -> None:
        self.record, self.step, self.device, self.ranks = record, 0, device, ranks
        self.mean, self.scale = normalisation(inputs)
        self._batches = Batches(inputs, self.mean, self.scale, min(record.batch, inputs.n_rows))
        sample = device.put(self._batches.batch(0))
        self._trainees = [_Trainee(record, seed, sample, ranks) for seed in seeds]

    def advance(self) -> None:
        """One step of every dictionary, on the same batch."""
        batch = self.device.put(self._batches.batch(self.step))
        for trainee in self._trainees:
            trainee.step(self.step, batch)
        self.step += 1

    @property
    def message(self) -> str:
        """Where they stand, in a few words: means over the dictionaries."""
        histories = [trainee.history[:, self.step - 1] for trainee in self._trainees]
        loss, active, dead = np.mean(histories, axis=0)
        return f"loss {loss:.4g}, {active:.1f} active, {dead:.0%} dead"

    def state(self) -> dict[str, np.ndarray]:
        """Everything needed to continue with the same bits (references, not copies, where it is on the host).

        It is complete on rank 0, and the same for any number of ranks.
        """
        each = {
            f"{place}.{name}": array
            for place, trainee in enumerate(self._trainees)
            for name, array in trainee.state().items()
        }
        return {"step": np.asarray(self.step), **each}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from a ``state`` of the same record, inputs and seeds."""
        self.step = int(state["step"])
        for place, trainee in enumerate(self._trainees):
            prefix = f"{place}."
            own = {
                name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)
            }
            trainee.restore(self.step, own)

    def finished(self) -> list[tuple[Dictionary, History]]:
        """The dictionaries, in the order of the seeds, and how they got there."""
        result = []
        for trainee in self._trainees:
            learner = trainee.learner
            whole = gathered(learner.finished(self._ahead()), self.ranks)
            if not all(np.isfinite(to_host(array)).all() for array in vars(whole).values()):
                raise _diverged(self.record, self.record.steps)
            dictionary = fold(whole, self.record.kind, self.record.active, self.mean, self.scale)
            result.append((dictionary, History(*trainee.history)))
        return result

    def _ahead(self) -> Iterator[np.ndarray]:
        """The batches that would have come next."""
        steps = range(self.step, self.step + CALIBRATION)
        return (self.device.put(self._batches.batch(step)) for step in steps)


def train(record: SaeSection, x: np.ndarray, seed: int, tick: Tick) -> tuple[Dictionary, History]:
    """Train one dictionary of the kind of ``record`` on the rows of ``x`` (n, d) float32; ``tick`` is called every step.

    The same record, inputs and seed give the same bits. Raises NumericalError like ``Training``.
    """
    training = Training(record, Held(x), [seed])
    while training.step < record.steps:
        training.advance()
        tick(training.step, record.steps, training.message)
    return training.finished()[0]


def unit_rows(generator: np.random.Generator, n_rows: int, width: int, start: int = 0) -> np.ndarray:
    """Independent directions, uniform on the sphere, float32: (n_rows, width), without the first ``start``."""
    result, block = np.empty((n_rows - start, width), np.float32), 2**14
    for first in range(0, n_rows, block):
        rows = generator.standard_normal((min(block, n_rows - first), width))[max(0, start - first) :]
        at = max(0, first - start)
        result[at : at + len(rows)] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return result


def gathered(parameters: Parameters, ranks: Ranks) -> Parameters:
    """The features of all ranks, on every rank."""
    arrays = {name: ranks.gather(a) if _by_feature(name) else a for name, a in vars(parameters).items()}
    return type(parameters)(**arrays)


def normalisation(inputs: Inputs) -> tuple[np.ndarray, float]:
    """Mean (d,) float64 of the rows and the factor s that makes E|s (x - mean)|^2 = d, from one pass over them."""
    if inputs.n_rows == 0 or inputs.width == 0:
        raise NumericalError(
            "no activations to train a dictionary on: raise samples.count or its training share"
        )
    mean, variance = mean_and_variance(inputs)
    if not np.isfinite(variance):
        raise NumericalError(
            "the activations are not finite: the network has diverged; look at the ground state first"
        )
    rounding = np.finfo(np.float32).eps ** 2 * float(mean @ mean)
    if variance <= rounding:
        raise NumericalError(
            "the activations are the same for every input: there is nothing for a dictionary to learn; "
            "leave this layer out of activations.layers, or train the network further"
        )
    return mean, float(np.sqrt(inputs.width / variance))


def fold(parameters: Parameters, kind: str, k: int, mean: np.ndarray, scale: float) -> Dictionary:
    """The dictionary on raw inputs that does what ``parameters`` do on ``scale`` (x - ``mean``), in units of raw inputs."""
    threshold = parameters.threshold if isinstance(parameters, Thresholded) else None
    return Dictionary(
        kind,
        k,
        np.asarray(to_host(parameters.encoder), np.float32),
        np.asarray(to_host(parameters.decoder), np.float32),
        (to_host(parameters.encoder_bias) / scale).astype(np.float32),
        (mean + to_host(parameters.decoder_bias) / scale).astype(np.float32),
        None if threshold is None else (to_host(threshold) / scale).astype(np.float32),
    )


def _diverged(record: SaeSection, step: int) -> NumericalError:
    return NumericalError(
        f"the dictionary diverged at step {step}: lower sae.learning_rate (now {record.learning_rate:g})"
    )
