"""MBAR: samples of all states of a family pooled, each weighted for every state (Shirts and Chodera, doi:10.1063/1.2978177).

With N_k samples of psi_k, p_s = |psi_s|^2 and the free energies f_s = -log sum p_s, known up to a constant that all share,

    W_ns = p_s(x_n) e^(f_s) / sum_k N_k p_k(x_n) e^(f_k),    sum_n W_ns = 1 for every s,    <O>_s = sum_n W_ns O_s(x_n).

Of all estimators that use the pooled samples and the p_k this one has the least variance. pymbar solves for the f_s. Errors:
the equations above are linearised in what every sample adds to them, f_s included, so that a ``Curve`` can sum influences
chain by chain whatever the correlations, also those between the states along common random numbers.

*Overlap*: the matrix N_l sum_n W_nk W_nl has the largest eigenvalue 1; 1 minus the second one is 0 where the states fall into
groups that share no samples, and 1 where all are the same.
"""

from __future__ import annotations

import logging

import numpy as np

from ..vmc.statistics import effective_sample_size
from .expectation import Curve


def pooled(log_psi: np.ndarray, value: np.ndarray, base: int) -> Curve:
    """Curve of K states, with their overlap, from the samples of all of them; infidelities are those with the state ``base``.

    log_psi (state, chain, draw, point) and value (state, chain, draw, point, observable): log psi and local estimators of every
    point on the samples of every state; states and points are the same. Costs K^2 times what one state costs to measure.
    """
    states, chains, draws, _ = log_psi.shape
    count = chains * draws
    log_p = 2 * log_psi.real.reshape(states * count, states)
    weight = _weights(log_p, count)
    flat = value.reshape(states * count, states, -1)
    mean = np.einsum("np,npo->po", weight, flat)
    deviation = weight[:, :, None] * (flat - mean)
    # d mean_p / d f_k = -N_k sum_n W_nk W_np (O - mean_p). The equations of f, sum_n N_k W_nk = N_k, leave a common shift free.
    by_energy = -count * np.einsum("nk,npo->kpo", weight, deviation)
    jacobian = count * np.eye(states) - count**2 * weight.T @ weight
    shift = -(count * weight - 1 / states) @ np.linalg.pinv(jacobian, rcond=1e-10)  # of f by every sample
    moved = deviation + np.tensordot(shift, by_energy, axes=1)
    influence = count * moved.reshape(states, chains, draws, states, -1).sum(axis=0).transpose(2, 0, 1, 3)
    sizes = [effective_sample_size(weight[:, p]) / len(weight) for p in range(states)]
    infidelities = _infidelities(log_psi.reshape(states * count, states), weight[:, base], base)
    return Curve(mean, influence, True, infidelities, np.asarray(sizes), _overlap(weight, count))


def _weights(log_p: np.ndarray, count: int) -> np.ndarray:
    """W (samples, state) from log |psi|^2 (samples, state), ``count`` samples of each."""
    logging.getLogger("pymbar").setLevel(
        logging.ERROR
    )  # it recommends another library whenever it is imported
    from pymbar import MBAR

    energies = -(log_p - log_p.max(axis=0)).T
    return np.asarray(MBAR(energies, np.full(log_p.shape[1], count)).weights())


def _infidelities(log_psi: np.ndarray, weight: np.ndarray, base: int) -> np.ndarray:
    """Var r / E|r|^2 of r = psi_s / psi_base over samples (n, state) weighted for psi_base."""
    log_ratio = log_psi - log_psi[:, base, None]
    r = np.exp(log_ratio - log_ratio.real.max(axis=0))
    return weight @ np.abs(r - weight @ r) ** 2 / (weight @ np.abs(r) ** 2)


def _overlap(weight: np.ndarray, count: int) -> float:
    eigenvalues = np.linalg.eigvalsh(count * weight.T @ weight)
    return float(np.clip(1 - eigenvalues[-2], 0, 1)) if len(eigenvalues) > 1 else 1.0
