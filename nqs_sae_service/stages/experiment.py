"""What the evidence on features is measured with: chains split three ways, observables, and the candidates of every control.

Dictionaries, principal components and regressions are fitted on the train chains; on the select chains the best feature and the
best candidate of every control are chosen; every number comes from the test chains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..errors import UserError
from ..interpret import controls, correlation
from ..interpret.series import Average, Load, RowMoments, Rows, per_sample, row_moments
from ..physics.observables import simple_functions
from ..physics.symmetries import Symmetries, generators
from ..sae.dictionary import Dictionary
from ..sae.metrics import participation_ratio_of
from .inputs import initialisations, origin
from .stage import Context

Moments = dict[str, RowMoments]

SPINS = "spins"  # beside the names of the layers
STEPS = ("dictionary", "controls", "intervals", "p-values", "ranks", "stability", "portraits")


class Progress:
    """Ticks of the runner in steps of a layer."""

    def __init__(self, context: Context, n_layers: int) -> None:
        self.context, self.total = context, n_layers * len(STEPS)
        self.done, self.message = -1, ""

    def begin(self, layer: str, step: str) -> None:
        self.done, self.message = self.done + 1, f"{layer}: {step}"
        self.tick()

    def tick(self) -> None:
        self.context.tick(max(self.done, 0), self.total, self.message)


@dataclass(frozen=True)
class Experiment:
    """What the layers share: samples, observables, the split, the random numbers of the statistics.

    ``fitted``: moments of all training times, which take the place of those of the samples at hand.
    """

    context: Context
    fitted: Moments
    progress: Progress
    rng: np.random.Generator
    split: dict[str, NDArray[np.int64]]
    counts: NDArray[np.float64]
    permutations: NDArray[np.int64]
    partner: dict[str, NDArray[np.int64]]

    @classmethod
    def of(
        cls, context: Context, fitted: Moments | None = None, progress: Progress | None = None
    ) -> Experiment:
        labels = context.upstream["samples"]["split"].values.astype(str)
        split = {part: np.flatnonzero(labels == part) for part in ("train", "select", "test")}
        for part, chains in split.items():
            if len(chains) < 2:
                raise UserError(
                    f"features: {len(chains)} {part} chains are too few, at least 2 are needed; "
                    "raise sampling.chains or change samples.split"
                )
        section, n_test = context.spec.features, len(split["test"])
        rng = np.random.Generator(np.random.Philox(section.seed))
        return cls(
            context=context,
            fitted=fitted or {},
            progress=progress or Progress(context, context.upstream["sae"].sizes["layer"]),
            rng=rng,
            split=split,
            counts=correlation.chain_counts(n_test, section.bootstrap, rng),
            permutations=correlation.chain_permutations(n_test, section.permutations, rng),
            partner={part: controls.other_chain(len(split[part]), rng) for part in ("select", "test")},
        )

    @property
    def sae(self) -> xr.Dataset:
        return self.context.upstream["sae"]

    @property
    def layers(self) -> list[Layer]:
        return [Layer(self, str(name)) for name in self.sae["layer"].values]

    @property
    def observables(self) -> list[str]:
        return [str(name) for name in self.context.upstream["observables"]["observable"].values]

    @property
    def sae_seeds(self) -> list[int]:
        return [int(seed) for seed in self.sae["sae_seed"].values]

    @property
    def initialisations(self) -> list[int]:
        """Labels of the untrained control networks; none if the spec asks for none."""
        return initialisations(self.sae)

    @property
    def controls(self) -> list[str]:
        return [name for name in controls.CONTROLS if name != "untrained" or self.initialisations]

    @cached_property
    def observed(self) -> dict[str, NDArray[np.float64]]:
        """Observables (chain, draw, observable) of every part of the split."""
        value = self.context.upstream["observables"]["value"]
        return {
            part: value.isel(chain=chains).values.astype(np.float64) for part, chains in self.split.items()
        }

    @cached_property
    def simple(self) -> dict[str, NDArray[np.float64]]:
        """The simplest functions of the input (chain, draw, function) of the select and the test chains."""
        lattice, fixed = self.context.spec.lattice.build(), self.context.spec.sampling.fixed_magnetization
        design = {}
        for part in ("select", "test"):
            sigma = self.spins(self.split[part], slice(None))
            functions = simple_functions(lattice, sigma.reshape(-1, sigma.shape[-1]), fixed is not None)
            design[part] = functions.reshape(*sigma.shape[:2], -1)
        return design

    @cached_property
    def beyond(self) -> dict[str, NDArray[np.float64]]:
        """What these leave of the observables (chain, draw, observable)."""
        return {part: correlation.beyond(self.observed[part], design) for part, design in self.simple.items()}

    @cached_property
    def state(self) -> Any:
        return self.context.spec.state.build(self.context.spec.lattice.build())

    @cached_property
    def generators(self) -> dict[str, Symmetries]:
        """Of the symmetries that lattice and Hamiltonian have in common, by name."""
        spec = self.context.spec
        lattice = spec.lattice.build()
        return generators(lattice, spec.final_hamiltonian.build(lattice), spec.sampling.fixed_magnetization)

    def some(self, part: str, at_most: int) -> tuple[slice, slice]:
        """Chains (of the part) and draws of about ``at_most`` of its samples, evenly spaced."""
        n_chains = len(self.split[part])
        apart = max(1, -(-n_chains // at_most))
        per_chain = max(1, at_most // n_chains)
        return slice(0, n_chains, apart), slice(0, self.n_draws, -(-self.n_draws // per_chain))

    @property
    def n_draws(self) -> int:
        return self.context.upstream["samples"].sizes["draw"]

    def rows(self, load: Load, part: str, n_tokens: int, pooled: bool = False) -> Rows:
        return Rows(load, self.split[part], self.n_draws, n_tokens, pooled, self.progress.tick)

    def spins(self, chains: NDArray[np.int64], draws: slice) -> NDArray:
        """Configurations (chain, draw, spin)."""
        return self.context.upstream["samples"]["configuration"].isel(chain=chains, draw=draws).values

    @property
    def moments(self) -> Moments:
        """Of the train chains at hand: the rows of every layer, and spins and observables joined."""
        return {layer.name: layer.moments for layer in self.layers} | {SPINS: self.spin_moments}

    @property
    def spin_moments(self) -> RowMoments:
        if self.fitted:
            return self.fitted[SPINS]
        value = self.context.upstream["observables"]["value"]

        def joint(chains: NDArray[np.int64], draws: slice) -> NDArray:
            observed = value.isel(chain=chains, draw=draws).values
            return np.concatenate([self.spins(chains, draws), observed], axis=-1)[:, :, None]

        return row_moments(self.rows(joint, "train", 1), self.state.n_sites + value.shape[-1])

    @cached_property
    def raw_spins(self) -> NDArray:
        """Linear prediction of every observable from the spins, (chain, draw, observable), test chains."""
        predict = controls.spin_regression(self.spin_moments, self.state.n_sites)
        spins = self.rows(lambda chains, draws: self.spins(chains, draws)[:, :, None], "test", 1)
        return per_sample(predict, spins, len(self.observables))


@dataclass(frozen=True)
class Layer:
    """One layer of the trained network and of the untrained ones."""

    experiment: Experiment
    name: str

    @property
    def stored(self) -> xr.DataArray:
        return self.experiment.context.upstream["activations"][self.name]

    @property
    def width(self) -> int:
        return self.stored.shape[3]

    @cached_property
    def moments(self) -> RowMoments:
        """Of the inputs the dictionary was trained on: tokens, or token means."""
        fitted = self.experiment.fitted
        return fitted[self.name] if fitted else row_moments(self.trained("train"), self.width)

    @property
    def participation_ratio(self) -> float:
        """(tr C)^2 / tr C^2 of their covariance; NaN when they do not vary."""
        return participation_ratio_of(self.moments.covariance)

    @property
    def pooled(self) -> bool:
        return self.experiment.context.spec.sae.input == "pooled"

    def trained(self, part: str) -> Rows:
        def load(chains: NDArray[np.int64], draws: slice) -> NDArray:
            return self.stored.isel(chain=chains, draw=draws).values.astype(np.float32, copy=False)

        return self.experiment.rows(load, part, self.stored.shape[2], self.pooled)

    def untrained(self, initialisation: int, part: str) -> Rows:
        parameters = self.experiment.sae["untrained_parameters"].sel(initialisation=initialisation).values

        def load(chains: NDArray[np.int64], draws: slice) -> NDArray:
            return self.computed(parameters, self.experiment.spins(chains, draws))

        return self.experiment.rows(load, part, self.stored.shape[2], self.pooled)

    def of_configurations(self, sigma: NDArray) -> NDArray:
        """The rows (chain, draw, row, width) of the trained network on any configurations (chain, draw, spin)."""
        x = self.computed(origin(self.experiment.context)["parameters"].values, sigma)
        return x.mean(axis=2, keepdims=True) if self.pooled else x

    def computed(self, parameters: NDArray, sigma: NDArray) -> NDArray:
        """Activations (chain, draw, token, width) float32 of the network with these parameters on sigma (chain, draw, spin)."""
        state = self.experiment.state
        flat = np.ascontiguousarray(sigma.reshape(-1, sigma.shape[-1]))
        x = state.activations(np.ascontiguousarray(parameters, state.dtype), flat, [self.name])[self.name]
        return np.asarray(x, np.float32).reshape(*sigma.shape[:2], *x.shape[1:])

    @cached_property
    def other_dictionaries(self) -> list[Dictionary]:
        """Those of all seeds but the first."""
        seeds = self.experiment.sae_seeds[1:]
        return [Dictionary.from_dataset(self.experiment.sae, self.name, seed) for seed in seeds]

    def sample(self, part: str, at_most: int) -> NDArray:
        """About ``at_most`` rows (n, width) of a part of the split: every chain, evenly spaced draws."""
        rows = self.trained(part)
        per_draw = len(rows.chains) * rows.n_tokens
        step = max(1, -(-rows.n_draws * per_draw // at_most))
        x = rows.load(rows.chains, slice(0, rows.n_draws, step))
        return (x.mean(axis=2) if self.pooled else x).reshape(-1, self.width)

    def candidates(self, name: str, average: Average, rows: Callable[[str], Rows], count: int) -> Candidates:
        """As many as ``count``, averages of rows of the layer."""
        series = {part: per_sample(average, rows(part), count) for part in ("select", "test")}
        return Candidates.of(name, series, self.experiment)


@dataclass(frozen=True)
class Candidates:
    """What a control offers: r and partial r (candidate, observable) on the select chains, series on the test chains.

    ``test`` (chain, draw, candidate).
    """

    name: str
    select: NDArray
    partial: NDArray
    test: NDArray

    @classmethod
    def of(cls, name: str, series: dict[str, NDArray], experiment: Experiment) -> Candidates:
        """From the ``series`` (chain, draw, candidate) on select and test chains."""
        rest = correlation.beyond(series["select"], experiment.simple["select"])
        return cls(
            name,
            correlation.pearson(series["select"], experiment.observed["select"]),
            correlation.pearson(rest, experiment.beyond["select"]),
            series["test"],
        )

    @property
    def chosen(self) -> NDArray:
        """The series (chain, draw, observable) of the best candidate on the select chains."""
        return controls.chosen(self.test, controls.strongest(self.select))

    @property
    def chosen_beyond(self) -> NDArray:
        """The same by partial r."""
        return controls.chosen(self.test, controls.strongest(self.partial))
