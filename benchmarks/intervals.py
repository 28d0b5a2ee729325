"""Do the intervals cover? Replicas of whole measurements on 12 sites, whose true values are sums over all configurations.

    python benchmarks/intervals.py                       # 1000 replicas, 60 and 240 chains; some minutes on a core
    python benchmarks/intervals.py --replicas 200 --chains 60

A network, its dictionary, its controls and its directions stand fixed. Every replica draws Metropolis chains anew and computes
what the stages print, by the functions of the stages: means with standard errors (1.96 of them are the interval) and intervals
of correlations. The share of the replicas whose interval holds the true value should be 0.95; those without an interval, where
too few chains carry a feature, are counted apart. Chains are as many as a spec's test
chains; draws are one sweep apart, so that they are correlated. Results: ``benchmarks/results/intervals.md``.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np

from nqs_sae_service.engine.economy import Economy
from nqs_sae_service.engine.random import Stream
from nqs_sae_service.interpret import correlation, mbar, steering
from nqs_sae_service.interpret.directions import FeatureDirection
from nqs_sae_service.interpret.expectation import Exact, FreshSampling, on_samples, resampled, reweighted
from nqs_sae_service.interpret.gain import gain_over_controls
from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.physics.hamiltonians.tfim import Tfim
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.physics.observables import make_observable
from nqs_sae_service.sae.topk import TopK
from nqs_sae_service.sampling import Metropolis, Moves
from nqs_sae_service.states import Transformer
from nqs_sae_service.vmc.estimators import measure
from nqs_sae_service.vmc.statistics import covariance, mean_and_error

RESULTS = Path(__file__).parent / "results"
SITES, DRAWS, LAYER = 12, 8, "residual_1"
NAMES = ("abs_magnetization", "half_chain_correlation", "sigma_x", "local_energy")
STRENGTHS = np.array([-0.4, -0.2, 0.0, 0.2, 0.4])
BASE, FEATURES, CONTROLS, RESAMPLES = 2, 16, 4, 400
Interval = tuple[str, np.ndarray, np.ndarray, np.ndarray]  # what it is of, low, high, true value


def silent(message: str) -> None:
    """No progress within a replica."""


class Experiment:
    """Everything that stays fixed, and the true values."""

    def __init__(self) -> None:
        lattice = Chain(kind="chain", length=SITES).build()
        hamiltonian = Tfim(kind="tfim", h=1.0).build(lattice)
        self.observables = tuple(make_observable(name, lattice, hamiltonian) for name in NAMES)
        state = Transformer(patch=3, width=8, heads=2, layers=2, amplitude="positive").build(lattice)
        noise = 0.15 * np.random.default_rng(7).normal(size=state.n_parameters)
        self.psi = state.bind((state.initial_parameters(2) + noise).astype(np.float32))
        self.everything = all_configurations(SITES)
        self.exact = Exact(self.psi, self.observables, SITES)
        self.probability = self.exact.state.probability
        stream = self.psi.stream_at(self.everything, LAYER)
        rows = stream.reshape(-1, stream.shape[-1]).astype(np.float32)
        section = TopK(kind="topk", features=FEATURES, k=3, steps=400, seeds=[1])
        self.dictionary, _ = section.train(rows, 1, lambda done, total, message: None)
        self.centre = rows.mean(axis=0)
        generator = np.random.default_rng(3)
        self.projections = generator.normal(size=(rows.shape[1], CONTROLS)) / math.sqrt(rows.shape[1])
        of_all = self.candidates(self.everything)
        values = self.values(self.everything)
        self.r = self._exact_pearson(of_all, values)
        alive = of_all.std(axis=0) > 1e-6
        alive[FEATURES:] = False
        self.best = int(np.argmax(np.abs(self.r[:, 0]) * alive))
        vector = self.dictionary.decoder[self.best]
        self.direction = FeatureDirection(self.psi, LAYER, self.dictionary, self.best, vector, False)
        self.curve = self.exact.curve(self.direction.family(STRENGTHS))
        self.slopes = self.exact.slopes(self.direction.tangent(self.everything))
        self.process = Metropolis(SITES, Moves(0.1, 0.1), 0, Stream.SAMPLES)

    def candidates(self, sigma: np.ndarray) -> np.ndarray:
        """Features, then controls: ReLUs of random projections of the stream, averaged over tokens. (n, candidate)."""
        stream = self.psi.stream_at(sigma, LAYER).astype(np.float32)
        controls = np.maximum((stream - self.centre) @ self.projections, 0).mean(axis=1)
        return np.concatenate([self.dictionary.token_mean(stream), controls], axis=1)

    def values(self, sigma: np.ndarray) -> np.ndarray:
        """Local estimators (n, observable)."""
        return measure(self.psi, self.observables, sigma, self.psi.log_psi(sigma), Economy()).real

    def _exact_pearson(self, f: np.ndarray, o: np.ndarray) -> np.ndarray:
        p = self.probability[:, None]
        f, o = f - (p * f).sum(axis=0), o - (p * o).sum(axis=0)
        scale = np.sqrt((p * f**2).sum(axis=0)[:, None] * (p * o**2).sum(axis=0))
        return np.divide((p * f).T @ o, scale, out=np.zeros(scale.shape), where=scale > 1e-12)

    def draw(self, chains: int, replica: int) -> np.ndarray:
        """Samples (chain, draw, n_sites) of chains that start in equilibrium."""
        generator = np.random.default_rng((replica, chains))
        start = self.everything[generator.choice(len(self.probability), size=chains, p=self.probability)]
        process = Metropolis(SITES, self.process.moves, 1000 + replica, Stream.SAMPLES)
        walkers, drawn = process.start(self.psi, start, 0, 0), []
        for _ in range(DRAWS):
            process.sweep(self.psi, walkers)
            drawn.append(walkers.sigma.copy())
        return np.stack(drawn, axis=1)

    def replica(self, chains: int, replica: int) -> Iterator[Interval]:
        """All intervals of one measurement, each beside its true value."""
        sigma = self.draw(chains, replica)
        flat = sigma.reshape(-1, SITES)
        log_psi = self.psi.log_psi(flat).reshape(sigma.shape[:2])
        o = self.values(flat).reshape(*sigma.shape[:2], -1)
        mean, error = mean_and_error(o)
        yield "means and energy", *normal(mean, error), self.curve.mean[BASE]
        yield from self._correlations(sigma, o, replica)
        tangent = self.direction.tangent(flat).reshape(sigma.shape[:2])
        slope, error = covariance(tangent[..., None], o)
        yield "predicted slope", *normal(2 * slope, 2 * error), self.slopes
        family, true = self.direction.family(STRENGTHS), self.curve.mean - self.curve.mean[BASE]
        curve = reweighted(family, self.observables, sigma, log_psi, Economy(), silent)
        for point in (0, 4):
            found = normal(*steering.change(curve, point, BASE))
            yield "change, reweighted", *found, true[point]
        found = steering.derivatives(curve, STRENGTHS, BASE)
        yield "slope of the curve", *normal(found.slope, found.slope_error), self.slopes
        yield from self._fresh(flat, log_psi.reshape(-1), family, chains, replica, true)

    def _correlations(self, sigma: np.ndarray, o: np.ndarray, replica: int) -> Iterator[Interval]:
        candidates = self.candidates(sigma.reshape(-1, SITES)).reshape(*sigma.shape[:2], -1)
        features, controls = candidates[..., :FEATURES], candidates[..., FEATURES:]
        counts = correlation.chain_counts(len(sigma), RESAMPLES, np.random.default_rng((1, replica)))
        low, high = correlation.bootstrap_interval(features, o, counts, 0.95)
        often = np.abs(self.r[:FEATURES]).max(axis=1) > 0.05  # the others hardly ever fire
        yield "r of features", low[often], high[often], self.r[:FEATURES][often]
        chosen = np.repeat(features[..., [self.best]], o.shape[-1], axis=-1)
        series = np.moveaxis(np.repeat(controls[..., None], o.shape[-1], axis=-1), 2, 0)
        gain = gain_over_controls(chosen, series, o, counts, 0.95)
        true = np.abs(self.r[self.best]) - np.abs(self.r[FEATURES:]).max(axis=0)
        yield "gain over controls", gain.low, gain.high, true

    def _fresh(
        self, flat: np.ndarray, log_psi: np.ndarray, family, chains: int, replica: int, true: np.ndarray
    ) -> Iterator[Interval]:
        process = Metropolis(SITES, self.process.moves, 5000 + replica, Stream.STEERING)
        sampling = FreshSampling(process, chains, 5, 4, 1, Economy())
        drawn: list[np.ndarray] = []
        points = [
            resampled(
                self.direction.at(a), self.psi, self.observables, (flat, log_psi), sampling, 0, silent, drawn
            )
            for a in STRENGTHS
        ]
        curve = steering_curve(points)
        for point in (0, 4):
            yield "change, fresh samples", *normal(*steering.change(curve, point, BASE)), true[point]
        logs, values = zip(
            *(on_samples(family, self.observables, s, Economy(), silent) for s in drawn), strict=True
        )
        curve = mbar.pooled(np.stack(logs), np.stack(values), BASE)
        for point in (0, 4):
            yield "change, MBAR", *normal(*steering.change(curve, point, BASE)), true[point]


def steering_curve(points: list) -> steering.Curve:
    """The points on fresh samples as the stage joins them: chain by chain they used the same random numbers."""
    return steering.Curve.joined(points, True)


def normal(mean: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of a mean with its standard error."""
    return mean - 1.96 * error, mean + 1.96 * error


