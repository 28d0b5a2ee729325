"""Stage ``heads``: which attention heads carry the physics. Only if asked for.

The science is in ``interpret/heads.py``. Samples of the test chains fall into disjoint sets. For every set, kind and probe one
counterfactual F is drawn, from samples of the select chains, and every head is patched by it. The heads are then knocked out on
samples of the select chains: strongest first, weakest first, in random orders.
"""

from __future__ import annotations

from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..datasets.schema import labelled
from ..engine.arrays import to_host
from ..errors import UserError
from ..interpret.counterfactuals import REGION, SECTOR, Counterfactual, distant, region, sector
from ..interpret.expectation import from_ratios, on_samples
from ..interpret.heads import (
    ENERGY,
    INFIDELITY,
    LOG_PSI,
    PATHS,
    Heads,
    Knocked,
    Patched,
    area,
    effects,
    knocked_sets,
    mean_of_known,
    mean_outputs,
    rank_correlation,
    ranks,
    scores,
    tangents_of_heads,
)
from ..interpret.steering import relative_deviation
from ..physics.observables import make_observable
from ..physics.strings import nearest_sites
from ..vmc.estimators import measure
from .cost import Cost, network_flops, seconds_for
from .inputs import economy_of, of_chains, projection_attributes, trained
from .stage import Context, Stage

if TYPE_CHECKING:
    from ..physics.observables import Observable
    from ..spec import Spec

_BLOCK = 64  # samples between checkpoints
_REGION = 0.25  # share of the sites
_STEPS = 6  # of a curve of knock-outs
_STRONGEST, _WEAKEST = "strongest first", "weakest first"


def run(context: Context) -> xr.Dataset:
    """Patching block by block of samples, then knock-outs; a checkpoint after each block keeps what is done."""
    programme = _Programme(context)
    programme.patch()
    programme.knock_out()
    return programme.dataset()


