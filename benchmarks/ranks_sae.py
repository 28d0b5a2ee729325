"""A step of dictionaries over MPI ranks, one thread each: ``mpiexec -n P python -m mpi4py benchmarks/ranks_sae.py [ROUNDS]``.

The same process takes steps alone and with the others, in turn, so that both meet the same machine. Wall times mean something
on cores of one's own; the least CPU time outside of the operations of ``Ranks`` does on a shared machine as well: what is left
of the work of one rank. The bytes that rank 0 sends in a step are counted, and by the formula of ``sae.distributed``.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from mpi4py import MPI

from nqs_sae_service.engine.ranks import MpiRanks, Ranks
from nqs_sae_service.engine.threads import configure_threads
from nqs_sae_service.sae import ReluL1, SaeSection, TopK
from nqs_sae_service.sae.inputs import Held
from nqs_sae_service.sae.training import Training

BATCH = 4096
COMMON = {"batch": BATCH, "steps": 10**6}
RECORDS = {
    (32, 8): TopK(kind="topk", features=2048, k=8, **COMMON),
    (72, 32): TopK(kind="topk", features=4608, k=32, **COMMON),
    (256, 32): TopK(kind="topk", features=16384, k=32, **COMMON),
    (72, 0): ReluL1(kind="relu-l1", features=4608, **COMMON),
}


class Counted(Ranks):
    """Ranks that count the bytes this one sends, and the CPU time that takes.

    A sum is the shares sent to those who add them up, and the sums of the own share sent back.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(ranks.rank, ranks.size)
        vars(self).update(ranks=ranks, sent=0.0, inside=0.0)

    def _count(self, sent: float, operation: str, argument: Any) -> Any:
        start = time.process_time()
        result = getattr(self.ranks, operation)(argument)
        vars(self)["inside"] += time.process_time() - start
        vars(self)["sent"] += sent
        return result

    def gather(self, rows: Any) -> Any:
        """See ``Ranks``."""
        return self._count((self.size - 1) * rows.nbytes, "gather", rows)

    def sum(self, array: Any) -> Any:
        """See ``Ranks``."""
        return self._count(2 * (self.size - 1) / self.size * array.nbytes, "sum", array)

    def exchange(self, parts: Any) -> Any:
        """See ``Ranks``."""
        sent = sum(part.nbytes for rank, part in enumerate(parts) if rank != self.rank)
        return self._count(sent, "exchange", parts)


def _meet() -> None:
    """A barrier that leaves the cores to those who compute."""
    request = MPI.COMM_WORLD.Ibarrier()
    while not request.Test():
        time.sleep(1e-3)


def _milliseconds(training: Training, ranks: Counted) -> tuple[float, float]:
    """Of a step: wall time, and CPU time outside of the operations of ``ranks``."""
    _meet()
    wall, own = time.perf_counter(), time.process_time() - ranks.inside
    training.advance()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - ranks.inside - own)


def measure(width: int, record: SaeSection, rounds: int, ranks: Counted) -> str:
    """What steps take alone, on rank 0, and together."""
    x = np.random.default_rng(0).standard_normal((4 * BATCH, width)).astype(np.float32)
    together = Training(record, Held(x), [1], ranks=ranks)
    alone = Training(record, Held(x), [1])
    times = []
    for _ in range(rounds + 1):
        one = _milliseconds(alone, ranks) if ranks.rank == 0 else _meet()
        _meet()
        before = ranks.sent
        times.append((one, _milliseconds(together, ranks)))
    if ranks.rank > 0:
        return ""
    one, several = np.swapaxes(times[1:], 0, 1)  # the first step compiles
    (wall_one, _), (wall, _) = np.median(one, axis=0), np.median(several, axis=0)
    (least_one, cpu_one), (least, cpu) = one.min(axis=0), several.min(axis=0)
    k = getattr(record, "k", 0)
    formula = (8 * BATCH * width + 5 * BATCH * k) * (ranks.size - 1) / ranks.size
    return (
        f"{record.kind} d {width} F {record.features} k {k}: wall, median {wall_one:.2f} -> {wall:.2f} ms, "
        f"least {least_one:.2f} -> {least:.2f} ms ({least_one / least:.2f} x); "
        f"work of a rank, least {cpu_one:.2f} -> {cpu:.2f} ms ({cpu_one / cpu:.2f} x); "
        f"sent {(ranks.sent - before) / 1e6:.3f} MB, by formula {formula / 1e6:.3f} MB"
    )


def main() -> None:
    """A line for every dictionary."""
    configure_threads(1)
    rounds, ranks = int(sys.argv[1]) if len(sys.argv) > 1 else 15, Counted(MpiRanks())
    for (width, _), record in RECORDS.items():
        line = measure(width, record, rounds, ranks)
        if line:
            print(line, flush=True)


if __name__ == "__main__":
    main()
