"""How much of log psi, of the local energy, of an expectation value is due to a feature: attribution, held against ablation.

Ablation replaces the activations f_ti of one feature by a baseline b_ti and lets the rest of the network run:

    zero        b = 0
    mean        b_i = the mean activation
    resample    b_ti = f_ti of another Born sample, the same one for all configurations; effects are means over a few of these

    effect on log psi    log psi - log psi_ablated       (sample by sample; likewise of the local energy)
    effect on <O>        <O> - <O>_ablated               (reweighted samples, the ablated state's own local estimators)

One forward pass per feature. Attribution predicts all of them from passes that all features share (Templeton et al. 2024;
Sundararajan et al., arXiv:1703.01365):

    gradient      a_i = sum_t (f_ti - b_ti) d_i . grad_t log psi
    integrated    the same with the gradient averaged over the straight path on which ALL features go together from their
                  means to their values (the part of x that the dictionary does not explain stays): sum_i a_i = log psi -
                  log psi(all at their means). It is no path of a single feature: for that each would need its own passes
    activation    sum_t (f_ti - b_ti) |d_i|, which knows nothing of the network: what attribution has to beat

and for expectation values 2 Re Cov(a_i, O_loc).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..engine.arrays import namespace, to_host
from ..physics.operators import Operator
from ..sae.dictionary import BLOCK_ELEMENTS
from ..states import Wavefunction
from .atlas import Array, DecodedLayer, atlas, local_tangents, no_tick, tangents
from .expectation import from_ratios
from .steering import change

ABLATIONS = ("zero", "mean", "resample")
PREDICTORS = ("gradient", "integrated", "activation")


@dataclass(frozen=True, eq=False)
class Ablated:
    """psi with one of the ``features`` (m,) at a time held at ``baseline`` (row or 1, m): a trailing axis of log psi."""

    psi: Wavefunction
    at: DecodedLayer
    features: np.ndarray
    baseline: Array

    def log_psi(self, sigma: Array) -> Array:
        """(n, m) of configurations (n, n_sites)."""
        return self.psi.over_copies(self._of_network, sigma)

    def _pushes(self, x: Array) -> Array:
        """b_ti - f_ti (n, row, m)."""
        return (self.baseline - self.at.activations(x, self.features)).astype(x.dtype)

    def _of_network(self, psi: Wavefunction, sigma: Array) -> Array:
        xp, decoder = namespace(sigma), self.at.dictionary.decoder[self.features]
        if psi.starts_at(self.at.layer):
            x = psi.stream_at(sigma, self.at.layer)
            pushes = self._pushes(x)
            logs = [
                psi.log_psi_from(self.at.layer, x + pushes[..., i, None] * vector)
                for i, vector in enumerate(decoder)
            ]
            return xp.stack(logs, axis=-1)

        def log_psi(rows: Array) -> Array:
            pushes = self._pushes(psi.tape(rows).edges[self.at.layer])
            edits = [
                partial(_pushed, push=pushes[..., i, None] * vector.astype(pushes.dtype))
                for i, vector in enumerate(decoder)
            ]
            return xp.stack([psi.tape(rows, {self.at.layer: edit}).log_psi for edit in edits], axis=-1)

        return psi.passes(log_psi, sigma)


def _pushed(x: Array, push: Array) -> Array:
    return x + push


@dataclass(frozen=True)
class Effects:
    """Of m features: sample by sample (chain, draw, m, quantity), centred, and on expectation values (m, observable)."""

    sampled: np.ndarray
    expected: np.ndarray
    expected_error: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """One number each (m, quantity then observable): root mean squares over the samples, then the expected effects."""
        return np.concatenate([np.sqrt((self.sampled**2).mean(axis=(0, 1))), self.expected], axis=-1)

    @classmethod
    def mean(cls, several: Sequence[Effects]) -> Effects:
        """The mean of effects on the same samples; errors as if it were one."""
        return cls(
            np.mean([one.sampled for one in several], axis=0),
            np.mean([one.expected for one in several], axis=0),
            np.mean([one.expected_error for one in several], axis=0),
        )

    def of(self, features: np.ndarray) -> Effects:
        """Those of some of the features."""
        return Effects(self.sampled[:, :, features], self.expected[features], self.expected_error[features])


def per_sample(log_effect: np.ndarray, local_effect: np.ndarray, complex_amplitude: bool) -> np.ndarray:
    """Effects on log|psi|, the phase if there is one, and the local energy: (chain, draw, m, 2 or 3), centred.

    A constant in log psi is a norm or a global phase and means nothing.
    """
    parts = [log_effect.real, log_effect.imag] if complex_amplitude else [log_effect.real]
    effects = np.stack([*parts, local_effect.real], axis=-1).astype(np.float64)
    return effects - effects.mean(axis=(0, 1))


def predicted(
    tangent: np.ndarray, local_tangent: np.ndarray, values: np.ndarray, complex_amplitude: bool
) -> Effects:
    """Effects by attribution a (chain, draw, m) to log psi and to the local energy; values (chain, draw, observable)."""
    found = atlas(tangent, values)
    return Effects(per_sample(tangent, local_tangent, complex_amplitude), found.slope, found.slope_error)


def integrated(
    psi: Wavefunction,
    at: DecodedLayer,
    energy: Operator,
    sigma: Array,
    mean: Array,
    steps: int,
    tick: Callable[[], None] = no_tick,
) -> tuple[np.ndarray, np.ndarray]:
    """Integrated gradients of log psi and of the local energy, each (n, feature), for configurations (n, n_sites).

    The integral over the joint path from ``mean`` (row or 1, feature) is a Gauss-Legendre sum of ``steps`` points.
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    log_sum, local_sum = 0.0, 0.0
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        evaluate = partial(tangents, psi, at, baseline=mean, part=float(node), tick=tick)
        log_sum = log_sum + weight * evaluate(sigma)[1]
        local_sum = local_sum + weight * local_tangents(energy, sigma, evaluate)
    return np.asarray(log_sum), np.asarray(local_sum)