class _Programme:
    """Samples, networks, and the numbers of every sample being filled in.

    Arrays over (set, kind, probe, sample, ...): ``logs`` and ``values`` of the ``Patched`` family, ``other`` log|psi(F)|,
    ``tangents``; ``own`` local estimators (set, sample, observable). Over samples of the select chains ``knocked_logs`` and
    ``knocked_energies`` of every set of heads.
    """

    def __init__(self, context: Context) -> None:
        self.context, self.spec, self.options = context, context.spec, context.spec.heads
        self.psi, self.lattice = trained(context), context.spec.lattice.build()
        self.hamiltonian = self.spec.hamiltonian.build(self.lattice)
        edges = tuple(name for name in self.psi.state.layers if name.startswith("heads_"))
        self.heads = Heads(edges, self.spec.state.heads, self.psi.state.width)
        phase = self.psi.state.complex_amplitude
        samples = context.upstream["samples"]
        sigma, log_psi = of_chains(samples, "test", self.options.samples, phase)
        self.sigma, self.log_psi = (disjoint(array, self.options.sets) for array in (sigma, log_psi))
        self.chains = self.sigma.shape[1:3]
        self.other_chains = of_chains(samples, "select", self.options.samples, phase)[0]
        self.results = context.restore() or self._empty()

    @cached_property
    def observables(self) -> tuple[Observable, ...]:
        """Those of the readouts that are measured, in their order."""
        names = [name for name in self.options.readouts if name not in (LOG_PSI, INFIDELITY)]
        names = ["local_energy" if name == ENERGY else name for name in names]
        return tuple(make_observable(name, self.lattice, self.hamiltonian) for name in names)

    @property
    def _energy(self) -> Observable:
        return make_observable("local_energy", self.lattice, self.hamiltonian)

    @cached_property
    def _per_set(self) -> int:
        return self.chains[0] * self.chains[1]

    def _empty(self) -> dict[str, np.ndarray]:
        options, n = self.options, self._per_set
        probes = (options.sets, len(options.counterfactuals), options.probes, n)
        columns, measured = 2 + len(PATHS) * int(np.prod(self.heads.shape)), len(self.observables)
        scalar = np.complex128 if self.psi.state.complex_amplitude else np.float64
        sets, others = len(self.counts) * (2 + options.orders), self._select.shape[0]
        return {
            "own": np.zeros((options.sets, n, measured), np.complex128),
            "logs": np.zeros((*probes, columns), scalar),
            "values": np.zeros((*probes, columns, measured)),
            "other": np.zeros(probes),
            "tangents": np.zeros((*probes, *self.heads.shape), scalar),
            "knocked_logs": np.zeros((others, sets), scalar),
            "knocked_energies": np.zeros((others, sets)),
            "done": np.zeros(self.n_blocks, bool),
        }

    @property
    def _select(self) -> np.ndarray:
        """Samples (n, n_sites) of the select chains."""
        return self.other_chains.reshape(-1, self.other_chains.shape[-1])

    @cached_property
    def counts(self) -> np.ndarray:
        """How many heads are knocked out, (point,) from none to all."""
        every = int(np.prod(self.heads.shape))
        return np.unique(np.linspace(0, every, _STEPS + 1).round().astype(int))

    @cached_property
    def _patch_blocks(self) -> list[tuple[int, int, int, int]]:
        """(set, kind, probe, first sample) of every block."""
        options = self.options
        shape = (options.sets, len(options.counterfactuals), options.probes)
        return [(*unit, first) for unit in np.ndindex(*shape) for first in range(0, self._per_set, _BLOCK)]

    @cached_property
    def n_blocks(self) -> int:
        """Of samples, in both parts."""
        return len(self._patch_blocks) + -(-len(self._select) // _BLOCK)

    def tick(self, _: str = "") -> None:
        """Nothing is lost but the block at hand."""
        done = self.results["done"]
        part = "patching" if done.sum() < len(self._patch_blocks) else "knock-outs"
        self.context.tick(int(done.sum()), done.size, part, lambda: self.results)

    def counterfactual(self, number: int, kind: int, probe: int) -> Counterfactual:
        """F of a set, kind and probe."""
        name = self.options.counterfactuals[kind]
        generator = np.random.default_rng((self.options.seed, number, kind, probe))
        n_sites, fixed = self.lattice.n_sites, self.spec.sampling.fixed_magnetization is not None
        if name == SECTOR:
            staggered = 1.0 - 2.0 * self.lattice.sublattice
            return sector(staggered if fixed else np.ones(n_sites), self._select, generator)
        if name == REGION:
            centre = np.asarray([generator.integers(n_sites)])
            size = max(2, round(_REGION * n_sites))
            return region(np.asarray(nearest_sites(self.lattice, centre, size)), n_sites, fixed)
        return distant(self._select, generator)

    def patch(self) -> None:
        """Fill in what the scores are made of."""
        economy, put = economy_of(self.spec), self.context.device.put
        for block, (number, kind, probe, first) in enumerate(self._patch_blocks):
            if self.results["done"][block]:
                continue
            self.tick()
            some = slice(first, first + _BLOCK)
            at = (number, kind, probe, some)
            flat = self.sigma[number].reshape(self._per_set, -1)[some]
            sigma = put(np.ascontiguousarray(flat))
            counterfactual = self.counterfactual(number, kind, probe)
            family = Patched(self.psi, self.heads, counterfactual, self.tick)
            if self.observables:
                logs, values = on_samples(family, self.observables, sigma[None], economy, self.tick)
                self.results["logs"][at], self.results["values"][at] = logs[0], values[0]
            else:
                self.results["logs"][at] = to_host(family.log_psi(sigma))
            self.results["other"][at] = to_host(self.psi.log_psi(counterfactual.of(sigma))).real
            self.results["tangents"][at] = tangents_of_heads(self.psi, self.heads, counterfactual, sigma)
            if self.observables and kind == probe == 0:
                log_psi = put(self.log_psi[number].reshape(-1)[some])
                own = measure(self.psi, self.observables, sigma, log_psi, economy)
                self.results["own"][number, some] = to_host(own)
            self.results["done"][block] = True

    def effects(self) -> tuple[np.ndarray, ...]:
        """IE patched (sub-probe, kind, path, readout, block, head) and predicted, effects (sub-probe, kind, readout).

        The sub-probes of one set stand together.
        """
        results, options = self.results, self.options
        shape = results["other"].shape[:3]
        found = []
        for number, kind, probe in np.ndindex(*shape):
            logs, values, other, tangents = (
                results[name][number, kind, probe].reshape(*self.chains, *results[name].shape[4:])
                for name in ("logs", "values", "other", "tangents")
            )
            curve = from_ratios(logs - logs[..., :1], values)
            own = results["own"][number].reshape(*self.chains, -1)
            of_logs = (logs.real, other)
            found.append(effects(options.readouts, curve, of_logs, tangents, own, self.heads))
        arrays = (
            np.stack([getattr(one, name) for one in found]) for name in ("patched", "predicted", "whole")
        )
        return tuple(
            a.reshape(*shape, *a.shape[1:]).swapaxes(1, 2).reshape(-1, shape[1], *a.shape[1:]) for a in arrays
        )

    @cached_property
    def scored(self) -> dict[str, Any]:
        """All variables but those of the knock-outs, and attributes under names of their own."""
        patched, predicted, whole = self.effects()
        receiver, sender, total = np.moveaxis(patched, 2, 0)
        threshold, probes = self.options.threshold, self.options.probes
        found = scores(receiver, sender, threshold)
        of_sets = np.stack(
            [
                scores(receiver[first : first + probes], sender[first : first + probes], threshold).mean
                for first in range(0, len(receiver), probes)
            ]
        )
        by_gradient = scores(predicted, 0 * predicted, threshold).mean
        gradient, total = mean_of_known(predicted), mean_of_known(total)
        return {
            "receiver": mean_of_known(receiver),
            "sender": mean_of_known(sender),
            "total": total,
            "gradient": gradient,
            "effect": np.sqrt((whole**2).mean(axis=0)),
            "resolved": np.isfinite(receiver[..., 0, 0]).mean(axis=0),
            "kappa": found.kappa,
            "raw_score": found.raw,
            "score": found.scaled,
            "mean_score": found.mean,
            "set_score": of_sets,
            "rank": ranks(found.mean),
            "gradient_score": by_gradient,
            "gradient_agreement": np.array(
                [
                    [rank_correlation(abs(a), abs(b)) for a, b in zip(*of_kind, strict=True)]
                    for of_kind in zip(gradient, total, strict=True)
                ]
            ),
        }

    @cached_property
    def orders(self) -> np.ndarray:
        """Numbers of the heads (order, head) as they are knocked out."""
        strongest = np.argsort(self.scored["rank"].ravel())
        generator = np.random.default_rng((self.options.seed, len(strongest)))
        random = [generator.permutation(len(strongest)) for _ in range(self.options.orders)]
        return np.stack([strongest, strongest[::-1], *random])

    @cached_property
    def _knocked(self) -> tuple[np.ndarray, np.ndarray]:
        """Different sets of heads (set, block, head), and which one every point (order, point) is; no head is the first."""
        chosen = knocked_sets(self.orders, self.counts)
        sets, place = np.unique(chosen.reshape(-1, chosen.shape[-1]), axis=0, return_inverse=True)
        return sets.reshape(-1, *self.heads.shape), place.reshape(chosen.shape[:2])

    def knock_out(self) -> None:
        """Fill in what the curves are made of."""
        sets, _ = self._knocked
        first_block, put, economy = len(self._patch_blocks), self.context.device.put, economy_of(self.spec)
        select = put(np.ascontiguousarray(self._select))
        mean = mean_outputs(self.psi, self.heads, select)
        family = Knocked(self.psi, self.heads, sets, mean, self.tick)
        for block in range(first_block, self.n_blocks):
            if self.results["done"][block]:
                continue
            self.tick()
            first = (block - first_block) * _BLOCK
            some = slice(first, first + _BLOCK)
            logs, energies = on_samples(family, [self._energy], select[None, some], economy, self.tick)
            self.results["knocked_logs"][some, : len(sets)] = logs[0]
            self.results["knocked_energies"][some, : len(sets)] = energies[0, ..., 0]
            self.results["done"][block] = True

    def curves(self) -> dict[str, np.ndarray]:
        """What happens along every order (order, point)."""
        sets, place = self._knocked
        logs, energies = (
            self.results[name][:, : len(sets)].reshape(*self.other_chains.shape[:2], -1)
            for name in ("knocked_logs", "knocked_energies")
        )
        curve = from_ratios(logs - logs[..., :1], energies[..., None])
        deviation, error = relative_deviation(curve, 0)
        infidelity = curve.infidelity[place]
        return {
            "infidelity": infidelity,
            "energy_change": deviation[place],
            "energy_change_error": error[place],
            "ess": curve.ess[place],
            "area": area(infidelity, self.counts),
        }

    def dataset(self) -> xr.Dataset:
        """heads.nc."""
        blocks, count = self.heads.shape
        scored, orders = self.scored, range(1, self.options.orders + 1)
        coordinates = {
            "counterfactual": list(self.options.counterfactuals),
            "readout": list(self.options.readouts),
            "block": np.arange(1, blocks + 1),
            "head": np.arange(1, count + 1),
            "sample_set": np.arange(1, self.options.sets + 1),
            "order": [_STRONGEST, _WEAKEST, *(f"random {number}" for number in orders)],
            "knocked": self.counts,
        }
        pairs = [rank_correlation(a, b) for a, b in combinations(scored["set_score"], 2)]
        attributes = {
            "samples": self.options.sets * self._per_set,
            "knock_out_samples": len(self._select),
            "knocked_out_by": "the mean output over these samples, for every token and channel",
            "threshold": self.options.threshold,
            "stability": float(np.mean(pairs)) if pairs else float("nan"),
            "gradient_rank_correlation": rank_correlation(scored["gradient_score"], scored["mean_score"]),
            **projection_attributes(self.psi.state),
        }
        return labelled("heads", scored | self.curves(), coordinates, attributes)


def disjoint(array: np.ndarray, sets: int) -> np.ndarray:
    """(chain, draw, ...) as (set, chain, draw, ...) of equal sets: of whole chains or, where they are fewer, of draws.

    What does not divide is left out. Raises UserError where there are fewer of both.
    """
    chains, draws = array.shape[:2]
    if chains >= sets:
        kept = array[: chains // sets * sets]
        return kept.reshape(sets, chains // sets, *array.shape[1:])
    if draws < sets:
        what = f"heads.sets = {sets}, but the test chains have {chains} chains of {draws} of these samples: lower it, or raise"
        raise UserError(f"{what} heads.samples")
    kept = array[:, : draws // sets * sets]
    return kept.reshape(chains, sets, draws // sets, *array.shape[2:]).swapaxes(0, 1)


def wanted(spec: Spec) -> bool:
    """Only where the section asks for it."""
    return bool(spec.heads.wanted)


def estimate(spec: Spec) -> Cost:
    """Three paths of every head, and every knock-out, on all samples and what their energies are connected with."""
    lattice, options = spec.lattice.build(), spec.heads
    connected = spec.hamiltonian.build(lattice).n_connected + 1
    measured = len([name for name in options.readouts if name not in (LOG_PSI, INFIDELITY)])
    every = spec.state.heads * spec.state.layers
    columns = 2 + len(PATHS) * every
    probes = len(options.counterfactuals) * options.probes * options.samples
    rows = probes * (connected if measured else 1) * columns / 2
    rows += options.samples * connected * min(every, _STEPS) * (2 + options.orders) + 6.0 * probes
    held = 16.0 * probes * columns * (1 + measured)
    seconds = 1.0 + seconds_for(network_flops(spec, ("heads",)) * rows)
    disk = 8.0 * len(options.counterfactuals) * len(options.readouts) * every * 8 + 1e5
    return Cost(seconds, disk, 3 * held + 1e8)


STAGE = Stage(
    name="heads",
    reads=("lattice", "hamiltonian", "state", "sampling", "heads"),
    upstream=("ground_state", "samples"),
    version=1,
    run=run,
    estimate=estimate,
    wanted=wanted,
)
