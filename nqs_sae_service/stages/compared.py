"""Trained states with one Hamiltonian compared pair by pair, from the files of their stages: no stage, it belongs to no run.

The science is in ``interpret/alarm.py``; ``report/comparison.py`` says which points of a sweep are compared, and keeps what
comes out.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..datasets.netcdf import read_attributes, read_stage
from ..datasets.schema import labelled
from ..engine.random import Stream
from ..interpret import alarm
from ..interpret.alarm import Carrier, Difference, Pair
from ..interpret.correlation import pearson, varies
from ..physics.exact import all_configurations, sector
from ..physics.hamiltonians import HAMILTONIANS
from ..physics.lattices import LATTICES
from ..physics.observables import observable_kind
from ..sae.dictionary import Dictionary
from ..sampling import process_of
from ..spec.sampling import Sampling
from ..vmc.estimators import local_values
from ..vmc.statistics import mean_and_error, v_score, weighted_mean
from .inputs import born_samples
from .starts import sections_of, state_of

if TYPE_CHECKING:
    from ..physics.lattices import Lattice
    from ..states import Wavefunction

MOST_SAMPLES = 4096  # of each point, on which networks are evaluated
MOST_FEATURES = 2048  # of a dictionary, that are matched
CHECK_SITES, CHECK_SAMPLES, CHECK_BURN_IN = 64, 2048, 20
CHECK_EXPONENT = 0.5
SIDES = ("first", "second")
_BLOCK = 1024  # samples in a network call


@dataclass(frozen=True)
class Compared:
    """A trained state with its samples: configurations (chain, draw, spin), log psi (chain, draw), thinned to few draws.

    ``values`` (chain, draw, observable), all of them.
    """

    label: str
    directory: Path
    sections: Mapping[str, Any]
    attributes: Mapping[str, Any]
    psi: Wavefunction
    lattice: Lattice
    sigma: np.ndarray
    log_psi: np.ndarray
    values: np.ndarray
    observables: list[str]
    every: int

    @classmethod
    def read(cls, label: str, directory: Path) -> Compared:
        """From the stage files of a run directory."""
        with (
            read_stage(directory / "ground_state.nc") as ground_state,
            read_stage(directory / "samples.nc") as samples,
            read_stage(directory / "observables.nc") as observables,
        ):
            state = state_of(ground_state)
            sigma, log_psi = born_samples(samples, state.complex_amplitude)
            every = max(1, -(-sigma.shape[0] * sigma.shape[1] // MOST_SAMPLES))
            return cls(
                label,
                directory,
                sections_of(ground_state),
                dict(ground_state.attrs),
                state.bind(ground_state["parameters"].values),
                _lattice(sections_of(ground_state)),
                np.ascontiguousarray(sigma[:, ::every]),
                np.ascontiguousarray(log_psi[:, ::every]),
                observables["value"].values,
                [str(name) for name in observables["observable"].values],
                every,
            )

    @property
    def energy(self) -> float:
        """Total, in J."""
        return float(self.attributes["final_energy"])

    @property
    def energy_error(self) -> float:
        """Its standard error."""
        return float(self.attributes.get("final_energy_error", np.nan))

    @property
    def v_score(self) -> float:
        """NaN where it is not known."""
        return float(self.attributes.get("v_score", np.nan))

    @property
    def magnetization(self) -> int | None:
        """The conserved sum of all sigma^z, None where it is free."""
        fixed = self.sections["sampling"].get("magnetization")
        return fixed if isinstance(fixed, int) else None

    def log_psi_on(self, sigma: np.ndarray) -> np.ndarray:
        """log psi (...,) of configurations (..., spin)."""
        flat = sigma.reshape(-1, sigma.shape[-1])
        parts = [self.psi.log_psi(flat[i : i + _BLOCK]) for i in range(0, len(flat), _BLOCK)]
        return np.concatenate(parts).reshape(sigma.shape[:-1])

    @cached_property
    def dictionaries(self) -> dict[str, Dictionary]:
        """The dictionary of the first seed of every layer; none where there are none, or too large ones."""
        path = self.directory / "sae.nc"
        if not path.is_file():
            return {}
        with read_stage(path) as sae:
            if sae.sizes["feature"] > MOST_FEATURES:
                return {}
            seed = sae["sae_seed"].values[0]
            return {str(layer): Dictionary.from_dataset(sae, layer, seed) for layer in sae["layer"].values}

    @cached_property
    def pooled(self) -> bool:
        """Whether a dictionary sees the mean over tokens."""
        return read_attributes(self.directory / "sae.nc").get("input") == "pooled"

    def features_on(self, layer: str, sigma: np.ndarray) -> np.ndarray:
        """Activations (chain, draw, feature) of the dictionary of a layer, on any configurations (chain, draw, spin)."""
        flat, dictionary = sigma.reshape(-1, sigma.shape[-1]), self.dictionaries[layer]
        parts = []
        for i in range(0, len(flat), _BLOCK):
            x = np.asarray(self.psi.activations(flat[i : i + _BLOCK], [layer])[layer], np.float32)
            x = x.mean(axis=1, keepdims=True) if self.pooled else x
            parts.append(dictionary.token_mean(np.ascontiguousarray(x)))
        return np.concatenate(parts).reshape(*sigma.shape[:-1], -1)

    @cached_property
    def on_everything(self) -> np.ndarray:
        """log psi of all configurations, of the sector of the samples if there is one."""
        everything = all_configurations(self.lattice.n_sites)
        if self.magnetization is not None:
            everything = everything[sector(everything, self.magnetization)]
        return self.log_psi_on(everything)

    @cached_property
    def flip_balance(self) -> tuple[float, float]:
        """See ``alarm.flip_balance``; NaN where the flipped configurations are not those of the state."""
        if self.magnetization:
            return np.nan, np.nan
        return alarm.flip_balance(self.sigma, self.log_psi, self.log_psi_on(-self.sigma))

    @cached_property
    def check(self) -> tuple[float, float, float, float]:
        """Energy (total) and V-score, each with its error, from weighted samples of |psi|^(2 b); NaN on large lattices.

        b = ``CHECK_EXPONENT``.
        """
        if self.lattice.n_sites > CHECK_SITES:
            return np.nan, np.nan, np.nan, np.nan
        options = _record(Sampling, self.sections["sampling"])
        if options.method == "direct":
            options = options.model_copy(update={"method": "metropolis"})
        hamiltonian = _record(
            HAMILTONIANS[self.sections["hamiltonian"]["kind"]], self.sections["hamiltonian"]
        )
        process = process_of(options, self.lattice, 1, Stream.CHECK, exponent=CHECK_EXPONENT)
        start = self.sigma[:, -1]
        chains = process.start(self.psi, np.ascontiguousarray(start[:CHECK_SAMPLES]))
        for _ in range(CHECK_BURN_IN):
            process.sweep(self.psi, chains)
        sigma, log_psi = process.draws(self.psi, chains, max(2, CHECK_SAMPLES // len(start)), options.sweeps)
        operator = hamiltonian.build(self.lattice)
        flat = sigma.reshape(-1, sigma.shape[-1])
        local = local_values(self.psi, [operator], flat, log_psi.reshape(-1))[0].reshape(log_psi.shape)
        log_weight = 2 * (1 - CHECK_EXPONENT) * log_psi.real.astype(np.float64)
        weight = np.exp(log_weight - log_weight.max())
        energy, error = weighted_mean(local.real, weight)
        scores = v_score(float(energy), 1.0, self.lattice.n_sites) * np.abs(local - energy) ** 2
        score, score_error = weighted_mean(scores, weight)
        return float(energy), float(error), float(score), float(score_error)


def _record(record: Any, section: Mapping[str, Any]) -> Any:
    return record.model_validate_json(json.dumps(section))


def _lattice(sections: Mapping[str, Any]) -> Lattice:
    return _record(LATTICES[sections["lattice"]["kind"]], sections["lattice"]).build()


@dataclass(frozen=True)
class Layer:
    """The dictionaries of one layer of two states, on the samples of both: matches, shifts (one for each side), carriers."""

    name: str
    partner: np.ndarray
    pearson: np.ndarray
    unmatched: tuple[int, int]
    shifts: list[Difference]
    carriers: list[Carrier | None]


def compared(groups: Sequence[Mapping[str, Path]]) -> xr.Dataset:
    """All points (label -> run directory) and all pairs of all groups. Foreign files raise what they may."""
    points: list[Compared] = []
    pairs: list[tuple[Compared, Compared, Pair, list[Layer]]] = []
    read = [[Compared.read(*point) for point in group.items()] for group in groups]
    comparisons = sum(
        len(set(a.observables) & set(b.observables))
        for group in read
        for a, b in itertools.combinations(group, 2)
    )
    for group in read:
        points += group
        pairs += [(a, b, *_pair(a, b, comparisons)) for a, b in itertools.combinations(group, 2)]
    return _dataset(points, pairs)


def _pair(a: Compared, b: Compared, comparisons: int) -> tuple[Pair, list[Layer]]:
    names = [name for name in a.observables if name in b.observables]
    values = [s.values[..., [s.observables.index(name) for name in names]] for s in (a, b)]
    found = alarm.difference(*values)
    draws = min(a.sigma.shape[1], b.sigma.shape[1])
    thinned = [v[:, :: s.every][:, :draws] for s, v in zip((a, b), values, strict=True)]
    layers = list(_layers(a, b, draws, np.concatenate(thinned), names))
    pair = alarm.Pair(
        (a.label, b.label),
        (a.energy, b.energy),
        (a.energy_error, b.energy_error),
        (a.v_score, b.v_score),
        names,
        found.counts(comparisons),
        found,
        *_fidelities(a, b, names, values),
        [carrier for layer in layers for carrier in layer.carriers if carrier is not None],
    )
    return pair, layers


def _fidelities(
    a: Compared, b: Compared, names: list[str], values: list[np.ndarray]
) -> tuple[Any, float, float]:
    """Estimate, exact value (NaN on larger lattices), bound (NaN without a diagonal observable)."""
    if a.magnetization != b.magnetization and None not in (a.magnetization, b.magnetization):
        return alarm.Fidelity(0.0, 0.0, 0.0), 0.0, 0.0
    on_a, on_b = a.log_psi_on(b.sigma) - b.log_psi, b.log_psi_on(a.sigma) - a.log_psi
    estimate = alarm.fidelity(on_b, on_a)
    same = a.magnetization == b.magnetization and a.lattice.n_sites <= alarm.MOST_EXACT_SITES
    exact = alarm.exact_fidelity(a.on_everything, b.on_everything) if same else np.nan
    diagonal = [i for i, name in enumerate(names) if observable_kind(name, a.lattice) == "diagonal"]
    bounds = [alarm.fidelity_bound(*(v[..., i] for v in values)) for i in diagonal]
    return estimate, exact, min(bounds, default=np.nan)


def _layers(a: Compared, b: Compared, draws: int, values: np.ndarray, names: list[str]) -> Iterator[Layer]:
    """Every layer that both networks have in the same width; ``values`` (chain of a or b, draw, observable)."""
    for name in a.dictionaries:
        if name not in b.dictionaries or a.dictionaries[name].width != b.dictionaries[name].width:
            continue
        both = [[s.features_on(name, o.sigma[:, :draws]) for o in (a, b)] for s in (a, b)]
        union = [np.concatenate(parts) for parts in both]
        partner, r = alarm.match(*union)
        live = [int(varies(f).sum()) for f in union]
        matched = int((partner >= 0).sum())
        shifts = [alarm.difference(*parts) for parts in both]
        carriers = [
            alarm.carrier(shift, pearson(f, values), names, side, name) if names else None
            for side, (shift, f) in enumerate(zip(shifts, union, strict=True))
        ]
        yield Layer(name, partner, r, (live[0] - matched, live[1] - matched), shifts, carriers)


def _dataset(points: list[Compared], pairs: list[tuple[Compared, Compared, Pair, list[Layer]]]) -> xr.Dataset:
    names = list(dict.fromkeys(name for point in points for name in point.observables))
    layer_names = list(dict.fromkeys(layer.name for *_, layers in pairs for layer in layers))
    features = max((len(s.p) for *_, layers in pairs for layer in layers for s in layer.shifts), default=0)
    of_points = {
        name: np.full((len(points), len(names)), np.nan) for name in ("observable_mean", "observable_error")
    }
    for row, point in enumerate(points):
        columns = [names.index(name) for name in point.observables]
        for name, moment in zip(of_points, mean_and_error(point.values), strict=True):
            of_points[name][row, columns] = moment
    gaps = np.asarray([alarm.energy_gap(pair.energy, pair.energy_error) for _, _, pair, _ in pairs])
    variables: dict[str, Any] = of_points | {
        "directory": _texts([point.directory.name for point in points]),
        "energy": [point.energy for point in points],
        "energy_error": [point.energy_error for point in points],
        "v_score": [point.v_score for point in points],
        "check_energy": [point.check[0] for point in points],
        "check_energy_error": [point.check[1] for point in points],
        "check_v_score": [point.check[2] for point in points],
        "check_v_score_error": [point.check[3] for point in points],
        "flip_balance": [point.flip_balance[0] for point in points],
        "flip_balance_error": [point.flip_balance[1] for point in points],
        "first": _texts([pair.names[0] for _, _, pair, _ in pairs]),
        "second": _texts([pair.names[1] for _, _, pair, _ in pairs]),
        "energy_difference": gaps[:, 0],
        "energy_difference_error": [np.hypot(*pair.energy_error) for _, _, pair, _ in pairs],
        "relative_energy_difference": gaps[:, 1],
        "nearly_degenerate": np.asarray([pair.near for _, _, pair, _ in pairs], np.int8),
        "fidelity": [pair.fidelity.value for _, _, pair, _ in pairs],
        "fidelity_error": [pair.fidelity.error for _, _, pair, _ in pairs],
        "closure": [pair.fidelity.closure for _, _, pair, _ in pairs],
        "fidelity_exact": [pair.fidelity_exact for _, _, pair, _ in pairs],
        "fidelity_bound": [pair.fidelity_bound for _, _, pair, _ in pairs],
        "verdict": _texts([alarm.verdict(pair) for _, _, pair, _ in pairs]),
    }
    variables |= _of_observables(pairs, names) | _of_features(pairs, layer_names, features)
    coordinates = {
        "point": _texts([point.label for point in points]),
        "pair": _texts([" | ".join(pair.names) for _, _, pair, _ in pairs]),
        "side": _texts(list(SIDES)),
        "observable": _texts(names),
        "layer": _texts(layer_names),
    }
    return labelled("comparison", variables, coordinates)


def _of_observables(
    pairs: list[tuple[Compared, Compared, Pair, list[Layer]]], names: list[str]
) -> dict[str, Any]:
    """The variables over (pair, observable)."""
    tables = {
        name: np.full((len(pairs), len(names)), np.nan)
        for name in ("observable_difference", "z", "p_value", "effect")
    }
    differs = np.zeros((len(pairs), len(names)), np.int8)
    comparisons = sum(len(pair.observables) for _, _, pair, _ in pairs)
    for row, (_, _, pair, _) in enumerate(pairs):
        columns, found = [names.index(name) for name in pair.observables], pair.found
        parts = (found.mean[0] - found.mean[1], found.z, found.adjusted(comparisons), found.effect)
        for name, part in zip(tables, parts, strict=True):
            tables[name][row, columns] = part
        differs[row, columns] = pair.differing
    return tables | {"differs": differs}


def _of_features(
    pairs: list[tuple[Compared, Compared, Pair, list[Layer]]], names: list[str], features: int
) -> dict[str, Any]:
    """The variables over (pair, layer, ...)."""
    one, both = (len(pairs), len(names)), (len(pairs), len(SIDES), len(names))
    tables: dict[str, Any] = {
        "matched_features": np.full(one, np.nan),
        "unmatched_features": np.full(both, np.nan),
        "partner": np.full((*one, features), -1),
        "partner_pearson": np.full((*one, features), np.nan),
        "feature_shift": np.full((*both, features), np.nan),
        "feature_shift_z": np.full((*both, features), np.nan),
        "carrier": np.full(both, -1),
        "carrier_observable": np.full(both, "", dtype=object),
        "carrier_pearson": np.full(both, np.nan),
    }
    for row, (*_, layers) in enumerate(pairs):
        for layer in layers:
            at, count = names.index(layer.name), len(layer.partner)
            tables["matched_features"][row, at] = (layer.partner >= 0).sum()
            tables["unmatched_features"][row, :, at] = layer.unmatched
            tables["partner"][row, at, :count] = layer.partner
            tables["partner_pearson"][row, at, :count] = layer.pearson
            for side, (shift, carrier) in enumerate(zip(layer.shifts, layer.carriers, strict=True)):
                tables["feature_shift"][row, side, at, : len(shift.p)] = shift.effect
                tables["feature_shift_z"][row, side, at, : len(shift.p)] = shift.z
                if carrier is not None:
                    tables["carrier"][row, side, at] = carrier.feature
                    tables["carrier_observable"][row, side, at] = carrier.observable
                    tables["carrier_pearson"][row, side, at] = carrier.pearson
    return tables


def _texts(values: list[str]) -> np.ndarray:
    return np.asarray(values, dtype=object)