def measure_coverage(experiment: Experiment, chains: int, replicas: int) -> dict[str, np.ndarray]:
    """Whether the intervals hold the truth, of every quantity (replica, number): 1 or 0, NaN where there is no interval."""
    hits: dict[str, list[np.ndarray]] = defaultdict(list)
    for replica in range(replicas):
        found: dict[str, list[np.ndarray]] = defaultdict(list)
        for name, low, high, true in experiment.replica(chains, replica):
            found[name].append(np.where(np.isnan(low), np.nan, (low <= true) & (true <= high)).ravel())
        for name, parts in found.items():
            hits[name].append(np.concatenate(parts))
        if replica % 50 == 49:
            print(f"{chains} chains: {replica + 1} of {replicas} replicas", flush=True)
    return {name: np.array(rows) for name, rows in hits.items()}


def described(hits: np.ndarray) -> str:
    """Mean, smallest and largest share of the columns (replica, number), and how many replicas had no interval."""
    shares, without = np.nanmean(hits, axis=0), np.isnan(hits).mean()
    apart = f"; none in {100 * without:.1f} %" if without else ""
    return f"{shares.mean():.3f} ({shares.min():.3f} to {shares.max():.3f}){apart}"


def main() -> None:
    """Run and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--chains", default="60,240", help="numbers of chains, each a table column")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/intervals.md")
    arguments = parser.parse_args()
    experiment = Experiment()
    columns = [int(chains) for chains in arguments.chains.split(",")]
    covered = {c: measure_coverage(experiment, c, arguments.replicas) for c in columns}
    noise = math.sqrt(0.95 * 0.05 / arguments.replicas)
    lines = [
        "# Coverage of the 95 % intervals",
        "",
        f"{date.today()}, {arguments.replicas} replicas, {DRAWS} draws a chain one sweep apart, 12 sites. Share of the "
        "replicas whose interval holds the sum over all configurations: mean (smallest to largest) over the numbers of a "
        f"kind. One number alone scatters by {noise:.3f}.",
        "",
        "| interval of | numbers | " + " | ".join(f"{c} chains" for c in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for name, hits in covered[columns[0]].items():
        cells = [described(covered[c][name]) for c in columns]
        lines.append(f"| {name} | {hits.shape[1]} | " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.write:
        (RESULTS / "intervals.md").write_text(text)


if __name__ == "__main__":
    main()
