"""How does a feature behave under a symmetry g of the Hamiltonian? f(sigma) beside f(g sigma) on Born samples.

    invariant   r(f(sigma), f(g sigma)) is as good as one
    partner     it is not, but another feature p does there what f does here: r(f(g sigma), p(sigma)) is as good as one
    neither     the network, or its dictionary, does not know g in this feature

"As good as one" is r >= 0.95, 90 % of the variance. An even observable should have an invariant feature; an odd one
cannot, because activations are not negative: it takes a feature and its partner. The shift

    (E f(g sigma) - E f(sigma)) / std f

vanishes where state and samples have the symmetry, whatever the feature is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .correlation import pearson, standardised

Array = NDArray[np.float64]

AS_GOOD_AS_ONE = 0.95
INVARIANT, PARTNER, NEITHER = "invariant", "partner", "neither"


def image_pearson(here: ArrayLike, there: ArrayLike) -> Array:
    """Correlation (K,) of activations ``here`` on sigma and ``there`` on g sigma, (chain, draw, K) each; 0 if constant."""
    return np.clip(np.mean(standardised(here) * standardised(there), axis=(0, 1)), -1.0, 1.0)


def shift(here: ArrayLike, there: ArrayLike) -> Array:
    """Change (K,) of the mean activation by g, in standard deviations of ``here``, (chain, draw, K); 0 if constant."""
    here, there = np.asarray(here, np.float64), np.asarray(there, np.float64)
    change, spread = (there - here).mean(axis=(0, 1)), here.std(axis=(0, 1))
    return np.divide(change, spread, out=np.zeros_like(change), where=spread > 0)


def partner(f: ArrayLike, there: ArrayLike, features: NDArray[np.int64]) -> NDArray[np.int64]:
    """The other feature whose activations on sigma follow best those of each of ``features`` (K,) on g sigma; -1 if none does.

    f (chain, draw, F) on sigma, there (chain, draw, K) on g sigma: the largest r, which must be positive.
    """
    r = np.nan_to_num(pearson(f, there), nan=-1.0)
    own = np.flatnonzero(features >= 0)
    r[features[own], own] = -1.0
    best = r.argmax(axis=0)
    return np.where((features >= 0) & (r[best, np.arange(len(best))] > 0), best, -1)


def behaviour(image: float, of_partner: float) -> str:
    """The word for a feature with r = ``image`` between f(sigma) and f(g sigma), and r = ``of_partner`` with its partner's."""
    if image >= AS_GOOD_AS_ONE:
        return INVARIANT
    return PARTNER if of_partner >= AS_GOOD_AS_ONE else NEITHER