def activations_at(psi: Wavefunction, at: DecodedLayer, sigma: Array) -> Array:
    """f (n, row, feature) on configurations (n, n_sites), where psi is; of a projected state those of copy 0."""
    return at.activations(psi.stream_at(sigma, at.layer))


def mean_activation(psi: Wavefunction, at: DecodedLayer, sigma: Array) -> Array:
    """Mean of every f_i over rows and configurations (n, n_sites): (1, feature), where psi is."""
    size = max(1, BLOCK_ELEMENTS // (psi.state.n_tokens * at.dictionary.n_features))
    blocks = [
        activations_at(psi, at, sigma[start : start + size]).sum(axis=0, dtype=np.float64)
        for start in range(0, len(sigma), size)
    ]
    total = sum(block.mean(axis=0, keepdims=True) for block in blocks)
    return (total / len(sigma)).astype(at.dictionary.decoder.dtype)


def activation_sizes(
    psi: Wavefunction, at: DecodedLayer, sigma: Array, baseline: Array | float, chosen: np.ndarray
) -> np.ndarray:
    """sum_t (f_ti - b_ti) |d_i| (n, m) of the features ``chosen`` (m,), on the host."""
    xp = namespace(at.dictionary.decoder)
    length = xp.linalg.norm(at.dictionary.decoder[chosen], axis=1)
    column = baseline if isinstance(baseline, float) else baseline[:, chosen]

    def evaluate(rows: Array) -> Array:
        f = at.activations(psi.stream_at(rows, at.layer), chosen)
        return ((f - column) * length).sum(axis=1)

    return to_host(psi.passes(evaluate, sigma))


def ablated(
    log_ratio: np.ndarray, value: np.ndarray, own: np.ndarray, complex_amplitude: bool
) -> tuple[Effects, np.ndarray, np.ndarray]:
    """Effects of ablation, infidelity (m,) and effective sample size as a share (m,).

    log_ratio = log psi_ablated / psi (chain, draw, m), its local estimators ``value`` (chain, draw, m, observable), those of
    psi ``own`` (chain, draw, observable); the last observable is the energy.
    """
    m = log_ratio.shape[-1]
    whole = np.concatenate([log_ratio, np.zeros((*log_ratio.shape[:2], 1))], axis=-1)
    curve = from_ratios(whole, np.concatenate([value, own[:, :, None]], axis=2))
    changes = [change(curve, m, i) for i in range(m)]
    log_effect = -log_ratio
    if np.iscomplexobj(log_ratio):  # phases are compared modulo 2 pi
        log_effect = log_effect.real + 1j * np.angle(np.exp(1j * log_effect.imag))
    local = own[:, :, None, -1] - value[..., -1]
    effects = Effects(
        per_sample(log_effect, local, complex_amplitude),
        np.stack([value for value, _ in changes]),
        np.stack([error for _, error in changes]),
    )
    return effects, curve.infidelity[:m], curve.ess[:m]


def agreement(attribution: Effects, ablation: Effects) -> tuple[np.ndarray, np.ndarray]:
    """Pearson and rank correlation of attribution with ablation, (quantity then observable,).

    Sample by sample over all pairs of a sample and a feature; of expectation values over the features. NaN where one side
    does not vary.
    """
    pairs = [
        (attribution.sampled[..., q].ravel(), ablation.sampled[..., q].ravel())
        for q in range(ablation.sampled.shape[-1])
    ]
    pairs += list(zip(attribution.expected.T, ablation.expected.T, strict=True))
    found = np.asarray([(_pearson(a, b), _pearson(_ranks(a), _ranks(b))) for a, b in pairs])
    return found[:, 0], found[:, 1]


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt(a @ a) * np.sqrt(b @ b)
    return float(np.clip(a @ b / size, -1, 1)) if np.isfinite(size) and size > 0 else float("nan")


def _ranks(a: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return rankdata(a)


def most_and_others(size: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Features (count,) int32 to look at: half with the largest ``size`` (feature,), half drawn from the others above 0.

    -1 fills up where fewer are alive.
    """
    order = np.argsort(-size, kind="stable")
    alive = order[size[order] > 0]
    most, others = np.split(alive, [-(-count // 2)])
    drawn = generator.permutation(others)[: count - len(most)]
    chosen = np.full(count, -1, np.int32)
    found = np.concatenate([most, np.sort(drawn)])[:count]
    chosen[: len(found)] = found
    return chosen
