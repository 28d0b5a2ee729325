"""Every operation of ``MpiRanks`` against its definition, on every rank: ``mpiexec -n P python ranks_program.py``."""

import time

import numpy as np
import pytest

from nqs_sae_service.engine.ranks import MpiRanks
from nqs_sae_service.errors import NumericalError


def rows(rank: int, dtype: type) -> np.ndarray:
    return (10 * rank + np.arange(3 * (rank + 1)).reshape(-1, 3)).astype(dtype)


def check(ranks: MpiRanks) -> None:
    everyone = range(ranks.size)
    shares = [ranks.share(7, rank) for rank in everyone]
    assert [i for share in shares for i in range(7)[share]] == list(range(7))
    assert ranks.share(7) == shares[ranks.rank]
    for dtype in (np.int8, np.float32, np.float64, np.complex128):
        gathered = ranks.gather(rows(ranks.rank, dtype))
        np.testing.assert_array_equal(gathered, np.concatenate([rows(rank, dtype) for rank in everyone]))
        assert gathered.dtype == dtype
    assert ranks.gather(np.empty((0, 4))).shape == (0, 4)
    assert ranks.gather(np.ones((2 * ranks.rank, 4), order="F")).shape == (ranks.size * (ranks.size - 1), 4)

    for size in (0, 1, 5, 10_001):  # added up everywhere, and by shares
        parts = [np.random.default_rng(rank).normal(size=(size, 3)) for rank in everyone]
        total = parts[0].copy()
        for part in parts[1:]:
            total += part
        np.testing.assert_array_equal(ranks.sum(parts[ranks.rank]), total)
    before = np.ones(4)
    ranks.sum(before)
    np.testing.assert_array_equal(before, 1)

    sent = [np.full((ranks.rank + 1, other), 10 * ranks.rank + other) for other in everyone]
    for other, got in enumerate(ranks.exchange(sent)):
        np.testing.assert_array_equal(got, np.full((other + 1, ranks.rank), 10 * other + ranks.rank))
    for source in everyone:
        array = np.full((2, 3), float(ranks.rank))
        np.testing.assert_array_equal(ranks.spread(array, source), np.full((2, 3), float(source)))
    assert ranks.agree({"rank": ranks.rank}) == {"rank": 0}
    assert ranks.collect(str(ranks.rank)) == [str(rank) for rank in everyone]
    assert ranks.together(lambda: ranks.rank) == ranks.rank


def fail_together(ranks: MpiRanks) -> None:
    def task() -> None:
        if ranks.rank == ranks.size - 1:
            raise NumericalError("not finite")

    with pytest.raises(NumericalError, match="not finite"):
        ranks.together(task)


def wait_idly(ranks: MpiRanks) -> None:
    """The others wait for the last rank without using the processor; each knocks at rank 0 meanwhile."""
    looks: list[None] = []
    if ranks.rank == ranks.size - 1:
        time.sleep(1.0)
    before = time.process_time()
    ranks.meet(lambda: looks.append(None))
    assert time.process_time() - before < 0.3
    assert looks or ranks.rank == ranks.size - 1
    assert not ranks.notified() or ranks.rank
    ranks.meet()
    if ranks.rank:
        ranks.notify()
    ranks.meet()
    if ranks.rank == 0:
        assert [ranks.notified() for _ in range(ranks.size)] == [True] * (ranks.size - 1) + [False]


def exchange_beside_a_knock(ranks: MpiRanks) -> None:
    """A knock that waits at rank 0 is not taken for data."""
    if ranks.rank:
        ranks.notify()
    ranks.meet()
    for number in (1.0, 2.0):
        parts = ranks.exchange([np.full(5, number + ranks.rank)] * ranks.size)
        for rank, part in enumerate(parts):
            np.testing.assert_array_equal(part, np.full(5, number + rank))
    if ranks.rank == 0:
        assert [ranks.notified() for _ in range(ranks.size)] == [True] * (ranks.size - 1) + [False]


if __name__ == "__main__":
    both = MpiRanks()
    check(both)
    fail_together(both)
    wait_idly(both)
    exchange_beside_a_knock(both)
    if both.rank == 0:
        print(f"{both.size} ranks agree")
