"""Do two states of nearly the same energy differ in physics, and which features carry the difference?

A low energy does not say that a state is the ground state of the right phase: other phases, and single sectors of a broken
symmetry, lie within the errors of the energy. Two states a and b of one Hamiltonian are compared by

    energy      nearly degenerate: |E_a - E_b| within 3 combined errors, or |E_a - E_b| / |E| below 1e-3 or below the larger
                V-score, the scale of the relative error that is left (Wu et al., Science 386, 296 (2024))
    observable  z = (O_a - O_b) / combined error over chains, with t-distributed p, times the number of comparisons
                (Bonferroni); a difference counts with p < 0.01 if it is also above 0.2 standard deviations of the samples
                and above 5 % of the larger mean: many samples make anything significant
    fidelity    F = |<a|b>|^2 / <a|a><b|b> = E_a[psi_b / psi_a] E_b[psi_a / psi_b], of finite variance (1/F - 1) each
    features    of one dictionary against those of the other, one to one, by the correlation of their activations on the
                samples of both states (Hungarian method); and the shift (f_a - f_b) / standard deviation of every feature

F needs samples that reach the other state: then E_a|r|^2 E_b|1/r|^2 = 1, r = psi_b / psi_a, the *closure*. Where they do not,
F is not known, but bounded: no measurement tells states apart better than they are, F <= (sum_o sqrt(p_a(o) p_b(o)))^2 for
the distributions p of any diagonal observable (Fuchs and Caves, Open Syst. Inf. Dyn. 3, 345 (1995)).

Two identities test the samples of one state. Flip of all spins: s(sigma) min(1, |psi(-sigma) / psi(sigma)|^2) has mean 0
for any s(-sigma) = -s(sigma), here the sign of the magnetization; chains that stick in one of two sectors give another.
Zeros of psi: samples of |psi|^(2b), b = 1/2, weighted with |psi|^(2 - 2b), give the same energy and variance, unless the
training locked at a zero of psi. There H psi does not vanish, which adds |H psi|^2 to the variance and little to the energy;
samples of |psi|^2 show neither (Misery et al., arXiv:2507.05352).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import stdtr

from ..vmc.statistics import mean_and_error
from .correlation import pearson

SIGMAS = 3.0  # of the energy difference, and of a hidden V-score
RELATIVE_ENERGY = 1e-3
SIGNIFICANT = 0.01  # of p, times the number of comparisons
EFFECT = 0.2  # standard deviations of the samples
RELATIVE = 0.05  # of the larger mean
MATCHED = 0.7  # correlation of the activations of two features that count as one
CLOSED = 0.5  # closure from which on the samples of two states reach each other
FEW_SHARED = 0.5  # fidelity below which states of nearly one energy and equal observables are pointed out
LOCKED = 4.0  # sigmas between the energies of Born samples and of the check sample, or of the flip balance
LOCKED_ENERGY = 1e-4  # and at least that share of the energy
HIDDEN = 3.0  # times the V-score of the Born samples, from which on that of the check sample is pointed out
MOST_EXACT_SITES = 14  # fidelities are summed over all configurations up to here
_BINS = 20  # of the distribution of an observable
_FREEDOM = 15  # degrees of freedom of an error: batches of a run with few chains, less one


@dataclass(frozen=True)
class Difference:
    """How quantities (K,) differ between two sets of samples.

    ``mean``, ``error`` (2, K); ``z`` of the first minus the second; ``p`` two-sided, one comparison; ``effect`` in standard
    deviations of the samples. NaN where a quantity is not finite or has no error.
    """

    mean: np.ndarray
    error: np.ndarray
    z: np.ndarray
    p: np.ndarray
    effect: np.ndarray

    def adjusted(self, comparisons: int) -> np.ndarray:
        """p-values (K,) of so many comparisons together (Bonferroni)."""
        return np.minimum(1.0, self.p * comparisons)

    def counts(self, comparisons: int) -> np.ndarray:
        """Which differences (K,) are significant and large enough to matter."""
        largest = np.abs(self.mean).max(axis=0)
        large = (np.abs(self.effect) >= EFFECT) & (np.abs(self.mean[0] - self.mean[1]) >= RELATIVE * largest)
        return (self.adjusted(comparisons) < SIGNIFICANT) & large


def difference(a: np.ndarray, b: np.ndarray) -> Difference:
    """Quantities of independent samples of two states: (chain, draw, K) each, chains and draws as they are."""
    moments = [mean_and_error(np.asarray(x, np.float64)) for x in (a, b)]
    mean, error = (np.stack(parts) for parts in zip(*moments, strict=True))
    gap, spread = mean[0] - mean[1], np.sqrt((a.var(axis=(0, 1)) + b.var(axis=(0, 1))) / 2)
    z = in_units_of(gap, np.hypot(*error))
    freedom = 2 * max(_FREEDOM, min(len(a), len(b)) - 1)
    return Difference(mean, error, z, 2 * stdtr(freedom, -np.abs(z)), in_units_of(gap, spread))


def in_units_of(gap: np.ndarray | float, unit: np.ndarray | float) -> np.ndarray:
    """gap / unit; where the unit vanishes 0 for no gap, else infinite."""
    gap, unit = np.asarray(gap, np.float64), np.asarray(unit, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((unit == 0) & (gap == 0), 0.0, gap / unit)


def nearly_degenerate(
    energy: tuple[float, float], error: tuple[float, float], v_score: tuple[float, float]
) -> bool:
    """Whether two energies (total) are equal as far as the states can say; a V-score or an error may be NaN."""
    gap = abs(energy[0] - energy[1])
    scale = max([RELATIVE_ENERGY, *(v for v in v_score if np.isfinite(v))])
    return bool(gap <= SIGMAS * np.hypot(*error) or gap <= scale * max(map(abs, energy)))


@dataclass(frozen=True)
class Fidelity:
    """An estimate of |<a|b>|^2 with its standard error, and the closure: 1 where the samples reach each other."""

    value: float
    error: float
    closure: float

    @property
    def known(self) -> bool:
        """Whether the samples can tell it."""
        return CLOSED < self.closure < 1 / CLOSED and np.isfinite(self.error)


def fidelity(on_a: np.ndarray, on_b: np.ndarray) -> Fidelity:
    """From log(psi_b / psi_a) on samples of a and log(psi_a / psi_b) on samples of b, (chain, draw) each, real or complex."""
    shift = [float(log_ratio.real.max()) for log_ratio in (on_a, on_b)]
    ratio = [np.exp(log_ratio - s) for log_ratio, s in zip((on_a, on_b), shift, strict=True)]
    mean = [r.mean() for r in ratio]
    with np.errstate(over="ignore"):
        scale = np.exp(sum(shift))
        square = np.exp(2 * sum(shift)) * np.prod([np.mean(np.abs(r) ** 2) for r in ratio])
    influence = [np.real((r - m) * other) for r, m, other in zip(ratio, mean, mean[::-1], strict=True)]
    error = np.hypot(*(mean_and_error(each)[1] for each in influence))
    return Fidelity(float(np.real(mean[0] * mean[1]) * scale), float(error * scale), float(square))


def exact_fidelity(log_a: np.ndarray, log_b: np.ndarray) -> float:
    """|<a|b>|^2 of the normalised states from log psi (m,) on all configurations."""
    a, b = (np.exp(log_psi - log_psi.real.max()) for log_psi in (log_a, log_b))
    return float(abs(np.vdot(a, b)) ** 2 / (np.vdot(a, a).real * np.vdot(b, b).real))


def fidelity_bound(a: np.ndarray, b: np.ndarray) -> float:
    """Upper bound of the fidelity from a diagonal observable on samples of both states, any shapes.

    Bins only raise the bound; one count more in every bin stands for what the samples have not seen.
    """
    edges = np.histogram_bin_edges(np.concatenate([a.ravel(), b.ravel()]), _BINS)
    p = [(np.histogram(x, edges)[0] + 1) / (x.size + len(edges) - 1) for x in (a, b)]
    return float(np.sum(np.sqrt(p[0] * p[1])) ** 2)


def flip_balance(sigma: np.ndarray, log_psi: np.ndarray, log_flipped: np.ndarray) -> tuple[float, float]:
    """Mean of sign(m) min(1, |psi(-sigma) / psi(sigma)|^2) and its error; 0 if the samples are those of |psi|^2.

    sigma (chain, draw, n_sites); log psi there and on the flipped configurations (chain, draw).
    """
    total = sigma.sum(axis=2, dtype=np.int64)
    sign = np.where(total == 0, sigma[..., 0], np.sign(total))
    mean, error = mean_and_error(sign * np.exp(np.minimum(0.0, 2 * (log_flipped - log_psi).real)))
    return float(mean), float(error)


def out_of_balance(balance: float, error: float) -> bool:
    """Whether a flip balance shows chains that stick in one sector."""
    return abs(balance) > EFFECT and abs(balance) > LOCKED * error


def locked(energy: float, error: float, check: float, check_error: float) -> bool:
    """Whether the energy of the check sample differs from that of the Born samples; False where there is no check."""
    gap = abs(check - energy)
    return gap > LOCKED * np.hypot(error, check_error) and gap > LOCKED_ENERGY * abs(energy)


def hidden(v_score: float, check: float, check_error: float) -> bool:
    """Whether the check sample shows a V-score that the Born samples do not; False where there is no check."""
    return check > HIDDEN * v_score and check - v_score > SIGMAS * check_error


def match(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Partner (F_a,) of every feature of a among those of b, -1 without one, and their correlation r.

    Activations (chain, draw, F_a) and (chain, draw, F_b) on the same samples. The sum of r over the pairs is largest; those
    below ``MATCHED`` are no match and have the partner -1, but keep their r.
    """
    r = np.nan_to_num(pearson(a, b))
    rows, columns = linear_sum_assignment(r, maximize=True)
    partner, correlation = np.full(len(r), -1), np.zeros(len(r))
    correlation[rows] = r[rows, columns]
    partner[rows] = np.where(r[rows, columns] >= MATCHED, columns, -1)
    return partner, correlation


