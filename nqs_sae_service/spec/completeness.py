"""The section ``[completeness]``: which products of spins have a feature of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from .section import Finding, Section
from .sections import Activations, repeated

_MOST_STRINGS = 100_000


class Completeness(Section):
    """Which products of spins around a token have a feature; none while order is 0."""

    order: int = Field(0, ge=0, le=8, description="spins in a product at most; 0: no completeness")
    sites: int = Field(
        12,
        ge=1,
        le=64,
        description="the sites nearest to a token, its own among them, whose products are taken",
    )
    samples: int = Field(
        2048, ge=2, le=10**8, description="Born samples of the select chains, and as many of the test chains"
    )
    layers: tuple[str, ...] = Field(
        (), max_length=1000, description="layers; empty: activations.layers, but for the head"
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="|r| from which on a product has a feature")

    @property
    def wanted(self) -> bool:
        """Whether there is any completeness to be told."""
        return self.order > 0

    def resolved(self, sections: Mapping[str, Section]) -> Section:
        activations = sections.get("activations")
        if self.layers or not isinstance(activations, Activations):
            return self
        return self.model_copy(update={"layers": tuple(x for x in activations.layers if x != "head")})

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        if not self.wanted:
            return
        yield from repeated("layers", self.layers)
        sae: Any = sections.get("sae")
        if getattr(sae, "input", "token") == "pooled":
            what = 'products are looked for around tokens: set sae.input = "token", or order = 0'
            yield Finding("order", what)
        dynamics: Any = sections.get("dynamics")
        if dynamics is not None and dynamics.wanted:
            yield Finding(
                "order", "completeness looks at ground states: set dynamics.duration = 0, or order = 0"
            )
        activations = sections.get("activations")
        if isinstance(activations, Activations):
            allowed = tuple(layer for layer in activations.layers if layer != "head")
            for index, layer in enumerate(self.layers):
                if layer not in allowed:
                    what = f'"{layer}" is not listed in activations.layers, or has no tokens: add it there, or leave it out'
                    yield Finding(f"layers[{index}]", what, allowed)
            if not allowed:
                yield Finding("order", "the head has no tokens: add another layer to activations.layers")
        yield from self._lattice_findings(sections)

    def _lattice_findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        geometry: Any = sections.get("lattice")
        state: Any = sections.get("state")
        if geometry is None or state is None or any(True for _ in state.findings(sections)):
            return
        from ..physics.strings import count_of, frames

        lattice = geometry.build()
        sites = min(self.sites, lattice.n_sites)
        if count_of(sites, self.order) > _MOST_STRINGS:
            what = f"{sites} sites have more than {_MOST_STRINGS} products of up to {self.order} spins: lower it, or sites"
            yield Finding("order", what)
        if frames(lattice, state.build(lattice).sites) is None:
            what = "tokens are not translates of each other on this lattice, so that products are not the same: set it to 0"
            yield Finding("order", what)
