"""The sections of a spec that do not come in kinds. Every default of theirs lives here and nowhere else.

Energies are in units of J. Bounds are wide: they refuse what can only be a slip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from ..interpret.kinds import BY_DEFAULT, DIRECTIONS, FEATURE
from .sampling import Sampling
from .section import Finding, Section
from .slurm import Slurm

if TYPE_CHECKING:
    from ..physics.lattices import Lattice
    from ..physics.operators import Operator

DEFAULT_SEED = 1
StageSeed = Annotated[
    int,
    Field(ge=0, le=2**31 - 1, description="seed of this stage's random numbers; default: the top-level seed"),
]
SweptValues = Annotated[tuple[Any, ...], Field(min_length=1)]

_SCALES = (0.0, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.5, 2.0)
_SPLIT_NAMES = ("train", "select", "test")


class GroundState(Section):
    """Variational Monte Carlo by stochastic reconfiguration (minSR), with the momentum of SPRING."""

    seed: StageSeed = DEFAULT_SEED
    start_from: str | None = Field(
        None,
        min_length=1,
        description="begin with the parameters, and where they fit the chains, of another run: the name of one in the same "
        "results, or a path, relative to the spec, to a run (./x, ../x, /x) or a ground_state.nc; onto a larger lattice where "
        "the network allows",
        json_schema_extra={"neutral": True},
    )
    steps: int = Field(
        300,
        ge=0,
        le=1_000_000,
        description="optimisation steps; 0 leaves a network of start_from or state.load as it is",
    )
    samples: int = Field(
        1024, ge=2, le=2**16, description="Born samples per step; a multiple of sampling.chains"
    )
    exponent: float = Field(
        1.0,
        gt=0,
        le=1,
        description="b: samples of a step are drawn from |psi|^(2 b) and weighted by |psi|^(2 - 2 b); below 1 they visit "
        "configurations where psi is small, on which a training can lock unseen",
        json_schema_extra={"neutral": True},
    )
    learning_rate: float = Field(0.1, gt=0, le=10, description="step length at the start")
    final_learning_rate: float = Field(
        0.05, ge=0, le=1, description="share of learning_rate left at the end of the cosine decay"
    )
    momentum: float = Field(
        0.8, ge=0, lt=1, description="SPRING: share of the last update that carries on; 0 is plain minSR"
    )
    shift: float = Field(
        1e-3, gt=0, le=1e3, description="diagonal shift of the minSR matrix after the first shift_steps"
    )
    shift_start: float = Field(
        1e-1, gt=0, le=1e3, description="diagonal shift at the first step, decays geometrically to shift"
    )
    shift_steps: int = Field(50, ge=0, le=1_000_000, description="steps over which the shift decays")
    max_step: float = Field(0.3, gt=0, le=1e3, description="largest update, as a length in the metric S")
    solver: Literal["auto", "cholesky", "cg"] = Field(
        "auto",
        description="how the minSR system is solved; auto: conjugate gradients while they promise to be cheaper",
        json_schema_extra={"neutral": True},
    )
    final_samples: int = Field(
        16384, ge=2, le=10**8, description="fresh samples for the final energy; a multiple of sampling.chains"
    )
    checkpoints: tuple[Annotated[int, Field(ge=0, le=1_000_000)], ...] = Field(
        (),
        max_length=1000,
        description="steps after which the parameters are kept in the file beside the final ones; 0: those at the start",
        json_schema_extra={"neutral": True},
    )

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        yield from _multiple_of_chains("samples", self.samples, sections)
        yield from _multiple_of_chains("final_samples", self.final_samples, sections)
        for index, step in enumerate(self.checkpoints):
            if step > self.steps:
                what = f"{step} is beyond the {self.steps} steps of ground_state.steps"
                yield Finding(f"checkpoints[{index}]", what)
            elif step in self.checkpoints[:index]:
                yield Finding(f"checkpoints[{index}]", f"{step} is listed twice")
        sampling: Any = sections.get("sampling")
        if self.exponent < 1 and getattr(sampling, "method", None) == "direct":
            yield Finding(
                "exponent",
                'this state is drawn directly, from |psi|^2: leave it out, or set sampling.method = "metropolis"',
            )
        state: Any = sections.get("state")
        if state is None:
            return
        if self.start_from and state.load:
            yield Finding("start_from", "a training has one start: leave out start_from or state.load")
        dynamics: Any = sections.get("dynamics")
        replaced = dynamics is None or (dynamics.wanted and dynamics.start != "ground_state")
        transfer: Any = sections.get("transfer")
        taught = transfer is None or transfer.wanted
        if not (self.steps or self.start_from or state.load or replaced or taught):
            yield Finding(
                "steps",
                "without a step the network stays random: at least 1, or name a trained one in start_from or state.load",
            )


class Samples(Section):
    """Born samples of the trained state, split by chain so that nothing is chosen on what it is tested on."""

    seed: StageSeed = DEFAULT_SEED
    count: int = Field(
        32768, ge=1, le=10**8, description="number of samples over all chains; a multiple of sampling.chains"
    )
    sweeps: int | None = Field(
        None, ge=1, le=10_000, description="sweeps between recorded samples here; default: sampling.sweeps"
    )
    split: tuple[float, ...] = Field(
        (0.5, 0.25, 0.25),
        min_length=3,
        max_length=3,
        description="shares of the chains that train the dictionary, select the feature, test it; they sum to 1",
    )

    @field_validator("split")
    @classmethod
    def _shares(cls, split: tuple[float, ...]) -> tuple[float, ...]:
        if min(split) <= 0:
            raise ValueError("all three shares (train, select, test) must be greater than 0")
        if abs(sum(split) - 1) > 1e-9:
            raise ValueError(f"the shares (train, select, test) must sum to 1, they sum to {sum(split):.6g}")
        return split

    def split_chains(self, chains: int) -> tuple[int, int, int]:
        """How many of the chains train, select and test; they sum to ``chains``."""
        train = round(self.split[0] * chains)
        select = round((self.split[0] + self.split[1]) * chains) - train
        return train, select, chains - train - select

    def resolved(self, sections: Mapping[str, Section]) -> Section:
        sampling = sections.get("sampling")
        if self.sweeps is not None or not isinstance(sampling, Sampling):
            return self
        return self.model_copy(update={"sweeps": sampling.sweeps})

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        yield from _multiple_of_chains("count", self.count, sections)
        sampling = sections.get("sampling")
        if not isinstance(sampling, Sampling):
            return
        parts = self.split_chains(sampling.chains)
        if min(parts) < 2:
            shares = ", ".join(f"{part} {name}" for part, name in zip(parts, _SPLIT_NAMES, strict=True))
            what = (
                f"each part needs at least 2 chains; the {sampling.chains} of sampling.chains give {shares}"
            )
            yield Finding("split", what)


class Observables(Section):
    """What is measured on every sample and compared with the features."""

    names: tuple[str, ...] = Field(
        ("magnetization", "abs_magnetization", "half_chain_correlation", "sigma_x"),
        min_length=1,
        max_length=1000,
        description="observables to measure; single pairs are called like correlation_0_20; the default depends on the lattice "
        "and the Hamiltonian: staggered ones for magnets on two sublattices",
    )

    def resolved(self, sections: Mapping[str, Section]) -> Section:
        lattice: Any = sections.get("lattice")
        hamiltonian: Any = sections.get("hamiltonian")
        if "names" in self.model_fields_set or lattice is None or hamiltonian is None:
            return self
        from ..physics.observables import default_names

        names = default_names(lattice.build(), hamiltonian.conserves_magnetization)
        return self.model_copy(update={"names": names})

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        yield from repeated("names", self.names)
        geometry: Any = sections.get("lattice")
        if geometry is None:
            return
        from ..physics.observables import UnknownObservable, changes_magnetization, check_observable

        lattice, hamiltonian, sampling = (
            geometry.build(),
            sections.get("hamiltonian"),
            sections.get("sampling"),
        )
        build = _operator(hamiltonian, lattice, sections)
        fixed = isinstance(sampling, Sampling) and sampling.fixed_magnetization is not None
        fixed = fixed and getattr(
            hamiltonian, "conserves_magnetization", False
        )  # else the sampling is wrong itself
        for index, name in enumerate(self.names):
            try:
                check_observable(name, lattice, build)
            except UnknownObservable as unknown:
                yield Finding(f"names[{index}]", unknown.what, tuple(unknown.candidates))
                continue
            if fixed and changes_magnetization(name, lattice):
                what = f"{name} changes the magnetization, which the sampling holds fixed: leave it out"
                yield Finding(f"names[{index}]", what)


def _operator(
    hamiltonian: Any, lattice: Lattice, sections: Mapping[str, Section]
) -> Callable[[], Operator] | None:
    """How to build the Hamiltonian, None where it is missing or wrong itself."""
    if hamiltonian is None or any(True for _ in hamiltonian.findings(sections)):
        return None
    return lambda: hamiltonian.build(lattice)


class Activations(Section):
    """Which layers of the network are recorded and taken apart."""

    layers: tuple[str, ...] = Field(
        (),
        max_length=1000,
        description="layers to record; empty: the residual stream after every block, or the hidden units",
    )

    def resolved(self, sections: Mapping[str, Section]) -> Section:
        state: Any = sections.get("state")
        if self.layers or state is None:
            return self
        return self.model_copy(update={"layers": state.default_layers()})

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        yield from repeated("layers", self.layers)
        state: Any = sections.get("state")
        if state is not None:
            yield from unfit_layers(self.layers, state)


class Features(Section):
    """Statistics of the match between features and observables."""

    seed: StageSeed = DEFAULT_SEED
    bootstrap: int = Field(
        1000, ge=10, le=1_000_000, description="resamplings of the test chains for confidence intervals"
    )
    permutations: int = Field(
        1000, ge=10, le=1_000_000, description="permutations of whole chains for p-values"
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="level of the confidence intervals")


class Steering(Section):
    """Turning the best feature of an observable and watching the state follow, beside controls."""

    seed: StageSeed = DEFAULT_SEED
    targets: tuple[str, ...] = Field(
        (),
        max_length=100,
        description="observables whose best feature is turned; empty: the first two of observables.names",
    )
    directions: tuple[str, ...] = Field(
        (),
        max_length=100,
        description="what is turned: feature, and at matched infidelity any of "
        + ", ".join(DIRECTIONS[1:])
        + "; empty: the first six",
    )
    held: tuple[str, ...] = Field(
        (),
        max_length=100,
        description="observables that natural_gradient_held holds to first order beside the energy; empty: the other targets",
        json_schema_extra={"neutral": True},
    )
    scales: tuple[Annotated[float, Field(ge=-1000, le=1000)], ...] = Field(
        _SCALES,
        min_length=1,
        max_length=1000,
        description="factors on the feature's activation; 1 is the state itself and always there",
    )
    layers: tuple[str, ...] = Field(
        (), max_length=1000, description="layers to steer at; empty: activations.layers"
    )
    samples: int = Field(4096, ge=2, le=10**8, description="Born samples that are reweighted")
    draws: int = Field(4, ge=1, le=1_000_000, description="fresh samples of the steered state per chain")
    burn_in: int = Field(
        10,
        ge=0,
        le=1_000_000,
        description="sweeps of each chain in the steered state before its first sample",
    )
    resample_controls: bool = Field(False, description="draw fresh samples for the controls too (slower)")
    mbar: bool = Field(
        False,
        description="also pool the fresh samples of all scales by MBAR (slower: each is measured at every scale)",
        json_schema_extra={"neutral": True},
    )
    times: tuple[float, ...] = Field(
        (),
        max_length=1000,
        description="after a quench: recorded times to steer at; empty: the middle one and the last",
        json_schema_extra={"neutral": True},
    )
    evolve: tuple[float, ...] = Field(
        (),
        max_length=100,
        description="after a quench: scales of which the steered state evolves on, from each of these times to the later ones",
        json_schema_extra={"neutral": True},
    )
    energy_budget: float = Field(
        2e-4, gt=0, le=1, description="largest |dE/E| within which the reach of a feature is measured"
    )
    susceptibility_steps: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="steps of two trainings in a field that give the susceptibility of every target, and with it efficiencies, "
        "where a system is too large to be diagonalised; 0: none there",
        json_schema_extra={"neutral": True},
    )

    @field_validator("scales")
    @classmethod
    def _with_the_state_itself(cls, scales: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted({*scales, 1.0}))

    @field_validator("directions")
    @classmethod
    def _in_one_order(cls, directions: tuple[str, ...]) -> tuple[str, ...]:
        known = {name: place for place, name in enumerate(DIRECTIONS)}
        if any(name not in known for name in directions):
            return directions  # findings point at the place where it was written
        return tuple(sorted(directions, key=lambda name: known[name]))

    def _direction_findings(self) -> Iterator[Finding]:
        yield from repeated("directions", self.directions)
        for index, name in enumerate(self.directions):
            if name not in DIRECTIONS:
                known = ", ".join(DIRECTIONS)
                what = f'there is no direction "{name}"; the directions: {known}'
                yield Finding(f"directions[{index}]", what, DIRECTIONS)
        if self.directions and FEATURE not in self.directions:
            what = f'"{FEATURE}" is missing: all others are set to its infidelity, add it'
            yield Finding("directions", what)
        if self.held and "natural_gradient_held" not in self.directions:
            what = "nothing is held: add natural_gradient_held to steering.directions, or leave it out"
            yield Finding("held", what)

    def resolved(self, sections: Mapping[str, Section]) -> Section:
        update: dict[str, Any] = {} if self.directions else {"directions": BY_DEFAULT}
        observables, activations = sections.get("observables"), sections.get("activations")
        if not self.targets and isinstance(observables, Observables):
            useless = without_mean(observables.names, sections)
            update["targets"] = tuple(name for name in observables.names if name not in useless)[:2]
        if not self.layers and isinstance(activations, Activations):
            update["layers"] = activations.layers
        dynamics: Any = sections.get("dynamics")
        if not self.times and dynamics is not None and dynamics.wanted:
            recorded = dynamics.times
            update["times"] = tuple(dict.fromkeys((recorded[len(recorded) // 2], recorded[-1])))
        return self.model_copy(update=update) if update else self

    def _time_findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        dynamics: Any = sections.get("dynamics")
        if dynamics is None:
            return
        for key in ("times", "evolve"):
            if getattr(self, key) and not dynamics.wanted:
                yield Finding(key, "there is no dynamics: set dynamics.duration, or leave it out")
                return
        for index, time in enumerate(self.times):
            if not any(abs(time - recorded) < 1e-9 for recorded in dynamics.times):
                told = f"multiples of {dynamics.every:g} up to {dynamics.duration:g}"
                yield Finding(f"times[{index}]", f"{time:g} is no recorded time; these are {told}")
        for index, scale in enumerate(self.evolve):
            if scale not in self.scales:
                yield Finding(f"evolve[{index}]", f"{scale:g} is not listed in steering.scales: add it there")

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        yield from repeated("targets", self.targets)
        yield from repeated("layers", self.layers)
        yield from repeated("held", self.held)
        yield from self._direction_findings()
        yield from self._time_findings(sections)
        observables, activations = sections.get("observables"), sections.get("activations")
        if isinstance(observables, Observables):
            yield from _among("targets", self.targets, "observables.names", observables.names)
            yield from _among("held", self.held, "observables.names", observables.names)
            if not self.targets:
                yield Finding("targets", "none of observables.names has a mean that steering can move")
        for key in ("targets", "held"):
            names: tuple[str, ...] = getattr(self, key)
            for name, why in without_mean(names, sections).items():
                yield Finding(f"{key}[{names.index(name)}]", f"{name} has no meaning as a mean: {why}")
        if isinstance(activations, Activations):
            yield from _among("layers", self.layers, "activations.layers", activations.layers)


class Attribution(Section):
    """What every feature does to the state, from gradients, held against ablation; none while samples is 0."""

    seed: StageSeed = DEFAULT_SEED
    samples: int = Field(
        0,
        ge=0,
        le=10**8,
        description="Born samples of the test chains for slopes, metric and energy forces of all features; 0: no attribution",
    )
    layers: tuple[str, ...] = Field((), max_length=1000, description="layers; empty: activations.layers")
    ablated: int = Field(
        64,
        ge=0,
        le=10**6,
        description="features of a layer that are ablated: half with the largest metric, half drawn from the others; 0: none",
    )
    ablation_samples: int = Field(
        512, ge=2, le=10**8, description="of the samples, those used for ablation and edges"
    )
    steps: int = Field(4, ge=1, le=1000, description="points on the path of the integrated gradients")
    edges: int = Field(
        10,
        ge=0,
        le=10**6,
        description="strongest edges from the layer before into the best feature of every observable; 0: none",
    )

    @property
    def wanted(self) -> bool:
        """Whether there is an attribution at all."""
        return self.samples > 0

    def resolved(self, sections: Mapping[str, Section]) -> Section:
        activations = sections.get("activations")
        if self.layers or not isinstance(activations, Activations):
            return self
        return self.model_copy(update={"layers": activations.layers})

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        yield from repeated("layers", self.layers)
        activations = sections.get("activations")
        if isinstance(activations, Activations):
            yield from _among("layers", self.layers, "activations.layers", activations.layers)
        if self.samples == 1:
            yield Finding("samples", "one sample has no covariance: at least 2, or 0 for no attribution")


def without_mean(names: tuple[str, ...], sections: Mapping[str, Section]) -> dict[str, str]:
    """Those of the observables whose mean in another state says nothing, and why."""
    geometry: Any = sections.get("lattice")
    if geometry is None:
        return {}
    from ..physics.observables import WITHOUT_MEAN, UnknownObservable, observable_kind

    found, lattice = {}, geometry.build()
    for name in names:
        try:
            kind = observable_kind(name, lattice)
        except UnknownObservable:
            continue
        if kind in WITHOUT_MEAN:
            found[name] = WITHOUT_MEAN[kind]
    return found


class Engine(Section):
    """How to run: never part of a stage's key."""

    device: Literal["auto", "cpu", "gpu"] = Field(
        "auto", description="where to compute; auto: on a GPU where CuPy finds one"
    )
    threads: int = Field(0, ge=0, le=4096, description="threads of the kernels; 0: all cores")
    chunk: int = Field(
        0,
        ge=0,
        le=10**8,
        description="configurations per network call in local estimators; 0: by the free memory, at most 16384 on a CPU",
    )
    savings: tuple[Literal["duplicates", "increments", "proposals"], ...] = Field(
        ("duplicates", "increments", "proposals"),
        description="what is not computed twice: equal configurations; what a flip leaves alone; few chains: proposals ahead",
    )
    checkpoint_seconds: float = Field(30.0, ge=0, le=86_400, description="seconds between checkpoints")
    slurm: Slurm = Field(default_factory=Slurm, description="what a run asks of Slurm")


