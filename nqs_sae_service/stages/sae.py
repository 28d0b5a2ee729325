"""Stage ``sae``: dictionaries of every layer and seed, what they keep of the state, and the same for untrained networks.

The untrained networks are the first control of every finding: same architecture, same configurations, same dictionary
pipeline, random parameters. Their dictionaries are trained here, once, so that adding an observable never retrains anything.

After a quench there is one dictionary for all times, trained on the samples of the training times together, as if their chains
were more chains of a single state; how well it serves is measured on these and, what it keeps of the state, at every time.

Several ranks share the features of every dictionary in training (``sae.distributed``), the rows of what is read and measured,
and the chains of every energy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..datasets.schema import SCHEMA, labelled
from ..engine.memory import available_memory
from ..engine.random import Stream
from ..interpret.expectation import Exact, FreshSampling
from ..interpret.reconstruction import Yardstick, ablated, reconstructed
from ..physics.hamiltonians import MAX_SITES_DIAGONALISED
from ..physics.observables import make_observable
from ..sae.dictionary import ARRAYS, Dictionary
from ..sae.inputs import Held, Inputs
from ..sae.metrics import density, explained_variance, mean_and_variance
from ..sae.training import History, Training
from ..sampling import process_of
from .cost import Cost, training_seconds
from .inputs import (
    Rows,
    born_samples,
    computed,
    economy_of,
    one_after_another,
    origin,
    projection_attributes,
    recorded,
    trained,
)
from .over_time import contexts, held_out, over_time, place, training
from .stage import Context, Stage

if TYPE_CHECKING:
    from ..spec import Spec

UNTRAINED_SEED = 1_000_000  # seeds of the untrained networks follow on from here
# Sweeps before, and samples per chain of, the energy of a replaced state; of so many chains at most.
_BURN_IN, _DRAWS, _CHAINS = 15, 8, 256
_IN_TRAINING = "training."  # before the names of what a checkpoint holds of dictionaries in training
_ARRAYS = 6  # of F x d numbers for every dictionary in training: encoder and decoder with two moments each
_SHARE_OF_MEMORY = (
    0.25  # of what is available: the most that inputs are held in, or dictionaries trained together
)
_SAMPLES = 8192  # Born samples that overlaps are measured on
_OVER_TIME = ("energy_recovered", "infidelity", "ablated")  # measured on the state of every time


def run(context: Context) -> xr.Dataset:
    """Train the dictionaries that share inputs together, one such group after the other.

    A checkpoint keeps those that are done, and those in training with everything their next step needs.
    """
    workshop = _Workshop(context)
    for layer in range(len(workshop.layers)):
        workshop.train(layer)
        for initialisation in range(workshop.record.untrained):
            workshop.train_untrained(layer, initialisation)
    return workshop.dataset()


class _Workshop:
    """Inputs shared by all dictionaries, and the result arrays being filled."""

    def __init__(self, context: Context):
        self.context, self.record = context, context.spec.sae
        self.layers = context.spec.activations.layers
        self.pooled = self.record.input == "pooled"
        self.times = contexts(context)
        self.network = context.spec.state.build(context.spec.lattice.build())
        self.width = self.network.width_of(self.layers[0])
        split = context.upstream["samples"]["split"].values
        self.chains = {part: np.flatnonzero(split == part) for part in ("train", "select")}
        saved = context.restore() or self._empty()
        self.in_training = {
            name.removeprefix(_IN_TRAINING): array
            for name, array in saved.items()
            if name.startswith(_IN_TRAINING)
        }
        self.results = {name: array for name, array in saved.items() if not name.startswith(_IN_TRAINING)}
        self.training: Training | None = None
        self._last: tuple[Context, Yardstick] | None = None

    def yardstick(self, at: Context) -> Yardstick:
        """What measures replaced states at a time; that of the last time is kept."""
        if self._last is None or self._last[0] is not at:
            self._last = at, self._make_yardstick(at)
        return self._last[1]

    def _make_yardstick(self, at: Context) -> Yardstick:
        spec, psi, n = at.spec, trained(at), self.network.n_sites
        lattice = spec.lattice.build()
        energy = make_observable("local_energy", lattice, spec.final_hamiltonian.build(lattice))
        exact = None
        if n <= MAX_SITES_DIAGONALISED:
            exact = Exact(psi, (energy,), n, at.device, spec.sampling.fixed_magnetization)
        before = origin(at)
        reference = float(before["energy"] if over_time(at) else before.attrs["final_energy"])
        if exact is not None:
            reference = float(exact.expectations(exact.state)[0])
        process = process_of(
            spec.sampling, lattice, self.record.seeds[0], Stream.RECONSTRUCTION, economy_of(spec)
        )
        sampling = FreshSampling(
            process, min(_CHAINS, spec.sampling.chains), _BURN_IN, _DRAWS, 1, economy_of(spec), at.ranks
        )
        select = at.upstream["samples"].isel(chain=self.chains["select"])
        sigma, log_psi = born_samples(select, self.network.complex_amplitude)
        some = np.linspace(0, log_psi.size - 1, min(_SAMPLES, log_psi.size)).astype(int)
        put = at.device.put
        born = (put(sigma.reshape(-1, n)[some]), put(log_psi.reshape(-1)[some]))
        return Yardstick(psi, energy, exact, sampling, born, reference)

    def _empty(self) -> dict[str, np.ndarray]:
        sizes = {
            "layer": len(self.layers),
            "sae_seed": len(self.record.seeds),
            "initialisation": self.record.untrained,
            "feature": self.record.features,
            "width": self.width,
            "step": self.record.steps,
            "parameter": self.network.n_parameters,
        }
        times = (len(self.times),) if over_time(self.context) else ()
        large = set(ARRAYS)
        arrays = {
            name: np.zeros(
                [*(times if name in _OVER_TIME else ()), *(sizes[d] for d in variable.dims)],
                np.float32 if name in large or name.removeprefix("untrained_") in large else np.float64,
            )
            for name, variable in SCHEMA["sae"].items()
            if self.record.thresholds or not name.endswith("threshold")
        }
        arrays["untrained_parameters"] = arrays["untrained_parameters"].astype(self.network.dtype)
        done = np.zeros((len(self.layers), len(self.record.seeds) + self.record.untrained), bool)
        return {**arrays, "done": done, "ablated": np.full((*times, len(self.layers)), np.nan)}

    def inputs(self, parameters: np.ndarray | None, layer: str, part: str) -> Inputs:
        """What a dictionary sees of the chains of a split: in memory where that is small, else read again in every epoch."""
        chains, times = self.chains[part], training(self.times)
        each = len(chains) * self.context.upstream["samples"].sizes["draw"]
        if parameters is None:
            stored = [at.upstream["activations"][layer] for at in times]
            source, shape = (
                one_after_another([recorded(x, chains) for x in stored], each),
                stored[0].shape[2:],
            )
        else:
            configurations = (at.upstream["samples"]["configuration"].isel(chain=chains) for at in times)
            sigma = np.concatenate([x.values.reshape(-1, self.network.n_sites) for x in configurations])
            source = computed(self.network.bind(self.context.device.put(parameters)), layer, sigma)
            shape = source(0, 1).shape[1:]
        n_tokens, width = shape
        ranks, shape = self.context.ranks, (len(times) * each, n_tokens, width)
        rows = Rows(source, shape, self.pooled, lambda: self.tick(f"{layer}: reading"), ranks)
        # Every rank holds them all, perhaps on one machine.
        return Held.of(rows) if 4 * rows.n_rows * rows.width * ranks.size <= self._memory() else rows

    def _memory(self) -> float:
        """Bytes that inputs are held in, or dictionaries trained together in, at most: the same on all ranks."""
        return self.context.ranks.agree(available_memory() * _SHARE_OF_MEMORY)

    def tick(self, message: str) -> None:
        """Progress; a checkpoint, when one is due, holds the results and the dictionaries in training."""
        flags, steps = self.results["done"], self.record.steps
        members = self.in_training.get("members", np.empty(0, int))
        at = 0 if self.training is None else self.training.step
        self.context.tick(
            int(flags.sum()) * steps + len(members) * at, flags.size * steps, message, self.state
        )

    def state(self) -> dict[str, np.ndarray]:
        """Everything needed to continue with the same bits."""
        now = self.in_training | (self.training.state() if self.training else {})
        return self.results | {_IN_TRAINING + name: array for name, array in now.items()}

    def _trained(
        self, inputs: Inputs, layer: int, members: Sequence[int], seeds: Sequence[int], label: str
    ) -> list[tuple[Dictionary, History]]:
        """Dictionaries of a layer trained together, continued where a checkpoint left them; ``members`` are their places."""
        training = Training(self.record, inputs, seeds, self.context.device, self.context.ranks)
        if self.in_training:
            training.restore(self.in_training)
        self.in_training = {"layer": np.asarray(layer), "members": np.asarray(members)}
        self.training = training
        while training.step < self.record.steps:
            training.advance()
            self.tick(f"{label}: {training.message}")
        return training.finished()

    def _finish(self, layer: int, members: Sequence[int]) -> None:
        """Mark a group as done."""
        self.results["done"][layer, members] = True
        self.training, self.in_training = None, {}

    def _groups(self, layer: int) -> Iterator[list[int]]:
        """Places of the seeds to be trained together: those of a checkpoint, then as many as the memory holds."""
        if self.in_training and int(self.in_training["layer"]) == layer:
            members = [int(place) for place in self.in_training["members"]]
            if members[0] < len(self.record.seeds):
                yield members
        each = 4.0 * _ARRAYS * self.record.features * self.width
        together = max(1, int(self._memory() / each))
        left = [place for place in range(len(self.record.seeds)) if not self.results["done"][layer, place]]
        yield from (left[first : first + together] for first in range(0, len(left), together))

    def train(self, layer: int) -> None:
        """The dictionaries of the trained network, with everything that is measured on them."""
        name, r = self.layers[layer], self.results
        if r["done"][layer, : len(self.record.seeds)].all():
            return
        x, select = self.inputs(None, name, "train"), self.inputs(None, name, "select")
        for members in self._groups(layer):
            seeds = [self.record.seeds[place] for place in members]
            label = f"{name}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
            found = self._trained(x, layer, members, seeds, label)
            for seed, (dictionary, history) in zip(members, found, strict=True):
                self._keep(dictionary, "", (layer, seed))
                for quantity in ("loss", "l0", "dead_fraction"):
                    r[quantity][layer, seed] = getattr(history, quantity)
                ranks = self.context.ranks
                r["feature_density"][layer, seed] = density(dictionary, select, ranks)
                r["explained_variance"][layer, seed] = explained_variance(
                    select, dictionary.reconstruct, ranks
                )
            self._measure(layer, dict(zip(members, (each for each, _ in found), strict=True)), x)
            self._finish(layer, members)

    def _measure(self, layer: int, dictionaries: dict[int, Dictionary], inputs: Inputs) -> None:
        """What dictionaries, by their places among the seeds, keep of the state of every time; ``inputs`` trained them."""
        name, r = self.layers[layer], self.results
        each = len(self.record.seeds) + 1  # the state with the mean, and one of every seed
        mean, _ = mean_and_variance(inputs)

        def tick(message: str) -> None:
            self.tick(f"{name}: energy recovered")

        for time, at in enumerate(self.times):
            psi, yardstick, where = trained(at), self.yardstick(at), (*place(at), layer)
            number = (time * len(self.layers) + layer) * each
            if np.isnan(r["ablated"][where]):
                r["ablated"][where] = yardstick.energy_of(ablated(psi, name, mean, self.pooled), number, tick)
            for seed, dictionary in dictionaries.items():
                psi_sae = reconstructed(psi, name, dictionary.on(self.context.device), self.pooled)
                r["energy_recovered"][(*where, seed)] = yardstick.energy_recovered(
                    psi_sae, float(r["ablated"][where]), number + 1 + seed, tick
                )
                r["infidelity"][(*where, seed)] = yardstick.infidelity_of(psi_sae)

    def train_untrained(self, layer: int, initialisation: int) -> None:
        """The same dictionary on the same configurations seen by a network with random parameters."""
        place = len(self.record.seeds) + initialisation
        if self.results["done"][layer, place]:
            return
        name = self.layers[layer]
        parameters = self.network.initial_parameters(UNTRAINED_SEED + initialisation)
        self.results["untrained_parameters"][initialisation] = parameters
        x = self.inputs(parameters, name, "train")
        label = f"{name}, untrained network {initialisation + 1}"
        [(dictionary, _)] = self._trained(x, layer, [place], self.record.seeds[:1], label)
        self._keep(dictionary, "untrained_", (layer, initialisation))
        select = self.inputs(parameters, name, "select")
        self.results["untrained_explained_variance"][layer, initialisation] = explained_variance(
            select, dictionary.reconstruct, self.context.ranks
        )
        self._finish(layer, [place])

    def _keep(self, dictionary: Dictionary, prefix: str, place: tuple[int, int]) -> None:
        for name in ARRAYS:
            if prefix + name in self.results:
                self.results[prefix + name][place] = getattr(dictionary, name)

    def dataset(self) -> xr.Dataset:
        """sae.nc."""
        variables = {name: array for name, array in self.results.items() if name not in ("done", "ablated")}
        if not self.record.untrained:
            variables = {
                name: array for name, array in variables.items() if not name.startswith("untrained_")
            }
        coordinates: dict[str, Any] = {
            "layer": np.asarray(self.layers, dtype=object),
            "sae_seed": np.asarray(self.record.seeds),
            "feature": np.arange(self.record.features),
            "step": np.arange(self.record.steps),
        }
        if self.record.untrained:
            coordinates["initialisation"] = UNTRAINED_SEED + np.arange(self.record.untrained)
        if over_time(self.context):
            times = self.context.upstream["dynamics"]["time"].values
            coordinates |= {"time": times, "held_out": ("time", held_out(len(times)))}
        attributes = {
            "kind": self.record.kind,
            "k": self.record.active,
            "input": self.record.input,
        }
        attributes |= projection_attributes(self.network)
        return labelled("sae", variables, coordinates, attributes)


def estimate(spec: Spec) -> Cost:
    """The training of every dictionary."""
    state, record = spec.state.build(spec.lattice.build()), spec.sae
    dictionaries = len(spec.activations.layers) * (len(record.seeds) + record.untrained)
    width = state.width_of(spec.activations.layers[0])
    arrays = 2 * 4.0 * record.features * width
    times = -(-len(spec.dynamics.times) // 2)
    rows = times * spec.samples.count * (1 if record.input == "pooled" else state.n_tokens)
    seconds = dictionaries * training_seconds(record, width)
    together = 3 * arrays * len(record.seeds)
    return Cost(seconds, dictionaries * arrays, dictionaries * arrays + together + 4.0 * rows * width)


STAGE = Stage(
    name="sae",
    reads=("lattice", "hamiltonian", "state", "sampling", "activations", "sae"),
    upstream=("ground_state", "dynamics", "samples", "activations"),
    version=3,
    run=run,
    estimate=estimate,
    distributed=True,
)