@dataclass(frozen=True)
class Carrier:
    """A feature whose activation differs between two states: ``shift`` in standard deviations, first minus second state.

    ``side`` is the state whose dictionary it belongs to, 0 or 1; ``observable`` the one it correlates with most on the samples
    of both, by ``pearson``.
    """

    side: int
    layer: str
    feature: int
    shift: float
    z: float
    observable: str
    pearson: float


def carrier(found: Difference, r: np.ndarray, names: list[str], side: int, layer: str) -> Carrier | None:
    """The feature with the largest difference that counts, None without one; r (F, observable) on the samples of both."""
    counting = found.counts(len(found.p))
    if not counting.any():
        return None
    feature = int(np.argmax(np.where(counting, np.abs(found.effect), -1)))
    row = np.nan_to_num(r[feature])
    best = int(np.argmax(np.abs(row)))
    return Carrier(
        side,
        layer,
        feature,
        float(found.effect[feature]),
        float(found.z[feature]),
        names[best],
        float(row[best]),
    )


@dataclass(frozen=True)
class Pair:
    """What is known about two states of one Hamiltonian; names, energies (total, in J) and V-scores of both."""

    names: tuple[str, str]
    energy: tuple[float, float]
    energy_error: tuple[float, float]
    v_score: tuple[float, float]
    observables: list[str]
    differing: np.ndarray
    found: Difference
    fidelity: Fidelity
    fidelity_exact: float
    fidelity_bound: float
    carriers: list[Carrier]

    @property
    def near(self) -> bool:
        """Whether the energies are nearly degenerate."""
        return nearly_degenerate(self.energy, self.energy_error, self.v_score)

    @property
    def best_fidelity(self) -> float:
        """The exact fidelity, else a known estimate, else the bound from above; NaN if there is none."""
        if np.isfinite(self.fidelity_exact):
            return self.fidelity_exact
        return self.fidelity.value if self.fidelity.known else self.fidelity_bound

    @property
    def kind(self) -> str:
        """not comparable, alarm, or agree."""
        if not self.near:
            return "not comparable"
        return "alarm" if self.differing.any() or self.best_fidelity < FEW_SHARED else "agree"


