"""BatchTopK dictionaries: k active features per input on average over a batch (Bussmann et al. 2024, arXiv:2412.06410).

    training    f = ReLU(z) where z is among the N k largest entries of the batch's (N, F), else 0
    inference   f = z where z > theta,   theta = E_batch[ the least active z of a batch ]

An input with much to say takes more features than another. Loss, auxiliary loss and steps are those of ``topk.py``. theta is
measured once, when training is over, on further batches; one number serves all features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ..engine.arrays import namespace
from ..engine.ranks import ALONE, Ranks
from .dictionary import kernels_for
from .topk import SparseSection, TopKLearner
from .training import Thresholded

LONGER = 4  # times k: the first length of the lists of candidates

Encode = Callable[[int], tuple[Any, Any]]


class BatchTopK(SparseSection):
    """``[sae] kind = "batchtopk"``: k active features per input on average, as many as it needs for each."""

    thresholds = True

    kind: Literal["batchtopk"] = Field(
        description="N k largest pre-activations of N inputs, a threshold afterwards"
    )

    def learner(
        self, generator: np.random.Generator, sample: np.ndarray, ranks: Ranks = ALONE
    ) -> BatchTopKLearner:
        """A tied, unit-norm dictionary whose encoder length fits the first batch ``sample`` (n, d)."""
        return BatchTopKLearner(self, generator, sample, ranks)


class BatchTopKLearner(TopKLearner):
    """A BatchTopK dictionary in training."""

    def __init__(
        self,
        record: SparseSection,
        generator: np.random.Generator,
        sample: np.ndarray,
        ranks: Ranks = ALONE,
        sizes: Sequence[int] = (),
    ) -> None:
        super().__init__(record, generator, sample, ranks, best_of_batch, sizes)

    def finished(self, batches: Iterable[np.ndarray] = ()) -> Thresholded:
        """See ``training.Learner``. Without any batches theta is 0."""
        found = [self._threshold(x) for x in batches]
        theta = np.float32(np.mean(found) if found else 0)
        p = self.parameters
        return Thresholded(**vars(p), threshold=namespace(p.encoder).full(len(p.encoder), theta, np.float32))

    def _threshold(self, x: np.ndarray) -> float:
        p, kernels = self.parameters, kernels_for(x)

        def encode(k: int) -> tuple[np.ndarray, np.ndarray]:
            return kernels.encode_topk(x, p.encoder, p.encoder_bias, p.decoder_bias, k)

        return best_and_bound(encode, self.k, len(p.encoder), self.ranks)[2]


def best_of_batch(encode: Encode, k: int, n_features: int, ranks: Ranks) -> tuple[Any, Any]:
    """The N k best of all N inputs together: ``encode(k)`` has the best of each, of this rank's ``n_features``."""
    return best_and_bound(encode, k, n_features, ranks)[:2]


def best_and_bound(encode: Encode, k: int, n_features: int, ranks: Ranks) -> tuple[Any, Any, float]:
    """``best_of_batch``, and the least of them. Where that ties, all the equal ones are active.

    Lists of candidates are exact as soon as no full one ends above the bound; until then they get longer.
    """
    longest = LONGER * k
    while True:
        values, indices = encode(min(longest, n_features))
        bound = _bound(values, k * len(values), ranks)
        ends = values.min(axis=1) if values.size else values.sum(axis=1)
        cut = values.shape[1] < n_features and bool(((ends > 0) & (ends >= bound)).any())
        if not ranks.sum(np.asarray([int(cut)]))[0]:
            break
        longest *= 2
    active = (values > 0) & (values >= bound)
    values *= active
    return values, namespace(values).where(active, indices, np.int32(-1)), float(bound)


def _bound(values: Any, wanted: int, ranks: Ranks) -> np.float32:
    """The ``wanted``-th largest of the positive ``values`` of all ranks; 0 if there are not so many."""
    positive = values[values > 0]
    if ranks.size > 1:
        positive = ranks.gather(_largest(positive, wanted))
    if len(positive) < max(wanted, 1):
        return np.float32(0)
    return np.float32(float(_largest(positive, wanted).min()))


def _largest(values: Any, n: int) -> Any:
    return (
        namespace(values).partition(values, len(values) - n)[len(values) - n :] if len(values) > n else values
    )
