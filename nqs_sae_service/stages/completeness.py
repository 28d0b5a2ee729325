"""Stage ``completeness``: which products of spins around a token have a feature of their own. Only if asked for.

The science is in ``interpret/completeness.py``. Beside the dictionary stand the single neurons of the layer and the
dictionaries of the untrained networks, on the same configurations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..datasets.schema import labelled
from ..engine.arrays import to_host
from ..interpret.completeness import PREDICTORS, Moments, best, rarer_share, sigmoid
from ..interpret.correlation import pearson
from ..physics.strings import count_of, frames, nearest_sites, strings_of, values_of
from ..sae.dictionary import Dictionary
from ..states import Wavefunction
from .cost import Cost, network_flops, seconds_for
from .inputs import initialisations, of_chains, trained
from .stage import Context, Stage

if TYPE_CHECKING:
    from ..spec import Spec

_BLOCK = 2**22  # of features or strings x tokens held at once
_PARTS = ("select", "test")
_DICTIONARY, _NEURON = "dictionary", "neuron"


def run(context: Context) -> xr.Dataset:
    """Correlations of every string with all candidates of every layer, chosen on select and measured on test chains."""
    programme = _Programme(context)
    tables = [programme.layer(name) for name in context.spec.completeness.layers]
    variables: dict[str, Any] = {name: np.stack([table[name] for table in tables]) for name in tables[0]}
    variables |= {"order": programme.order, "frequency": programme.frequency, "weight": programme.weight}
    coordinates = {
        "layer": list(context.spec.completeness.layers),
        "string": [" ".join(f"z{site}" for site in string) for string in programme.strings],
        "source": programme.sources,
        "predictor": list(PREDICTORS),
        "spins": np.arange(1, context.spec.completeness.order + 1),
    }
    return labelled(
        "completeness", variables, coordinates, {"threshold": context.spec.completeness.threshold}
    )


class _Programme:
    """Configurations of both parts of the split, and the strings on them."""

    def __init__(self, context: Context) -> None:
        self.context, self.options, self.psi = context, context.spec.completeness, trained(context)
        self.state, self.sae = self.psi.state, context.upstream["sae"]
        lattice = context.spec.lattice.build()
        frame = frames(lattice, self.state.sites)
        assert frame is not None  # the spec has been checked
        self.frame = frame
        near = nearest_sites(lattice, self.state.sites[0], self.options.sites)
        self.strings = strings_of(near, self.options.order)
        self.order = np.array([len(string) for string in self.strings])
        complex_amplitude = self.state.complex_amplitude
        self.samples = {
            part: of_chains(context.upstream["samples"], part, self.options.samples, complex_amplitude)
            for part in _PARTS
        }
        self.untrained = initialisations(self.sae)
        self.sources = [_DICTIONARY, _NEURON, *(f"untrained {n + 1}" for n in range(len(self.untrained)))]
        self.frequency, self.weight = self._of_strings()

    def layer(self, name: str) -> dict[str, Any]:
        """All variables for one layer, without the dimension ``layer``."""
        seed = int(self.sae["sae_seed"][0])
        own = Dictionary.from_dataset(self.sae, name, seed)
        found = [self._best(self.psi, name, own.encode), self._best(self.psi, name, lambda x: x)]
        for initialisation in self.untrained:
            parameters = self.sae["untrained_parameters"].sel(initialisation=initialisation).values
            network = self.state.bind(self.context.device.put(parameters.astype(self.state.dtype)))
            other = Dictionary.untrained_from_dataset(self.sae, name, initialisation)
            found.append(self._best(network, name, other.encode))
        r = np.stack([correlation for _, correlation in found])
        has = np.abs(r) >= self.options.threshold
        orders = range(1, self.options.order + 1)
        fits = [sigmoid(x, has[0]) for x in (self.frequency, self.weight)]
        return {
            "best_feature": found[0][0],
            "pearson": r,
            "share": np.array([[row[self.order == order].mean() for order in orders] for row in has]),
            "half": np.array([fit.half for fit in fits]),
            "slope": np.array([fit.slope for fit in fits]),
            "slope_error": np.array([fit.slope_error for fit in fits]),
        }

    def _best(
        self, psi: Wavefunction, layer: str, candidates: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """For every string the candidate chosen on the select chains, and its r on the test chains."""
        select, test = (Moments.of(self._rows(psi, layer, candidates, part)) for part in _PARTS)
        return best(select.correlation, test.correlation)

    def _rows(
        self, psi: Wavefunction, layer: str, candidates: Callable[[np.ndarray], np.ndarray], part: str
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Candidates (rows, F) and strings (rows, S), a row for every token of a block of samples."""
        features = self.sae.sizes["feature"]
        for sigma in self._blocks(part, max(features, len(self.strings))):
            self.context.tick(0, 1, f"{layer}: strings")
            x = to_host(psi.activations(psi.put(sigma), [layer])[layer]).astype(np.float32)
            chi = values_of(self.strings, sigma, self.frame)
            yield candidates(x.reshape(-1, x.shape[-1])), chi.reshape(-1, len(self.strings))

    def _blocks(self, part: str, columns: int) -> Iterator[np.ndarray]:
        sigma = self.samples[part][0].reshape(-1, self.state.n_sites)
        each = max(1, _BLOCK // (columns * len(self.frame)))
        return (sigma[first : first + each] for first in range(0, len(sigma), each))

    def _of_strings(self) -> tuple[np.ndarray, np.ndarray]:
        """How often every string has its rarer sign, and |r| of its mean over the tokens with log|psi|; test chains."""
        mean = [
            values_of(self.strings, sigma, self.frame).mean(axis=1)
            for sigma in self._blocks("test", len(self.strings))
        ]
        chi = np.concatenate(mean)
        log_psi = self.samples["test"][1].real
        series = chi.reshape(*log_psi.shape, -1)
        return rarer_share(chi.mean(axis=0)), np.abs(pearson(series, log_psi[..., None])[:, 0])


def wanted(spec: Spec) -> bool:
    """Only where the section asks for it."""
    return bool(spec.completeness.wanted)


def estimate(spec: Spec) -> Cost:
    """A product of features and strings over all tokens, for every dictionary."""
    options, state = spec.completeness, spec.state.build(spec.lattice.build())
    n_strings = count_of(min(options.sites, state.n_sites), options.order)
    rows = 2.0 * options.samples * state.n_tokens
    dictionaries = len(options.layers) * (2 + spec.sae.untrained)
    each = rows * 2.0 * n_strings * spec.sae.features
    forward = network_flops(spec) * 2.0 * options.samples
    held = 8.0 * spec.sae.features * n_strings
    return Cost(
        seconds=1.0 + dictionaries * (seconds_for(each + forward) + rows * n_strings * 4e-9),
        disk=4.0 * len(options.layers) * n_strings * (3 + spec.sae.untrained) + 1e5,
        memory=4 * held + 16.0 * _BLOCK,
    )


STAGE = Stage(
    name="completeness",
    reads=("lattice", "state", "sae", "completeness"),
    upstream=("ground_state", "samples", "sae"),
    version=1,
    run=run,
    estimate=estimate,
    wanted=wanted,
)
