"""What the tests of samplers compare with: |psi|^2 on all configurations of a sector, and wave functions to try."""

import numpy as np
from scipy import stats

from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.physics.operators import basis_index


class Rugged:
    """Real log psi drawn at random for every configuration: no structure that a sampler could profit from."""

    def __init__(self, n_sites, size=0.7):
        self.table = size * np.random.default_rng(5).normal(size=2**n_sites)
        self.evaluated = 0

    def log_psi(self, sigma):
        self.evaluated += len(sigma)
        return self.table[basis_index(sigma)]


class TwoModes:
    """psi = exp(a |m| + b m): two far modes, all up and all down, of unequal weight."""

    def log_psi(self, sigma):
        m = sigma.sum(axis=1, dtype=np.float64)
        return 1.2 * np.abs(m) + 0.03 * m


def sector(n_sites, magnetization=None):
    """All configurations (n, n_sites) of a magnetization, or all there are."""
    everything = all_configurations(n_sites)
    return everything if magnetization is None else everything[everything.sum(axis=1) == magnetization]


def p_value(sigma, psi, magnetization=None):
    """Chi-square of samples (n, n_sites) against |psi|^2 in the sector; rare configurations are counted together."""
    configurations = sector(sigma.shape[1], magnetization)
    log_p = 2 * psi.log_psi(configurations).real
    expected = np.exp(log_p - log_p.max())
    expected *= len(sigma) / expected.sum()
    counts = np.bincount(basis_index(sigma), minlength=2 ** sigma.shape[1])[basis_index(configurations)]
    assert counts.sum() == len(sigma), "a sample left its sector"
    rare = expected < 8
    observed, wanted = counts[~rare], expected[~rare]
    if rare.any():
        observed, wanted = np.append(observed, counts[rare].sum()), np.append(wanted, expected[rare].sum())
    return stats.chisquare(observed, wanted).pvalue
