"""Dictionaries of which a part stays random: what a trained one has to beat (Korznikov et al. 2026, arXiv:2602.14111).

    frozen-decoder         d_i = d_i(0)
    soft-frozen-decoder    cos(d_i, d_i(0)) >= c
    frozen-encoder         W_e = W_e(0); thresholds b_e, b_d and the decoder are free

Otherwise they are TopK dictionaries (``topk.py``): after each step what left its place is brought back. Features that are as
interpretable in one of these as in a trained dictionary are no discovery of the training.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field

from ..engine.arrays import namespace
from ..engine.ranks import ALONE, Ranks
from .topk import SparseSection, TopKLearner
from .training import Adam


class Frozen(SparseSection):
    """What the three kinds have in common."""

    def held(self, start: Any, trained: Any) -> None:
        """Bring ``trained`` parameters back, in place, to where this kind allows them to be, given those at the ``start``."""
        raise NotImplementedError

    def learner(
        self, generator: np.random.Generator, sample: np.ndarray, ranks: Ranks = ALONE
    ) -> FrozenLearner:
        """A tied, unit-norm dictionary whose encoder length fits the first batch ``sample`` (n, d)."""
        return FrozenLearner(self, generator, sample, ranks)


class FrozenDecoder(Frozen):
    """``[sae] kind = "frozen-decoder"``: a baseline, TopK with random decoder rows that stay."""

    kind: Literal["frozen-decoder"] = Field(description="TopK, random decoder")

    def held(self, start: Any, trained: Any) -> None:
        trained.decoder[...] = start.decoder


class SoftFrozenDecoder(Frozen):
    """``[sae] kind = "soft-frozen-decoder"``: a baseline, TopK with decoder rows that stay near random ones."""

    kind: Literal["soft-frozen-decoder"] = Field(description="TopK, decoder rows near random ones")
    cosine: float = Field(0.8, ge=0, lt=1, description="least cosine of a decoder row with its random start")

    def held(self, start: Any, trained: Any) -> None:
        hold_within(trained.decoder, start.decoder, self.cosine)


class FrozenEncoder(Frozen):
    """``[sae] kind = "frozen-encoder"``: a baseline, TopK with random encoder rows that stay."""

    kind: Literal["frozen-encoder"] = Field(description="TopK, random encoder")

    def held(self, start: Any, trained: Any) -> None:
        trained.encoder[...] = start.encoder


class FrozenLearner(TopKLearner):
    """A partly random dictionary in training."""

    def __init__(
        self, record: Frozen, generator: np.random.Generator, sample: np.ndarray, ranks: Ranks = ALONE
    ) -> None:
        super().__init__(record, generator, sample, ranks)
        self.record, p = record, self.parameters
        self.start = type(p)(*(array.copy() for array in vars(p).values()))

    def step(
        self, x: np.ndarray, progress: float, dead: np.ndarray, adam: Adam, learning_rate: float
    ) -> tuple[float, np.ndarray]:
        """See ``training.Learner``."""
        result = super().step(x, progress, dead, adam, learning_rate)
        self.record.held(self.start, self.parameters)
        return result


def hold_within(rows: np.ndarray, start: np.ndarray, cosine: float) -> None:
    """Turn unit ``rows`` (F, d) in place, no further than needed, to at least this ``cosine`` with unit ``start`` (F, d)."""
    xp = namespace(rows)
    along = (rows * start).sum(axis=1, keepdims=True)
    across = rows - along * start
    length = xp.linalg.norm(across, axis=1, keepdims=True)
    sine = np.float32(np.sqrt(1 - cosine**2))
    edge = np.float32(cosine) * start + across * (sine / xp.where(length > 0, length, np.float32(1)))
    rows[...] = xp.where(along < cosine, edge, rows)
