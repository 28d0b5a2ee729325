"""Quenched site disorder: a field that differs from site to site, drawn once by a seed.

    h_i = h + W u_i,    u_i uniform in [-1, 1] or normal with mean 0 and variance 1.

u_i depends on the seed and on i alone: the first sites of a longer chain have the same fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ..spec.section import Finding, Section

_NEUTRAL: dict[str, Any] = {"neutral": True}


class SiteDisorder(Section):
    """The keys of a Hamiltonian whose field may be random."""

    disorder: Literal["none", "uniform", "normal"] = Field(
        "none",
        description="distribution of the random part of the field at each site",
        json_schema_extra=_NEUTRAL,
    )
    disorder_width: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="uniform in [-width, width] around the field, or the standard deviation of a normal one; in units of J",
        json_schema_extra=_NEUTRAL,
    )
    disorder_seed: int = Field(
        1,
        ge=0,
        le=2**31 - 1,
        description="seed of the random fields: one sample of them",
        json_schema_extra=_NEUTRAL,
    )

    @property
    def disordered(self) -> bool:
        """Whether there is a random part."""
        return self.disorder != "none"

    def random_fields(self, n_sites: int) -> np.ndarray:
        """W u_i, (n_sites,) float64; zeros without disorder."""
        generator = np.random.default_rng(self.disorder_seed)
        if self.disorder == "uniform":
            return self.disorder_width * generator.uniform(-1, 1, n_sites)
        if self.disorder == "normal":
            return self.disorder_width * generator.standard_normal(n_sites)
        return np.zeros(n_sites)

    def disorder_findings(self) -> Iterator[Finding]:
        """A width without a distribution, or the other way round."""
        if self.disordered != (self.disorder_width > 0):
            what = (
                f'{self.disorder} disorder needs a width greater than 0, or disorder = "none"'
                if self.disordered
                else 'there is a width but no distribution: set disorder to "uniform" or "normal"'
            )
            yield Finding("disorder_width" if self.disordered else "disorder", what)
