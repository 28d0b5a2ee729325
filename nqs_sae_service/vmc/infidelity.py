"""Bring a network onto a given state: minimise the infidelity, the step of projected t-VMC.

For a target phi, with r = phi / psi and E the mean over |psi|^2,

    F = |<psi|phi>|^2 / (<psi|psi> <phi|phi>) = |E r|^2 / E |r|^2,      1 - F = E |r / E r - 1|^2 / E |r / E r|^2

(Sinibaldi et al., Quantum 7, 1131 (2023); Gravina et al., Quantum 9, 1803 (2025)). To first order the best change of theta
solves the least-squares problem O-bar d theta = r / E r - 1; it is the natural gradient, damped as by Levenberg and Marquardt:
a step that does not bring psi nearer is taken back and damped more.

A step of time is a product of linear factors (LPE, Gravina et al.): with the roots z_j of the Taylor polynomial of exp,

    exp(-i (H - E) dt) = prod_j (1 + i (H - E) dt / z_j) + O(dt^(s + 1)),    j = 1 ... s,    E = <H>,

so that s projections make a step, each of a target that needs one local energy. E is but a phase; without it dt would have to
be small against 1 / |E|, not against the inverse of the spread of the energy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine.arrays import namespace, to_host
from ..engine.economy import DEFAULT, Economy
from ..errors import NumericalError
from ..states import LogPsi, State
from .ensembles import Ensemble, Ensembles, derivatives
from .estimators import local_values
from .evolution import centre, gram, rows_of

if TYPE_CHECKING:
    from ..physics.operators import Operator

Array = Any

_HELD = 0.1  # of the infidelity: share of the weight that is spread out
_FAR = 1e-10  # a ratio, in place of zero
_LONGEST = 0.5  # step, as a length in the metric of the states
_LEAST, START, _MOST = 1e-9, 1e-4, 1e2  # damping, in units of the mean eigenvalue of the metric
_EASE, _HARDEN = 0.25, 8.0
_STALLED = 0.995  # an iteration that leaves more of the infidelity gains nothing
_PATIENCE = 3  # so many of these are tried
_TINY = float(np.finfo(np.float64).tiny)
_PATH_INFIDELITY = 0.05  # from one product state of the path to the next
_SHARE = 0.01  # of the distance from the end of the path, at which a state on it is left


@dataclass(frozen=True)
class Projected:
    """Parameters (n_parameters,) float64, the infidelity reached, the number of iterations, and the damping to go on with."""

    theta: np.ndarray
    infidelity: float
    iterations: int
    damping: float


def bring_onto(
    target: LogPsi,
    state: State,
    theta: np.ndarray,
    ensembles: Ensembles,
    infidelity: float,
    iterations: int,
    put: Callable[[np.ndarray], Array],
    tick: Callable[[str], None] = lambda message: None,
    damping: float = START,
) -> Projected:
    """Minimise the infidelity of the network to the ``target`` until it is at most ``infidelity``, or nothing is gained.

    Raises NumericalError if no step at all lowers it, from a start that is not close.
    """
    best, system, stalled = math.inf, None, 0
    trial = theta
    for iteration in range(iterations + 1):
        psi, found = state.bind(put(trial.astype(state.dtype))), math.inf
        with suppress(NumericalError):  # of a trial that went too far
            ensemble = ensembles.of(psi)
            ratio = _ratio(target.log_psi(ensemble.sigma), ensemble.log_psi, ensemble.weights)
            found = _distance(ratio, ensemble.weights)
        tick(f"infidelity {found:.1e}")
        if found < best:
            stalled = stalled + 1 if found > _STALLED * best else 0
            damping = max(_LEAST, _EASE * damping) if system is not None else damping
            best, theta = found, trial
            if best <= infidelity or stalled == _PATIENCE or iteration == iterations:
                break
            columns = derivatives(psi, ensemble.sigma)
            residual, weights = _residual(ratio, ensemble.weights)
            root = namespace(ratio).sqrt(weights)
            system = _System(centre(columns, weights), rows_of(root * residual, len(columns)))
        else:
            damping *= _HARDEN
            if damping > _MOST or iteration == iterations:
                break
        if system is None:
            raise NumericalError(
                "the infidelity is not finite: psi and the state to be followed have no overlap"
            )
        trial = theta + system.step(damping)
    return Projected(theta, best, iteration, damping)


def infidelity_to(target: LogPsi, ensemble: Ensemble) -> float:
    """1 - F of the state that an ensemble is of to the ``target``."""
    ratio = _ratio(target.log_psi(ensemble.sigma), ensemble.log_psi, ensemble.weights)
    return _distance(ratio, ensemble.weights)


def _ratio(log_phi: Array, log_psi: Array, weights: Array) -> Array:
    """r / E r (n,)."""
    xp = namespace(log_psi)
    difference = log_phi - log_psi + 0j
    there = weights > 0
    ratio = xp.where(there, xp.exp(difference - difference.real[there].max()), 0.0)
    return ratio / (weights @ ratio)


def _residual(ratio: Array, weights: Array) -> tuple[Array, Array]:
    """What d log psi should be (n,), and with which weights (n,).

    Near phi that is r / E r - 1 with the weights of psi. Where the ratio is far from 1 its logarithm takes its place, and phi
    weighs as much as psi: configurations of phi that psi hardly visits draw it there. A small share of the weight, less and
    less, is spread over all configurations: else a step may raise psi where nobody looks.
    """
    xp = namespace(ratio)
    share = weights * xp.abs(ratio) ** 2
    mixed = 0.5 * (weights + share / share.sum())
    held = _HELD * _distance(ratio, weights)
    mixed = (1 - held) * mixed + held / len(mixed)
    far = xp.abs(ratio - 1) > 1
    residual = xp.where(far, xp.log(xp.where(ratio == 0, _FAR, ratio)), ratio - 1)
    return residual - mixed @ residual, mixed


def _distance(ratio: Array, weights: Array) -> float:
    """1 - F."""
    spread = float(weights @ namespace(ratio).abs(ratio - 1) ** 2)
    return spread / (1 + spread) if math.isfinite(spread) else math.inf


class _System:
    """The damped least-squares problem |A d - b|^2 + damping |d|^2, A (rows, n_parameters)."""

    def __init__(self, a: Array, b: Array):
        self.xp = namespace(a)
        self.small = a.shape[0] <= a.shape[1]
        if self.small:
            self.wide = a.astype(self.xp.float64)
            self.matrix, self.rhs = self.wide @ self.wide.T, b
        else:
            self.matrix, self.rhs = gram(a), self.xp.asarray(a.T @ b.astype(a.dtype), self.xp.float64)

    def step(self, damping: float) -> np.ndarray:
        """d (n_parameters,), shortened to the longest step."""
        xp, diagonal = self.xp, self.xp.arange(len(self.matrix))
        matrix = self.matrix.copy()
        matrix[diagonal, diagonal] += damping * float(xp.trace(matrix)) / len(matrix) + _TINY
        solution = xp.linalg.solve(matrix, self.rhs)
        moved = self.matrix @ solution
        length = math.sqrt(abs(float(moved @ moved if self.small else solution @ moved)))
        direction = self.wide.T @ solution if self.small else solution
        return to_host(direction) * min(1.0, _LONGEST / max(length, 1e-300))


@dataclass
class Remembered:
    """A wave function that remembers log psi of the configurations it saw last: an unchanged ensemble costs nothing."""

    psi: LogPsi
    sigma: Array = None
    values: Array = None

    def log_psi(self, sigma: Array) -> Array:
        """log psi (n,) of configurations (n, n_sites)."""
        if sigma is not self.sigma:
            self.sigma, self.values = sigma, self.psi.log_psi(sigma)
        return self.values


@dataclass(frozen=True)
class Factor:
    """(1 + c (H - energy)) psi."""

    psi: LogPsi
    hamiltonian: Operator
    coefficient: complex
    energy: float
    economy: Economy = DEFAULT

    def log_psi(self, sigma: Array) -> Array:
        """log psi (n,) complex128."""
        log_psi = self.psi.log_psi(sigma)
        (local,) = local_values(self.psi, [self.hamiltonian], sigma, log_psi, self.economy)
        with np.errstate(divide="ignore"):
            return log_psi + namespace(sigma).log(1 + self.coefficient * (local - self.energy))


def coefficients(length: float, order: int) -> list[complex]:
    """c_j of the factors of a step: those of exp(-i H t) to the order in t = ``length``."""
    roots = np.roots([1 / math.factorial(k) for k in range(order, -1, -1)])
    return [complex(1j * length / root) for root in roots]


@dataclass(frozen=True)
class ProductState:
    """prod_i of (cos(t_i / 2), sin(t_i / 2)) on (up, down) of site i: ``tilts`` t (n_sites,) against +z, 0 < t < pi.

    Spins where ``rotated`` (n_sites,) bool are turned by pi about z, as those of the Hamiltonian are.
    """

    tilts: np.ndarray
    rotated: np.ndarray | None = None

    def log_psi(self, sigma: Array) -> Array:
        """log psi (n,), complex128 where spins are rotated."""
        xp = namespace(sigma)
        up, down = (np.log(f(self.tilts / 2)) for f in (np.cos, np.sin))
        if self.rotated is not None:
            up = up + 1j * np.pi * self.rotated
        return xp.where(sigma > 0, xp.asarray(up), xp.asarray(down)).sum(axis=1)


def path_to(
    up: np.ndarray | None, n: int, infidelity: float, rotated: np.ndarray | None = None
) -> Iterator[tuple[ProductState, float]]:
    """A path of product states of ``n`` spins, each with the infidelity to reach, that ends at +x, None, or at spins along z.

    ``up`` (n,) is +1 or -1 for each of these; the last state differs from them by the ``infidelity``.
    """
    tilt, last = math.pi / 2, math.pi / 2
    if up is not None:
        last = 2 * math.atan(math.sqrt(infidelity / n))
    stride = 2 * math.sqrt(_PATH_INFIDELITY / n)
    sign = np.ones(n) if up is None else up
    while tilt > last:
        yield ProductState(_tilts(tilt, sign), rotated), _SHARE * min(1.0, n * tilt**2 / 4)
        tilt = max(last, tilt - stride, tilt / math.e)
    yield ProductState(_tilts(last, sign), rotated), infidelity


def _tilts(tilt: float, up: np.ndarray) -> np.ndarray:
    return np.where(up > 0, tilt, math.pi - tilt)
