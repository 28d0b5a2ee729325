"""ReLU dictionaries with the L1 penalty of Scaling Monosemanticity (Templeton et al. 2024, "Sparse Autoencoder").

    f = ReLU(W_e x + b_e),   x_hat = W_d^T f + b_d,   L = E[ |x - x_hat|^2 + lambda sum_i f_i |d_i| ]

on inputs scaled to E|x|^2 = d. There is no constraint on lengths: the effective activation is f_i |d_i|. lambda grows linearly
over the first 5 % of the steps.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from .record import SaeSection


class ReluL1(SaeSection):
    """``[sae] kind = "relu-l1"``: as many active features as the penalty lets through."""

    kind: Literal["relu-l1"] = Field(description="ReLU with an L1 penalty weighted by decoder length")
    l1: float = Field(5.0, ge=0, le=1e6, description="penalty lambda, for inputs scaled to E|x|^2 = width")

    def learner(self, generator: np.random.Generator, sample: np.ndarray) -> ReluL1Learner:
        """A tied dictionary with short decoder rows."""
        return ReluL1Learner(self, generator, sample.shape[1])
