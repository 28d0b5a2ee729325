"""The section ``[sampling]``: how configurations are drawn. A sweep is as many proposals as there are spins."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from .section import Finding, Section

if TYPE_CHECKING:
    from ..physics.lattices import Lattice
    from ..sampling.metropolis import Moves


class Sampling(Section):
    """Draws from |psi|^2 by many chains: Metropolis flips and exchanges, with or without tempering, or exact draws."""

    method: Literal["metropolis", "direct", "exact"] | None = Field(
        None,
        description="metropolis: moves of Markov chains; direct: independent samples of a state that is a product of "
        "conditionals (edited states: always Metropolis); exact: of any |psi|^2, summed in full, up to 20 sites; default: "
        "direct where the state allows it, else metropolis",
        json_schema_extra={"neutral": True},
    )
    chains: int = Field(1024, ge=1, le=2**20, description="Markov chains that run side by side")
    sweeps: int = Field(
        1,
        ge=1,
        le=10_000,
        description="sweeps between recorded samples; one sweep is as many proposals as spins",
    )
    global_flip: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of proposals that flip all spins (else ordered phases stick in one sector); default: 0.05, "
        "0 at a fixed magnetization other than 0",
    )
    stretch_flip: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of proposals that flip a stretch of sites that follow each other (moves whole domains of a chain); "
        "default: 0.2, 0 at fixed magnetization",
    )
    magnetization: int | Literal["free"] | None = Field(
        None,
        description="sum of all sigma^z, held fixed by exchange moves, or free; default: the smallest one where "
        "the Hamiltonian conserves it, else free",
        json_schema_extra={"neutral": True},
    )
    exchange: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of proposals that exchange the spins of two sites; default: all that is left at fixed "
        "magnetization, else 0",
        json_schema_extra={"neutral": True},
    )
    exchange_shells: int = Field(
        2,
        ge=1,
        le=64,
        description="spins are exchanged between neighbours up to this shell",
        json_schema_extra={"neutral": True},
    )
    replicas: int = Field(
        1,
        ge=1,
        le=64,
        description="walkers per chain for parallel tempering; the first one samples |psi|^2 and alone is recorded",
        json_schema_extra={"neutral": True},
    )
    hottest: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="the last walker of a chain samples |psi|^(2 hottest), those between follow a geometric ladder",
        json_schema_extra={"neutral": True},
    )
    burn_in: int = Field(20, ge=0, le=1_000_000, description="sweeps before the first recorded sample")

    @property
    def fixed_magnetization(self) -> int | None:
        """The conserved sum of all sigma^z, None where it is free."""
        return self.magnetization if isinstance(self.magnetization, int) else None

    def evaluations(self, n_sites: int) -> int:
        """Network calls of a sweep of one chain."""
        return 0 if self.method == "exact" else n_sites * self.replicas

    def listed(self, n_sites: int) -> int:
        """Network calls before the first sweep of a psi: all configurations that are summed."""
        if self.method != "exact":
            return 0
        if self.fixed_magnetization is None:
            return 2**n_sites
        return math.comb(n_sites, (n_sites + self.fixed_magnetization) // 2)

    def moves(self, lattice: Lattice) -> Moves:
        """What is proposed on a lattice."""
        from ..sampling.metropolis import Moves

        shares, pairs = self.resolved({}), None
        assert isinstance(shares, Sampling)
        if shares.exchange:
            pairs = np.concatenate([lattice.shell(k) for k in range(1, self.exchange_shells + 1)])
        return Moves(shares.global_flip or 0.0, shares.stretch_flip or 0.0, shares.exchange or 0.0, pairs)

    def resolved(self, sections: Mapping[str, Section]) -> Section:
        hamiltonian: Any = sections.get("hamiltonian")
        lattice: Any = sections.get("lattice")
        update: dict[str, Any] = {}
        if self.method is None and self.replicas == 1 and _drawn_directly(sections):
            update["method"] = "direct"
        independent = update.get("method", self.method) in ("direct", "exact")
        if independent and "burn_in" not in self.model_fields_set:
            update["burn_in"] = 0
        known = hamiltonian is not None and lattice is not None
        if self.magnetization is None and known and hamiltonian.conserves_magnetization:
            update["magnetization"] = lattice.build().n_sites % 2
        fixed = isinstance(update.get("magnetization", self.magnetization), int)
        zero = update.get("magnetization", self.magnetization) == 0
        if self.global_flip is None:
            update["global_flip"] = 0.05 if zero or not fixed else 0.0
        if self.stretch_flip is None:
            update["stretch_flip"] = 0.0 if fixed else 0.2
        if self.exchange is None and fixed:
            update["exchange"] = 1.0 - (update.get("global_flip", self.global_flip) or 0.0)
        return self.model_copy(update=update)

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        if self.method == "direct" and "state" in sections and not _drawn_directly(sections):
            state: Any = sections["state"]
            projected = ", projected," if state.symmetry.wanted else ""
            what = f'a state of kind "{state.kind}"{projected} is no product of conditionals'
            yield Finding("method", f'{what}: leave it out, or set it to "metropolis"')
        shares = [share or 0.0 for share in (self.global_flip, self.stretch_flip, self.exchange)]
        if sum(shares) > 1 + 1e-12:
            names = ("global_flip", "stretch_flip", "exchange")
            largest = max(zip(shares, names, strict=True))[1]
            told = ", ".join(f"{name} = {share:g}" for name, share in zip(names, shares, strict=True))
            what = f"{told} are shares of the proposals: together at most 1"
            yield Finding(largest, what)
        lattice: Any = sections.get("lattice")
        if self.method in ("direct", "exact") and self.replicas > 1:
            yield Finding("replicas", "independent draws need no tempering: leave it out or set it to 1")
        if self.method == "exact" and lattice is not None:
            yield from self._exact_findings(lattice.build().n_sites)
        if self.fixed_magnetization is None:
            yield from self._free_findings(shares)
        else:
            yield from self._fixed_findings(self.fixed_magnetization, shares, sections)

    def _exact_findings(self, n_sites: int) -> Iterator[Finding]:
        from ..sampling.exact import MAX_SITES_LISTED

        if n_sites > MAX_SITES_LISTED:
            what = (
                f"exact draws list all configurations, of at most {MAX_SITES_LISTED} sites, not of {n_sites}"
            )
            yield Finding("method", f'{what}: set it to "metropolis"')

    def _free_findings(self, shares: list[float]) -> Iterator[Finding]:
        global_flip, stretch_flip, exchange = shares
        if exchange and not stretch_flip and math.isclose(global_flip + exchange, 1.0):
            what = "exchanges alone never change the magnetization: lower it, or fix sampling.magnetization"
            yield Finding("exchange", what)

    def _fixed_findings(
        self, fixed: int, shares: list[float], sections: Mapping[str, Section]
    ) -> Iterator[Finding]:
        hamiltonian: Any = sections.get("hamiltonian")
        lattice: Any = sections.get("lattice")
        if hamiltonian is not None and not hamiltonian.conserves_magnetization:
            yield Finding(
                "magnetization",
                'this Hamiltonian does not conserve it: leave it out or set it to "free"',
            )
        if self.stretch_flip:
            yield Finding(
                "stretch_flip",
                "at fixed magnetization no stretch can be flipped: leave it out or set it to 0",
            )
        if self.global_flip and fixed:
            yield Finding(
                "global_flip",
                f"flipping all spins changes a magnetization of {fixed}: leave it out or set it to 0",
            )
        if not math.isclose(sum(shares), 1.0):
            yield Finding(
                "exchange",
                "at fixed magnetization single spins cannot be flipped: global_flip + exchange must be 1",
            )
        if lattice is not None:
            if self.method != "exact" and not lattice.build().connected:
                what = (
                    "at fixed magnetization spins are exchanged between neighbours, and no edge joins the parts of this graph: "
                    'join them, or set sampling.method = "exact" or sampling.magnetization = "free"'
                )
                yield Finding("magnetization", what)
            n_sites = lattice.build().n_sites
            if abs(fixed) >= n_sites or (n_sites + fixed) % 2:
                yield Finding(
                    "magnetization", f"{n_sites} spins cannot have a sum of {fixed} and still exchange"
                )


def _drawn_directly(sections: Mapping[str, Section]) -> bool:
    """Whether the state is a product of conditional probabilities."""
    return getattr(sections.get("state"), "drawn_directly", False)
