"""What every kind of dictionary has in common: the fields of ``[sae]`` that say what is read and for how long it learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ..spec.section import Finding, Section

if TYPE_CHECKING:
    import numpy as np

    from ..engine.ranks import Ranks
    from .dictionary import Dictionary
    from .training import History, Learner

Tick = Callable[[int, int, str], None]


class SaeSection(Section):
    """Fields shared by all kinds of ``[sae]``. A kind adds its own and says how one step learns (``learner``)."""

    thresholds: ClassVar[bool] = False  # whether features have one, kept as ``threshold``

    kind: str = Field(description="architecture of the dictionary")
    input: Literal["token", "pooled"] = Field(
        "token", description="rows of the training data: every token of a sample, or the mean over its tokens"
    )
    features: int = Field(256, ge=1, le=2**21, description="number of features F in the dictionary")
    seeds: list[int] = Field(
        [1, 2, 3],
        min_length=1,
        max_length=64,
        description="one dictionary per seed; not the seed of the network",
    )
    steps: int = Field(2000, ge=1, le=10**8, description="optimisation steps")
    batch: int = Field(4096, ge=1, le=2**22, description="inputs per step (at most all of them)")
    learning_rate: float = Field(
        3e-3,
        gt=0,
        le=1,
        description="Adam step length; falls linearly to zero over the last 20 % of the steps",
    )
    dead_after: int = Field(
        2**18, ge=1, le=2**40, description="inputs without firing after which a feature counts as dead"
    )
    untrained: int = Field(
        3, ge=0, le=64, description="untrained networks that get the same dictionary, as a control (number)"
    )

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        """Seeds are whole numbers from 0 on, each once."""
        for position, seed in enumerate(self.seeds):
            if not 0 <= seed < 2**63:
                yield Finding(f"seeds[{position}]", f"{seed} is outside 0 ... 2^63 - 1")
            elif seed in self.seeds[:position]:
                yield Finding(f"seeds[{position}]", f"{seed} appears twice")

    @property
    def active(self) -> int:
        """Features that an input activates at most, where that is fixed; else 0."""
        return 0

    def learner(self, parameters_seed: np.random.Generator, sample: np.ndarray, ranks: Ranks) -> Learner:
        """A freshly initialised dictionary that can take optimisation steps (each kind defines it).

        ``sample`` (n, d) float32: the first batch of centred, scaled inputs, on which the initial lengths are set.
        Of its features the learner has the share of this one of the ``ranks``.
        """
        raise NotImplementedError

    def train(self, x: np.ndarray, seed: int, tick: Tick) -> tuple[Dictionary, History]:
        """Train one dictionary on the rows of ``x`` (n, d) float32; see ``training.train``."""
        from .training import train

        return train(self, x, seed, tick)


class CountedSection(SaeSection):
    """Fields of the kinds with k active features per input: always, or on average where thresholds take their place later."""

    k: int = Field(8, ge=1, le=4096, description="active features per input")

    @property
    def active(self) -> int:
        return 0 if self.thresholds else self.k

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        """Not more active features than there are."""
        yield from super().findings(sections)
        if self.k > self.features:
            yield Finding("k", f"{self.k} active features of {self.features}: k must not exceed features")
