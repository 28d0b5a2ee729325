"""The section ``[heads]``: which attention heads carry the physics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from .section import Finding, Section
from .sections import DEFAULT_SEED, Observables, StageSeed, repeated, without_mean

_OWN_READOUTS = ("log_psi", "energy", "infidelity")
Counterfactual = Literal["sector", "region", "distant"]


class Heads(Section):
    """Which attention heads carry the physics, by patching every head; none while samples is 0."""

    seed: StageSeed = DEFAULT_SEED
    samples: int = Field(
        0,
        ge=0,
        le=10**8,
        description="Born samples of the test chains on which heads are patched, and of the select chains on which they are "
        "knocked out; 0: no heads",
    )
    sets: int = Field(
        2, ge=1, le=100, description="disjoint sets of these samples, each with a ranking of its own"
    )
    probes: int = Field(
        2, ge=1, le=100, description="counterfactuals of every kind, drawn anew for every set"
    )
    counterfactuals: tuple[Counterfactual, ...] = Field(
        ("sector", "region", "distant"),
        min_length=1,
        description="what a head sees instead: a Born sample of the other sector, a quarter of the spins flipped (moved on by "
        "one place at fixed magnetization), a distant Born sample",
    )
    readouts: tuple[str, ...] = Field(
        (),
        max_length=1000,
        description="what a head is scored by: log_psi, energy, infidelity, observables; empty: log_psi, energy and those of "
        "observables.names that have a mean",
    )
    threshold: float = Field(
        0.05, ge=0, le=1e3, description="share of the effect of a counterfactual from which on a head counts"
    )
    orders: int = Field(
        20,
        ge=2,
        le=10_000,
        description="random orders in which heads are knocked out, beside that of the ranking",
    )

    @property
    def wanted(self) -> bool:
        """Whether heads are looked at."""
        return self.samples > 0

    def resolved(self, sections: Mapping[str, Section]) -> Section:
        observables = sections.get("observables")
        if self.readouts or not self.wanted or not isinstance(observables, Observables):
            return self
        left_out = without_mean(observables.names, sections)
        means = (name for name in observables.names if name not in left_out and name != "local_energy")
        return self.model_copy(update={"readouts": ("log_psi", "energy", *means)})

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        if not self.wanted:
            return
        yield from repeated("counterfactuals", self.counterfactuals)
        yield from repeated("readouts", self.readouts)
        if self.samples < 2 * self.sets:
            what = f"{self.sets} sets need two samples each: at least {2 * self.sets}, or 0 for no heads"
            yield Finding("samples", what)
        state: Any = sections.get("state")
        if state is not None and not any(name.startswith("heads_") for name in state.layer_names()):
            what = (
                f'state.kind = "{state.kind}" has no attention heads: take a transformer, or set samples to 0'
            )
            yield Finding("samples", what)
        dynamics: Any = sections.get("dynamics")
        if dynamics is not None and dynamics.wanted:
            yield Finding(
                "samples", "heads are those of ground states: set dynamics.duration = 0, or samples = 0"
            )
        yield from self._readout_findings(sections)

    def _readout_findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        observables = sections.get("observables")
        if not isinstance(observables, Observables):
            return
        measured = tuple(name for name in self.readouts if name in observables.names)
        left_out, known = without_mean(measured, sections), (*_OWN_READOUTS, *observables.names)
        for index, name in enumerate(self.readouts):
            if name not in known:
                what = f'"{name}" is neither {", ".join(_OWN_READOUTS)} nor listed in observables.names: add it there'
                yield Finding(f"readouts[{index}]", what, known)
            elif name in left_out:
                yield Finding(f"readouts[{index}]", f"{name} is no readout, {left_out[name]}: leave it out")