class Output(Section):
    """What to draw and write besides the data: never part of a stage's key."""

    report: bool = Field(True, description="write report.html")
    figures: bool = Field(True, description="write figures as PNG and SVG")


class Sweep(Section):
    """Several runs from one spec. Keys are quoted, "section.key"; each value of an array is a point."""

    grid: dict[str, SweptValues] = Field(
        {}, description="all combinations of the values; the last key varies fastest"
    )
    zip: dict[str, SweptValues] = Field({}, description="arrays of equal length that move together")


def _multiple_of_chains(key: str, count: int, sections: Mapping[str, Section]) -> Iterator[Finding]:
    sampling = sections.get("sampling")
    if isinstance(sampling, Sampling) and count % sampling.chains:
        chains = sampling.chains
        below, above = count // chains * chains, -(-count // chains) * chains
        remedy = f"{below} or {above}" if below else f"{above}"
        what = f"{count} must be a multiple of sampling.chains = {chains}: use {remedy}, or change sampling.chains"
        yield Finding(key, what)


def repeated(key: str, names: tuple[str, ...]) -> Iterator[Finding]:
    """A finding for every name that stands there a second time."""
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            yield Finding(f"{key}[{index}]", f'"{name}" is listed twice')
        seen.add(name)


def unfit_layers(layers: tuple[str, ...], state: Any) -> Iterator[Finding]:
    """A finding for every one of ``layers`` that the record of a state does not have, and where they differ in width."""
    known, wider = tuple(state.layer_names()), state.wider_layers()
    for index, layer in enumerate(layers):
        if layer not in known:
            what = f'the state has no layer "{layer}"; its layers: {", ".join(known)}'
            yield Finding(f"layers[{index}]", what, known)
    if len({wider.get(layer) for layer in layers}) > 1:
        index = next(i for i, layer in enumerate(layers) if layer in wider)
        what = f"{layers[index]} is wider than the other layers: look at it in a spec of its own"
        yield Finding(f"layers[{index}]", what)


def _among(key: str, names: tuple[str, ...], where: str, allowed: tuple[str, ...]) -> Iterator[Finding]:
    for index, name in enumerate(names):
        if name not in allowed:
            yield Finding(f"{key}[{index}]", f'"{name}" is not listed in {where}: add it there', allowed)