def verdict(pair: Pair) -> str:
    """One sentence: ``alarm: ...``, ``agree: ...`` or ``not comparable: ...``."""
    a, b = pair.names
    gap, relative, sigmas = energy_gap(pair.energy, pair.energy_error)
    apart = f"{abs(gap):.2g} J ({relative:.1e} of E, {sigmas:.1f} combined errors)"
    if not pair.near:
        lower = a if gap < 0 else b
        return f"not comparable: energies of {a} and {b} differ by {apart}; {lower} is lower."
    if pair.kind == "agree":
        compared = f"; no observable of {len(pair.observables)} differs" if pair.observables else ""
        return f"agree: energies of {a} and {b} lie within {apart}{compared}{_fidelity(pair)}."
    if not pair.differing.any():
        observed = (
            f"no observable of {len(pair.observables)} differs" if pair.observables else "nothing measured"
        )
        return f"alarm: energies of {a} and {b} lie within {apart} and {observed}, yet they are other states{_fidelity(pair)}."
    return f"alarm: energies of {a} and {b} lie within {apart}, but {_observables(pair)}{_fidelity(pair)}{_carried(pair)}."


def energy_gap(energy: tuple[float, float], error: tuple[float, float]) -> tuple[float, float, float]:
    """E_a - E_b (total), its size relative to |E| and in combined errors."""
    gap = energy[0] - energy[1]
    largest, combined = max(map(abs, energy)), float(np.hypot(*error))
    return gap, abs(gap) / largest if largest else np.nan, float(in_units_of(np.abs(gap), combined))


