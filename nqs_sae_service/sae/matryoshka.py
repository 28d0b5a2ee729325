"""Matryoshka dictionaries: nested ones, each of which has to explain the input by itself (Bussmann et al. 2025,
arXiv:2503.17547).

    L = 1/M sum_m <|x - x_hat_m|^2> + alpha L_aux,   x_hat_m = sum_(i < F_m) f_i d_i + b_d,   F_1 < ... < F_M = F

with the active features and the auxiliary loss of ``batchtopk.py``. The small dictionaries hold what is general, and later
features cannot take it over in parts. The sizes are F, F / 2, F / 4 and so on, ``levels`` of them. Decoding goes from one to
the next: e_m = e_(m-1) - (what the features from F_(m-1) to F_m add), and a feature learns from the sum of the e_m it is in.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from ..engine.ranks import ALONE, Ranks
from .batchtopk import BatchTopKLearner
from .topk import SparseSection


class Matryoshka(SparseSection):
    """``[sae] kind = "matryoshka"``: nested BatchTopK dictionaries, general features first."""

    thresholds = True

    kind: Literal["matryoshka"] = Field(description="BatchTopK dictionaries inside one another")
    levels: int = Field(
        5, ge=1, le=16, description="nested dictionaries: of features, features / 2, features / 4 ..."
    )

    @property
    def sizes(self) -> list[int]:
        """Features of every nested dictionary, ascending."""
        return sorted({max(1, self.features >> level) for level in range(self.levels)})

    def learner(
        self, generator: np.random.Generator, sample: np.ndarray, ranks: Ranks = ALONE
    ) -> BatchTopKLearner:
        """A tied, unit-norm dictionary whose encoder length fits the first batch ``sample`` (n, d)."""
        return BatchTopKLearner(self, generator, sample, ranks, self.sizes)
