"""The section ``[transfer]``: a network learns a trained one before it is trained on energy itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from .section import Finding, Section
from .sections import DEFAULT_SEED, StageSeed


class Transfer(Section):
    """From a trained transformer to one with other attention heads: its parameters, its layers, its wave function."""

    seed: StageSeed = DEFAULT_SEED
    teacher: str | None = Field(
        None,
        min_length=1,
        description="run whose network is learned: the name of one in the same results, or a path, relative to the spec, to a "
        "run (./x, ../x, /x) or a ground_state.nc; none: no transfer",
    )
    samples: int = Field(
        2048,
        ge=2,
        le=10**7,
        description="Born samples: of the teacher for its layers, then of the network for the infidelity",
    )
    match_steps: int = Field(
        300,
        ge=0,
        le=1_000_000,
        description="steps in which every block of heads learns the output of the teacher's",
    )
    batch: int = Field(64, ge=1, le=10**6, description="samples of such a step")
    learning_rate: float = Field(
        3e-3, gt=0, le=10, description="Adam, at the first of these steps; falls to zero as a cosine"
    )
    infidelity_steps: int = Field(
        20, ge=0, le=100_000, description="natural-gradient steps that minimise the infidelity to the teacher"
    )
    infidelity: float = Field(1e-4, gt=0, le=1, description="infidelity at which these end")

    @property
    def wanted(self) -> bool:
        """Whether there is a teacher."""
        return self.teacher is not None

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        if not self.wanted:
            return
        if self.batch > self.samples:
            yield Finding("batch", f"a batch of {self.batch} out of {self.samples} samples: at most as many")
        state: Any = sections.get("state")
        if state is not None and state.kind != "transformer":
            what = f'state.kind = "{state.kind}" has no attention heads to teach: take a transformer, or leave it out'
            yield Finding("teacher", what)
        ground_state: Any = sections.get("ground_state")
        if ground_state is not None and ground_state.start_from:
            yield Finding(
                "teacher", "a training has one start: leave out transfer.teacher or ground_state.start_from"
            )
        elif state is not None and state.load:
            yield Finding("teacher", "a training has one start: leave out transfer.teacher or state.load")
