"""One dictionary on several ranks: each has its share of the features, with everything that belongs to them.

Encoder and decoder rows, their moments and gradients never leave their rank; every rank sees the whole batch x (n, d). With
P ranks a step of a dictionary with F features, k of them active, needs, on each rank,

    pre-activations of the own F / P features                         2 n F d / P operations
    candidates: the k best of these, compared among the ranks         5 n k bytes: values to who has the row, marks back
    reconstruction: the sum of what the ranks contribute              8 n d bytes: parts to who has the row, sums back
    gradients and Adam steps of the own features                      (6 n k d + 30 F d) / P operations

of which (P - 1) / P are sent, and memory for 6 F d / P numbers. The bytes depend neither on F nor on P: the larger the
dictionary, the better it scales. The classical way, gradients of this rank's inputs summed over the ranks, sends 16 F d bytes
a step and has the whole dictionary on every rank. Dense (ReLU) features need no candidates, nested dictionaries a
reconstruction each, a gate its own; the k n best of a batch are found among the k n best of every rank, sent to all. The
auxiliary loss of TopK needs everything once more, for its dead features. Components (PCA, ICA) are computed by every rank.

The k best features of an input are the same as on one rank, ties included. The reconstruction is summed in another order: one
rank and several agree to rounding, float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..engine.arrays import namespace, to_host
from ..engine.ranks import Ranks

Array = Any


def best_over_ranks(values: Array, indices: Array, k: int, ranks: Ranks) -> tuple[Array, Array]:
    """Of the best of every rank, (n, at most k) each, those that are among the k best of all; the others become empty places.

    Values, and indices into this rank's features, are as ``kernels.encode_topk`` returns them; they are overwritten.
    The lower rank wins a tie, then the lower index.
    """
    if ranks.size == 1:
        return values, indices
    scores = np.where(to_host(indices) < 0, np.float32(-np.inf), to_host(values))
    rows = [ranks.share(len(scores), rank) for rank in range(ranks.size)]
    marks = namespace(values).asarray(_marked([scores[own] for own in rows], k, ranks))
    values *= marks
    indices |= marks.astype(np.int32) - 1  # -1 where there is no mark
    return values, indices


def _marked(scores: list[np.ndarray], k: int, ranks: Ranks) -> np.ndarray:
    """Mask of this rank's scores, given by the rank that compares them, that are among the k best of all."""
    from .encode import keep_best

    received = ranks.exchange(scores)
    ends = np.cumsum([part.shape[1] for part in received])
    marks = keep_best(np.concatenate(received, axis=1), k)
    return np.concatenate(ranks.exchange(np.split(marks, ends[:-1], axis=1)))


def on_the_first(array: np.ndarray, ranks: Ranks) -> np.ndarray:
    """The rows (n_rank, ...) of all ranks one below the other on rank 0; elsewhere none, so that no memory is needed there."""
    if ranks.size == 1:
        return array
    return np.concatenate(ranks.exchange([array[: None if rank == 0 else 0] for rank in range(ranks.size)]))
