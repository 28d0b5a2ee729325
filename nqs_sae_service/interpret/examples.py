"""On which configurations is a feature most active? The first thing to look at, and no proof of anything.

The activation of a configuration is the one that is correlated with observables, the mean over tokens. Among the samples a
configuration may come several times; here it is shown once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def most_active(f: ArrayLike, sigma: ArrayLike, count: int) -> NDArray[np.int64]:
    """Samples (count,) with the largest activations, largest first, no configuration twice; -1 where no other one is active.

    f (n,) >= 0, sigma (n, spin). Of equal ones the first sample stands.
    """
    f, sigma = np.asarray(f), np.asarray(sigma)
    found = np.full(count, -1)
    seen: set[bytes] = set()
    for sample in np.argsort(-f, kind="stable"):
        if len(seen) == count or f[sample] <= 0:
            break
        name = sigma[sample].tobytes()
        if name not in seen:
            found[len(seen)] = sample
            seen.add(name)
    return found


def percentile(values: ArrayLike, among: ArrayLike) -> NDArray[np.float64]:
    """Percentile in [0, 100] of ``values`` (m,) among the numbers (n,): those below and half of those that are equal."""
    ordered = np.sort(np.asarray(among, np.float64))
    below, up_to = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return 50.0 * (below + up_to) / len(ordered)
