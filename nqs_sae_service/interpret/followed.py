"""Does one feature follow an observable through time, also where nobody looked?

A feature is chosen once for all times, by the mean of |r| over the training times on the select chains; every control
chooses its candidate in the same way. What counts is the weakest moment of each on the test chains of the held-out times:

    lowest = min over held-out times of |r(t)|

A time at which an observable does not vary (a product state) has no r: it says nothing for or against any candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .controls import of_chosen, strongest

FOLLOWED = 0.92  # the least |r| of a feature that is said to follow


def choose(select: ArrayLike, training: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Candidate with the largest mean |r| over the ``training`` times (time,); -1 where there is none.

    select (time, candidate, O): r on the select chains -> (O,).
    """
    strength = np.nan_to_num(np.abs(np.asarray(select)[training]), nan=0.0)
    return strongest(strength.mean(axis=0))


@dataclass(frozen=True)
class Candidates:
    """All that may be followed at one layer: what each is (candidate,), r on select and test chains (time, candidate, O)."""

    labels: NDArray
    select: NDArray[np.float64]
    test: NDArray[np.float64]

    def followed(
        self, label: str, training: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The candidate of a label chosen for every observable (O,), counted among its like, and its r (time, O)."""
        alike = self.labels == label
        best = choose(self.select[:, alike], training)
        return best, of_chosen(self.test[:, alike], best)


@dataclass(frozen=True)
class Evidence:
    """How one observable is followed at one layer: r of feature (time,) and controls (control, time) at the held-out times."""

    layer: str
    observable: str
    feature: int
    times: NDArray[np.float64]
    pearson: NDArray[np.float64]
    controls: Sequence[str]
    control_pearson: NDArray[np.float64]


def verdict(evidence: Evidence) -> str:
    """One sentence, e.g. ``followed: feature 17 follows m at residual_2 with |r| of at least 0.961 ...``."""
    e = evidence
    if not len(e.times):
        return "undefined: no time is held out."
    defined = ~np.isnan(e.pearson)
    if not defined.any():
        return f"undefined: {e.observable} does not vary at the held-out times."
    if e.feature < 0:
        return f"undefined: no feature of {e.layer} varies with {e.observable} at the training times."
    size, control = np.abs(e.pearson[defined]), np.abs(e.control_pearson[:, defined]).min(axis=1)
    lowest, best = size.argmin(), control.argmax()
    beaten = size[lowest] > control[best]
    few = int((size < FOLLOWED).sum())
    judgement = "no better than controls" if not beaten else "not followed throughout" if few else "followed"
    remarks = f"; |r| < {FOLLOWED} at {few} of {len(size)} held-out times" if few else ""
    if np.ptp(np.sign(e.pearson[defined])):
        remarks += "; r changes its sign"
    if not defined.all():
        remarks += f"; {e.observable} does not vary at {(~defined).sum()} more"
    return (
        f"{judgement}: feature {e.feature} follows {e.observable} at {e.layer} through the held-out times with |r| of at least "
        f"{size[lowest]:.3f} (t = {e.times[defined][lowest]:g}), the best control ({e.controls[best]}) with at least "
        f"{control[best]:.3f}{remarks}."
    )
