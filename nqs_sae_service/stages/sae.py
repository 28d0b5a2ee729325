"""Stage ``sae``: dictionaries of every layer and seed, what they keep of the state, and the same for untrained networks.

The untrained networks are the first control of every finding: same architecture, same configurations, same dictionary
pipeline, random parameters. Their dictionaries are trained here, once, so that adding an observable never retrains anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..datasets.schema import SCHEMA, labelled
from ..engine.arrays import to_host
from ..engine.random import Stream
from ..interpret.expectation import Exact, FreshSampling
from ..interpret.reconstruction import Yardstick, ablated, reconstructed
from ..physics.hamiltonians import MAX_SITES_DIAGONALISED
from ..physics.observables import make_observable
from ..sae.dictionary import Dictionary
from ..sae.metrics import density, explained_variance
from ..sampling import Metropolis
from .cost import Cost, seconds_for
from .inputs import born_samples, trained
from .stage import Context, Stage

if TYPE_CHECKING:
    from ..spec import Spec

UNTRAINED_SEED = 1_000_000  # seeds of the untrained networks follow on from here
_BURN_IN, _DRAWS = 15, 2  # sweeps before, and samples per chain of, the energy of a replaced state
_SAMPLES = 8192  # Born samples that overlaps are measured on


def run(context: Context) -> xr.Dataset:
    """Train the dictionaries one after the other; a checkpoint keeps those that are done."""
    workshop = _Workshop(context)
    for layer in range(len(workshop.layers)):
        for seed in range(len(workshop.record.seeds)):
            workshop.train(layer, seed)
        for initialisation in range(workshop.record.untrained):
            workshop.train_untrained(layer, initialisation)
    return workshop.dataset()


class _Workshop:
    """Inputs shared by all dictionaries, and the result arrays being filled."""

    def __init__(self, context: Context):
        self.context, self.record = context, context.spec.sae
        self.layers = context.spec.activations.layers
        self.pooled = self.record.input == "pooled"
        self.psi = trained(context)
        self.samples = context.upstream["samples"]
        split = self.samples["split"].values
        self.chains = {part: np.flatnonzero(split == part) for part in ("train", "select")}
        self.yardstick = self._make_yardstick()
        self.results = context.restore() or self._empty()

    def _make_yardstick(self) -> Yardstick:
        spec, n = self.context.spec, self.psi.state.n_sites
        lattice = spec.lattice.build()
        energy = make_observable("local_energy", lattice, spec.hamiltonian.build(lattice))
        exact = Exact(self.psi, (energy,), n, self.context.device) if n <= MAX_SITES_DIAGONALISED else None
        reference = float(self.context.upstream["ground_state"].attrs["final_energy"])
        if exact is not None:
            reference = float(exact.expectations(exact.state)[0])
        metropolis = Metropolis.of(spec.sampling, n, self.record.seeds[0], Stream.RECONSTRUCTION)
        sampling = FreshSampling(metropolis, spec.sampling.chains, _BURN_IN, _DRAWS, 1, spec.engine.chunk)
        sigma, log_psi = born_samples(self.samples, self.psi.state.complex_amplitude)
        sigma, log_psi = sigma[self.chains["select"]], log_psi[self.chains["select"]]
        some = np.linspace(0, log_psi.size - 1, min(_SAMPLES, log_psi.size)).astype(int)
        put = self.context.device.put
        born = (put(sigma.reshape(-1, n)[some]), put(log_psi.reshape(-1)[some]))
        return Yardstick(self.psi, energy, exact, sampling, born, reference)

    def _empty(self) -> dict[str, np.ndarray]:
        sizes = {
            "layer": len(self.layers),
            "sae_seed": len(self.record.seeds),
            "initialisation": self.record.untrained,
            "feature": self.record.features,
            "width": self.psi.state.width,
            "step": self.record.steps,
            "parameter": self.psi.state.n_parameters,
        }
        large = {"encoder", "decoder", "encoder_bias", "decoder_bias"}
        arrays = {
            name: np.zeros(
                [sizes[d] for d in variable.dims],
                np.float32 if name in large or name.removeprefix("untrained_") in large else np.float64,
            )
            for name, variable in SCHEMA["sae"].items()
        }
        arrays["untrained_parameters"] = arrays["untrained_parameters"].astype(self.psi.state.dtype)
        done = np.zeros((len(self.layers), len(self.record.seeds) + self.record.untrained), bool)
        return {**arrays, "done": done, "ablated": np.full(len(self.layers), np.nan)}

    def inputs(self, parameters: np.ndarray | None, layer: str, part: str) -> np.ndarray:
        """Rows (n, width) float32 that a dictionary sees: tokens, or token means, of the chains of a split."""
        if parameters is None:
            x = self.context.upstream["activations"][layer].values[self.chains[part]]
        else:
            sigma = self.samples["configuration"].values[self.chains[part]]
            flat = sigma.reshape(-1, sigma.shape[-1])
            put = self.context.device.put
            x = to_host(self.psi.state.activations(put(parameters), put(flat), [layer])[layer])
        x = x.reshape(-1, *x.shape[-2:])
        rows = x.mean(axis=1) if self.pooled else x.reshape(-1, x.shape[-1])
        return np.ascontiguousarray(rows, dtype=np.float32)

    def tick(self, done: int, total: int, message: str) -> None:
        """Progress inside the dictionary being trained."""
        flags = self.results["done"]
        self.context.tick(int(flags.sum()) * total + done, flags.size * total, message, lambda: self.results)

    def train(self, layer: int, seed: int) -> None:
        """One dictionary of the trained network, with everything that is measured on it."""
        if self.results["done"][layer, seed]:
            return
        name, r = self.layers[layer], self.results
        x = self.inputs(None, name, "train")
        label = f"{name}, seed {self.record.seeds[seed]}"
        dictionary, history = self.record.train(
            self.context.device.put(x), self.record.seeds[seed], lambda i, n, _: self.tick(i, n, label)
        )
        self._keep(dictionary, "", (layer, seed))
        for quantity in ("loss", "l0", "dead_fraction"):
            r[quantity][layer, seed] = getattr(history, quantity)
        held_out = self.inputs(None, name, "select")
        r["feature_density"][layer, seed] = density(dictionary, held_out)
        r["explained_variance"][layer, seed] = explained_variance(held_out, dictionary.reconstruct(held_out))
        self._measure(layer, seed, dictionary, x.mean(axis=0, dtype=np.float64))
        r["done"][layer, seed] = True

    def _measure(self, layer: int, seed: int, dictionary: Dictionary, mean: np.ndarray) -> None:
        name, r = self.layers[layer], self.results
        number = layer * (len(self.record.seeds) + 1)

        def tick(message: str) -> None:
            self.tick(self.record.steps, self.record.steps, f"{name}: energy recovered")

        if np.isnan(r["ablated"][layer]):
            psi_ablated = ablated(self.psi, name, mean, self.pooled)
            r["ablated"][layer] = self.yardstick.energy_of(psi_ablated, number, tick)
        psi_sae = reconstructed(self.psi, name, dictionary.on(self.context.device), self.pooled)
        r["energy_recovered"][layer, seed] = self.yardstick.energy_recovered(
            psi_sae, float(r["ablated"][layer]), number + 1 + seed, tick
        )
        r["infidelity"][layer, seed] = self.yardstick.infidelity_of(psi_sae)

    def train_untrained(self, layer: int, initialisation: int) -> None:
        """The same dictionary on the same configurations seen by a network with random parameters."""
        place = len(self.record.seeds) + initialisation
        if self.results["done"][layer, place]:
            return
        name = self.layers[layer]
        parameters = self.psi.state.initial_parameters(UNTRAINED_SEED + initialisation)
        self.results["untrained_parameters"][initialisation] = parameters
        label = f"{name}, untrained network {initialisation + 1}"
        dictionary, _ = self.record.train(
            self.context.device.put(self.inputs(parameters, name, "train")),
            self.record.seeds[0],
            lambda i, n, _: self.tick(i, n, label),
        )
        self._keep(dictionary, "untrained_", (layer, initialisation))
        held_out = self.inputs(parameters, name, "select")
        self.results["untrained_explained_variance"][layer, initialisation] = explained_variance(
            held_out, dictionary.reconstruct(held_out)
        )
        self.results["done"][layer, place] = True

    def _keep(self, dictionary: Dictionary, prefix: str, place: tuple[int, int]) -> None:
        for name in ("encoder", "decoder", "encoder_bias", "decoder_bias"):
            self.results[prefix + name][place] = getattr(dictionary, name)

    def dataset(self) -> xr.Dataset:
        """sae.nc."""
        variables = {name: array for name, array in self.results.items() if name not in ("done", "ablated")}
        if not self.record.untrained:
            variables = {
                name: array for name, array in variables.items() if not name.startswith("untrained_")
            }
        coordinates = {
            "layer": np.asarray(self.layers, dtype=object),
            "sae_seed": np.asarray(self.record.seeds),
            "feature": np.arange(self.record.features),
            "step": np.arange(self.record.steps),
        }
        if self.record.untrained:
            coordinates["initialisation"] = UNTRAINED_SEED + np.arange(self.record.untrained)
        attributes = {
            "kind": self.record.kind,
            "k": int(getattr(self.record, "k", 0)),
            "input": self.record.input,
        }
        return labelled("sae", variables, coordinates, attributes)


def estimate(spec: Spec) -> Cost:
    """Encoding dominates a step: 2 batch F d operations, three times that with the selection and the sparse backward pass."""
    state, record = spec.state.build(spec.lattice.build()), spec.sae
    dictionaries = len(spec.activations.layers) * (len(record.seeds) + record.untrained)
    step = 6.0 * record.batch * record.features * state.width
    arrays = 2 * 4.0 * record.features * state.width
    rows = spec.samples.count * (1 if record.input == "pooled" else state.n_tokens)
    seconds = dictionaries * (record.steps * (seconds_for(step) + 5e-4) + 1)
    return Cost(seconds, dictionaries * arrays, 6 * arrays + 12.0 * rows * state.width)


STAGE = Stage(
    name="sae",
    reads=("lattice", "hamiltonian", "state", "sampling", "activations", "sae"),
    upstream=("ground_state", "samples", "activations"),
    version=1,
    run=run,
    estimate=estimate,
)
