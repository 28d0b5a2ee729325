"""MBAR against full summation on 12 sites: means, errors, infidelity, overlap."""

import numpy as np
import pytest

from nqs_sae_service.physics.exact import all_configurations

pytest.importorskip("pymbar")
from nqs_sae_service.interpret.mbar import pooled

SITES, CHAINS, DRAWS, BASE = 12, 100, 8, 1
ALL = all_configurations(SITES)
STRENGTHS = np.array([-0.08, 0.0, 0.06, 0.15])


def family(strengths=STRENGTHS):
    """log psi (2^N, point): a random smooth state times exp(strength m^2 + i strength neighbours)."""
    rng = np.random.default_rng(0)
    angles = ALL @ (0.3 * rng.normal(size=(SITES, 6)))
    moment = ALL.sum(axis=1) / 2
    neighbours = (ALL * np.roll(ALL, 1, axis=1)).sum(axis=1)
    smooth = np.log(np.cosh(angles)).sum(axis=1)
    return smooth[:, None] + strengths * (moment**2)[:, None] / 6 + 1j * strengths * neighbours[:, None]


def observed():
    """Values (2^N, point, observable) that depend on the point, as local estimators do."""
    moment = np.abs(ALL.mean(axis=1))
    return np.stack(
        [np.stack([moment, moment * (1 + s) + ALL[:, 0] * ALL[:, 3]], axis=1) for s in STRENGTHS], axis=1
    )


def drawn(log_psi, seed):
    """Indices (state, chain, draw) of independent samples of every state."""
    p = np.exp(2 * (log_psi.real - log_psi.real.max(axis=0)))
    rng = np.random.default_rng(seed)
    return np.stack([rng.choice(len(ALL), size=(CHAINS, DRAWS), p=c / c.sum()) for c in p.T])


def test_means_and_errors_agree_with_full_summation():
    """Over repetitions: the scatter is the stated error, there is no bias, and pooling beats each state's own samples."""
    log_psi, values = family(), observed()
    p = np.exp(2 * log_psi.real)
    exact = np.einsum("cp,cpo->po", p / p.sum(axis=0), values)
    found, errors, own = [], [], []
    for seed in range(40):
        index = drawn(log_psi, seed)
        curve = pooled(log_psi[index], values[index], BASE)
        found.append(curve.mean)
        errors.append(curve.error)
        own.append([values[index[s], s].mean(axis=(0, 1)) for s in range(len(STRENGTHS))])
    scatter, error = np.std(found, axis=0), np.mean(errors, axis=0)
    assert np.all(np.abs(np.mean(found, axis=0) - exact) < 4.5 * scatter / np.sqrt(40) + 1e-6)
    np.testing.assert_allclose(error, scatter, rtol=0.5)
    assert np.all(scatter < np.std(own, axis=0))
    assert 0 < curve.overlap < 1
    assert np.all(curve.ess > 0.05)
    normalised = np.exp(log_psi - log_psi.real.max(axis=0))
    normalised /= np.linalg.norm(normalised, axis=0)
    exact_infidelity = 1 - np.abs(normalised[:, BASE].conj() @ normalised) ** 2
    np.testing.assert_allclose(curve.infidelity, exact_infidelity, rtol=0.25, atol=1e-9)


def test_overlap_says_whether_states_share_samples():
    log_psi, values = family(), observed()
    index = drawn(log_psi, 0)
    same = np.repeat(log_psi[:, :1], 4, axis=1)
    assert pooled(same[index], values[index], BASE).overlap == pytest.approx(1, abs=1e-6)
    apart = family(np.array([-3.0, -3.0, 3.0, 3.0]))
    away = drawn(apart, 0)
    assert pooled(apart[away], values[away], BASE).overlap < 0.05