def _observables(pair: Pair) -> str:
    """The difference that is largest in standard deviations, and the names of the others."""
    order = np.argsort(-np.where(pair.differing, np.abs(pair.found.effect), -1.0))[
        : int(pair.differing.sum())
    ]
    first, mean, error = order[0], pair.found.mean, pair.found.error
    told = [f"{mean[s, first]:+.3f} ± {error[s, first]:.1g}" for s in (0, 1)]
    others = ", ".join(pair.observables[i] for i in order[1:])
    also = f"; so do {others}" if len(order) > 2 else f"; so does {others}" if others else ""
    return f"{pair.observables[first]} differs: {told[0]} against {told[1]} (z = {pair.found.z[first]:+.0f}){also}"


def _fidelity(pair: Pair) -> str:
    if np.isfinite(pair.fidelity_exact):
        return f"; fidelity {pair.fidelity_exact:.2g} (exact)"
    if pair.fidelity.known:
        return f"; fidelity {pair.fidelity.value:.2g} ± {pair.fidelity.error:.1g}"
    if np.isfinite(pair.fidelity_bound):
        return f"; the samples do not reach each other: fidelity at most about {pair.fidelity_bound:.2g}"
    return ""


def _carried(pair: Pair) -> str:
    if not pair.carriers:
        return ""
    most = max(pair.carriers, key=lambda c: abs(c.shift))
    return (
        f"; feature {most.feature} of {pair.names[most.side]} at {most.layer} carries it (shift {most.shift:+.1f} standard "
        f"deviations, follows {most.observable} with r = {most.pearson:+.2f})"
    )
