"""The section ``[dynamics]``: a quench, and how the state is carried through time after it. Times are in units of 1 / J."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ..physics.hamiltonians import HAMILTONIANS, MAX_SITES_DIAGONALISED
from .sampling import Sampling
from .section import Finding, Section, one_of
from .sections import DEFAULT_SEED, StageSeed, repeated

if TYPE_CHECKING:
    Hamiltonian = Any
else:
    Hamiltonian = one_of(HAMILTONIANS)

MOST_TIMES = 10_000


class Dynamics(Section):
    """Real or imaginary time after a quench, followed by t-VMC (TDVP) or projected t-VMC; no dynamics while duration is 0."""

    seed: StageSeed = DEFAULT_SEED
    duration: float = Field(
        0.0, ge=0, le=1e6, description="time that is followed, in units of 1 / J; 0: no dynamics"
    )
    every: float = Field(0.1, gt=0, le=1e6, description="time between recorded states")
    start: Literal["ground_state", "x", "z", "neel"] = Field(
        "ground_state",
        description="the state at time 0: that of stage ground_state, or its network brought onto a product state, all spins "
        "along +x or +z or alternating along z",
    )
    hamiltonian: Hamiltonian | None = Field(
        None,
        description="the Hamiltonian after the quench, a table like [hamiltonian]; default: [hamiltonian]",
    )
    imaginary: bool = Field(False, description="imaginary time: relaxation to the ground state")
    method: Literal["tdvp", "ptvmc"] = Field(
        "tdvp",
        description="tdvp: the projected equation of motion, adaptive Heun steps; ptvmc: every step minimises the infidelity "
        "to the evolved state, for product states and zeros of psi, where the equation is singular",
    )
    full_summation: bool = Field(
        False,
        description=f"sum over all configurations instead of sampling, up to {MAX_SITES_DIAGONALISED} sites",
    )
    samples: int = Field(
        4096, ge=2, le=2**20, description="Born samples of every velocity; a multiple of sampling.chains"
    )
    sweeps: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="sweeps between them, and after every step; default: sampling.sweeps",
    )
    exponent: float = Field(
        1.0,
        gt=0,
        le=1,
        description="b: the samples are of |psi|^(2b) and reweighted; with b < 1 they visit configurations near zeros of psi",
        json_schema_extra={"neutral": True},
    )
    measurements: int = Field(
        16384,
        ge=2,
        le=10**8,
        description="samples of energy and observables at every recorded time; a multiple of sampling.chains",
    )
    observables: tuple[str, ...] = Field(
        (),
        max_length=1000,
        description="observables recorded; empty: those that lattice and Hamiltonian suggest",
    )
    step: float = Field(
        0.01, gt=0, le=1e6, description="tdvp: length of the first step; ptvmc: length of all steps"
    )
    tolerance: float = Field(
        1e-4, gt=0, le=1, description="tdvp: error of a step, as a length in the metric of the states"
    )
    shortest: float = Field(1e-6, gt=0, le=1, description="tdvp: below this length the step has collapsed")
    cutoff: float = Field(
        1e-6,
        ge=0,
        lt=1,
        description="directions whose eigenvalue of the metric is a smaller share of the largest are left out",
    )
    snr: float = Field(
        2.0,
        ge=0,
        le=1e6,
        description="directions whose force has a smaller signal-to-noise ratio are left out; 0: none is; no effect on sums",
    )
    infidelity: float = Field(
        1e-8, gt=0, lt=1, description="ptvmc: a step is done when it is this close to the evolved state"
    )
    order: int = Field(
        4, ge=2, le=6, description="ptvmc: order of a step in its length, and projections that it takes"
    )
    iterations: int = Field(60, ge=1, le=100_000, description="ptvmc: at most so many iterations in a step")

    @property
    def wanted(self) -> bool:
        """Whether there is a dynamics at all."""
        return self.duration > 0

    @property
    def times(self) -> tuple[float, ...]:
        """The recorded times, 0 and ``duration`` among them; not more than a spec may ask for."""
        count = min(math.ceil(self.duration / self.every - 1e-9), MOST_TIMES)
        return (*(round(self.every * i, 12) for i in range(count)), self.duration)

    def after(self, before: Any) -> Any:
        """The record of the Hamiltonian after the quench, given the one before."""
        return self.hamiltonian or before

    def resolved(self, sections: Mapping[str, Section]) -> Section:
        update: dict[str, Any] = {}
        sampling = sections.get("sampling")
        if self.sweeps is None and isinstance(sampling, Sampling):
            update["sweeps"] = sampling.sweeps
        lattice: Any = sections.get("lattice")
        hamiltonian: Any = self.after(sections.get("hamiltonian"))
        if self.wanted and not self.observables and lattice is not None and hamiltonian is not None:
            from ..physics.observables import default_names

            update["observables"] = default_names(lattice.build(), hamiltonian.conserves_magnetization)
        return self.model_copy(update=update) if update else self

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        if self.hamiltonian is not None:
            for finding in self.hamiltonian.findings(sections):
                yield Finding(f"hamiltonian.{finding.key}", finding.what, finding.candidates)
        if not self.wanted:
            return
        if self.duration / self.every > MOST_TIMES:
            yield Finding("every", f"makes more than {MOST_TIMES} recorded times: raise it")
        yield from repeated("observables", self.observables)
        sampling = sections.get("sampling")
        if isinstance(sampling, Sampling):
            yield from self._sampling_findings(sampling, sections)
        yield from self._state_findings(sections)
        lattice: Any = sections.get("lattice")
        if lattice is not None:
            yield from self._lattice_findings(lattice.build(), sections)

    def _sampling_findings(self, sampling: Sampling, sections: Mapping[str, Section]) -> Iterator[Finding]:
        for key in ("samples", "measurements"):
            count = getattr(self, key)
            if not self.full_summation and count % sampling.chains:
                yield Finding(key, f"{count} must be a multiple of sampling.chains = {sampling.chains}")
        if self.exponent < 1 and sampling.method == "direct":
            what = 'this state is drawn directly, from |psi|^2: leave it out, or set sampling.method = "metropolis"'
            yield Finding("exponent", what)
        fixed = sampling.fixed_magnetization
        if fixed is None:
            return
        after: Any = self.after(sections.get("hamiltonian"))
        if after is not None and not after.conserves_magnetization:
            what = "does not conserve the magnetization, which sampling.magnetization holds fixed: leave that out"
            yield Finding("hamiltonian.kind" if self.hamiltonian else "duration", what)
        if self.start in ("x", "z"):
            what = f'"{self.start}" is no state of magnetization {fixed}: set sampling.magnetization = "free"'
            yield Finding("start", what)

    def _state_findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        record: Any = sections.get("state")
        if record is None or self.imaginary:
            return
        if getattr(record, "amplitude", "complex") == "positive":
            yield Finding("duration", 'real time needs a phase: set state.amplitude = "complex"')

    def _lattice_findings(self, lattice: Any, sections: Mapping[str, Section]) -> Iterator[Finding]:
        if self.full_summation and lattice.n_sites > MAX_SITES_DIAGONALISED:
            what = f"all configurations are summed of at most {MAX_SITES_DIAGONALISED} sites, not of {lattice.n_sites}"
            yield Finding("full_summation", what)
        from ..physics.observables import UnknownObservable, check_observable, observable_kind

        after: Any = self.after(sections.get("hamiltonian"))
        for index, name in enumerate(self.observables):
            try:
                check_observable(name, lattice, None if after is None else lambda: after.build(lattice))
                kind = observable_kind(name, lattice)
            except UnknownObservable as unknown:
                yield Finding(f"observables[{index}]", unknown.what, tuple(unknown.candidates))
                continue
            if kind not in ("diagonal", "local"):
                yield Finding(
                    f"observables[{index}]", f"{name} has no expectation value to follow: leave it out"
                )
