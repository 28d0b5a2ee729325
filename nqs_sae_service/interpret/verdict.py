"""One sentence per observable and layer, with the numbers it rests on.

    SAE not informative here     the activations are nearly one-dimensional (participation ratio below 2)
    feature found                the interval of the gain over the best control is positive, and q < 0.05
    no better than controls      anything else
    undefined                    the observable does not vary on the test chains, or no feature does on select

The participation ratio of the activation covariance C, (tr C)^2 / tr C^2, is the number of directions that
carry the variance: below two there is nothing to take apart, whatever the correlations are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FEW_CHAINS = 10  # below this an error from resampling chains means little
LOW_DIMENSIONAL = 2.0
SIGNIFICANT = 0.05
EXPLAINED = 0.99
UNSTABLE = 0.5  # mean cosine with the matched features of other seeds: these are other features


@dataclass(frozen=True)
class Evidence:
    """What is known about one observable at one layer, on the test chains; feature -1 if there is none."""

    layer: str
    observable: str
    feature: int
    pearson: float
    p_value: float
    q_value: float
    control: str
    control_pearson: float
    gain: float
    gain_low: float
    gain_high: float
    confidence: float
    permutations: int
    participation_ratio: float
    test_chains: int
    simple_function_r2: float = np.nan
    stability: float = np.nan

    @property
    def found(self) -> bool:
        """Whether the interval of the gain lies above zero and q is significant."""
        return self.gain_low > 0.0 and self.q_value < SIGNIFICANT


def verdict(evidence: Evidence) -> str:
    """The sentence, e.g. ``feature found: feature 17 follows m at residual_2 with r = +0.82 ...``."""
    e = evidence
    if np.isnan(e.pearson):
        return f"undefined: {e.observable} does not vary on the test chains."
    if e.feature < 0:
        return (
            f"undefined: no feature of {e.layer} varies on the select chains, none can follow {e.observable}."
        )
    return f"{_judgement(e)}: {_numbers(e)}{_remarks(e)}."


def _judgement(e: Evidence) -> str:
    if e.participation_ratio < LOW_DIMENSIONAL:
        return f"SAE not informative here (participation ratio {e.participation_ratio:.2f})"
    return "feature found" if e.found else "no better than controls"


def _numbers(e: Evidence) -> str:
    interval = f"[{e.gain_low:+.3f}, {e.gain_high:+.3f}] ({100 * e.confidence:g} %)"
    if np.isnan(e.gain_low):
        interval = "(no interval: too few chains carry it)"
    return (
        f"feature {e.feature} follows {e.observable} at {e.layer} with r = {e.pearson:+.3f} on test chains, "
        f"the best control ({e.control}) with |r| = {abs(e.control_pearson):.3f}; gain {e.gain:+.3f} "
        f"{interval}, q = {e.q_value:.2g}"
    )


def _remarks(e: Evidence) -> str:
    """What the reader must know to weigh the numbers."""
    smallest = 1.0 / (1.0 + e.permutations)
    remarks = []
    if e.q_value >= SIGNIFICANT and e.p_value < 1.5 * smallest:
        remarks.append(f"p is as small as {e.permutations} permutations allow: raise features.permutations")
    if e.test_chains < FEW_CHAINS:
        remarks.append(f"only {e.test_chains} test chains, so the interval is rough")
    if e.simple_function_r2 > EXPLAINED:
        share = f"{100 * e.simple_function_r2:.1f} %"
        remarks.append(f"simple functions of the configuration explain {share} of {e.observable}")
    if e.stability < UNSTABLE:
        remarks.append(
            f"other seeds of the dictionary do not find this feature (stability {e.stability:.2f})"
        )
    return "".join(f"; {remark}" for remark in remarks)
