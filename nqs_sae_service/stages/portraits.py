"""The tables of features.nc that show what features are like: other seeds, neighbours, examples, symmetries.

Neighbours are those of every feature, in a dictionary of more than 8192 features only those of the best ones. Examples and
symmetries are those of the best feature of every observable.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..interpret import behaviour, examples, subspaces
from ..interpret.controls import chosen
from ..physics.lattices import Lattice
from ..sae.dictionary import Dictionary
from ..sae.metrics import MATCHED_FEATURES, activation_correlation, activation_variance, pair_correlation
from .experiment import Experiment, Layer

Tables = dict[str, Any]

ROWS = 2**15  # correlations of activations to half a percent
NEIGHBOURS, EXAMPLES, ANGLES = 5, 8, 16
_CONFIGURATIONS = 2048  # on which a symmetry is tried, of the select and of the test chains
_RANDOM = 200  # pairs of random subspaces
_ENCODED = (
    2**31
)  # rows x features that are encoded for one correlation: fewer rows of a very large dictionary


def portraits(
    layer: Layer,
    dictionary: Dictionary,
    f: dict[str, NDArray],
    best: NDArray[np.int64],
    live: NDArray[np.bool_],
) -> Tables:
    """From the features ``f`` (chain, draw, feature) of the select and the test chains, and the best ones (observable,)."""
    x = layer.sample("test", min(ROWS, max(1, _ENCODED // dictionary.n_features)))
    return (
        _subspaces(layer, dictionary, x)
        | _nearest(layer, dictionary, x, best, live)
        | _examples(layer, dictionary, f["test"], best)
        | _behaviour(layer, dictionary, f, best)
    )


def geometry(experiment: Experiment) -> Tables:
    """Where sites are, and which token shows them: -1 unless every site is a part of exactly one token."""
    lattice: Lattice = experiment.context.spec.lattice.build()
    sites = experiment.state.sites
    token = np.full(lattice.n_sites, -1)
    if len(sites) > 1 and np.array_equal(np.sort(sites, axis=None), np.arange(lattice.n_sites)):
        token[sites] = np.arange(len(sites))[:, None]
    places = lattice.positions if lattice.dimensions else np.arange(lattice.n_sites)[:, None]
    return {"site_position": np.asarray(places, np.float64), "site_token": token}


def _subspaces(layer: Layer, dictionary: Dictionary, x: NDArray) -> Tables:
    """Principal angles with the dictionaries of the other seeds, and those of chance."""
    experiment, others = layer.experiment, layer.other_dictionaries
    angles = np.full((1 + len(others), ANGLES), np.nan)  # none of the first with itself
    p, random, alike = np.full(1 + len(others), np.nan), np.full(ANGLES, np.nan), np.full(ANGLES, np.nan)
    tables = {
        "subspace_angle": angles,
        "subspace_p_value": p,
        "subspace_angle_random": random,
        "subspace_angle_covariance": alike,
    }
    wanted = min(ANGLES, int(np.ceil(np.nan_to_num(layer.participation_ratio))))
    leading = subspaces.leading(activation_variance(dictionary, x), dictionary.decoder, wanted)
    if not len(leading) or not others:
        return tables
    known, rng = (
        slice(len(leading)),
        np.random.Generator(np.random.Philox(experiment.context.spec.features.seed).jumped()),
    )
    isotropic, of_inputs = (
        subspaces.of_random(len(leading), c, _RANDOM, rng)
        for c in (np.eye(layer.width), layer.moments.covariance)
    )
    random[known], alike[known] = isotropic.mean(axis=0), of_inputs.mean(axis=0)
    for i, other in enumerate(others, 1):
        partner = subspaces.partners(activation_correlation(dictionary, other, x, leading))
        angles[i, known] = subspaces.principal_angles(dictionary.decoder[leading], other.decoder[partner])
        p[i] = subspaces.p_value(angles[i, known], of_inputs)
        experiment.progress.tick()
    return tables


def _nearest(
    layer: Layer, dictionary: Dictionary, x: NDArray, best: NDArray[np.int64], live: NDArray[np.bool_]
) -> Tables:
    n_features = dictionary.n_features
    asked = np.flatnonzero(live) if n_features <= MATCHED_FEATURES else np.unique(best[best >= 0])
    found, cosine = subspaces.nearest(dictionary.decoder, asked, live, NEIGHBOURS)
    layer.experiment.progress.tick()
    numbers = np.full((n_features, NEIGHBOURS), -1, np.int32)
    similar, together = (np.full((n_features, NEIGHBOURS), np.nan, np.float32) for _ in range(2))
    numbers[asked], similar[asked] = found, cosine
    together[asked] = pair_correlation(dictionary, x, asked, found)
    return {
        "nearest_feature": numbers,
        "nearest_cosine": similar,
        "nearest_pearson": together,
    }


def _examples(layer: Layer, dictionary: Dictionary, f: NDArray, best: NDArray[np.int64]) -> Tables:
    """The most active test configurations of the best features; ``f`` (chain, draw, feature)."""
    experiment, shape = layer.experiment, (len(best), EXAMPLES)
    chains, observed = experiment.split["test"], experiment.observed["test"]
    sigma = experiment.spins(chains, slice(None))
    flat = sigma.reshape(-1, sigma.shape[-1])
    tables: Tables = {
        "top_configuration": np.zeros((*shape, flat.shape[1]), np.int8),
        "top_token": np.full(shape, -1),
    }
    tables |= {name: np.full(shape, np.nan) for name in ("top_activation", "top_value", "top_percentile")}
    for o, feature in enumerate(best):
        if feature < 0:
            continue
        active, value = f[..., feature].ravel(), observed[..., o].ravel()
        found = examples.most_active(active, flat, EXAMPLES)
        found = found[found >= 0]
        here = (o, slice(0, len(found)))
        tables["top_configuration"][here], tables["top_activation"][here] = flat[found], active[found]
        tables["top_value"][here] = value[found]
        tables["top_percentile"][here] = examples.percentile(value[found], value)
        if layer.stored.shape[2] > 1 and not layer.pooled:
            at = np.unravel_index(found, sigma.shape[:2])
            tables["top_token"][here] = [
                _token(layer, dictionary, int(feature), *place)
                for place in zip(chains[at[0]], at[1], strict=True)
            ]
        experiment.progress.tick()
    return tables


def _token(layer: Layer, dictionary: Dictionary, feature: int, chain: int, draw: int) -> int:
    """The token of a sample at which a feature is most active."""
    x = layer.stored.isel(chain=int(chain), draw=int(draw)).values.astype(np.float32)
    return int(dictionary.feature(x, feature).argmax())


def _behaviour(
    layer: Layer, dictionary: Dictionary, f: dict[str, NDArray], best: NDArray[np.int64]
) -> Tables:
    """The best features under every generator; partners are chosen on the select chains, all is measured on the test chains."""
    experiment, known = layer.experiment, best >= 0
    rows: list[Tables] = []
    for element in experiment.generators.values():
        here, there = {}, {}
        for part in ("select", "test"):
            chains, draws = experiment.some(part, _CONFIGURATIONS)
            sigma = experiment.spins(experiment.split[part][chains], draws)
            moved = sigma[..., element.permutations[0]] * element.flips[0]
            here[part] = f[part][chains, draws]
            there[part] = _activations(layer, dictionary, moved, best)
            experiment.progress.tick()
        own, partner = chosen(here["test"], best), behaviour.partner(here["select"], there["select"], best)
        image = behaviour.image_pearson(own, there["test"])
        of_partner = behaviour.image_pearson(chosen(here["test"], partner), there["test"])
        words = [behaviour.behaviour(*pair) for pair in zip(image, of_partner, strict=True)]
        rows.append(
            {
                "symmetry_pearson": np.where(known, image, np.nan),
                "symmetry_shift": np.where(known, behaviour.shift(own, there["test"]), np.nan),
                "symmetry_partner": partner,
                "symmetry_partner_pearson": np.where(partner >= 0, of_partner, np.nan),
                "symmetry_behaviour": np.where(known, words, ""),
            }
        )
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}


def _activations(layer: Layer, dictionary: Dictionary, sigma: NDArray, best: NDArray[np.int64]) -> NDArray:
    """Token means (chain, draw, observable) of the best features on sigma (chain, draw, spin); zero where there is none."""
    features, place = np.unique(best, return_inverse=True)
    f = dictionary.some(layer.of_configurations(sigma), np.maximum(features, 0)).mean(axis=2)
    return np.where(best >= 0, f[..., place], 0.0)
