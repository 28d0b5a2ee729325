"""The processes that share one run: a thin layer over MPI, and its trivial form for a run that is alone.

Every rank executes the same stage on its share of chains, samples or features; what all must know goes through the few
operations below, which every rank calls in the same order. Sums are added up in the order of the ranks, whatever the MPI
library, so that all ranks hold the same bits and a run with P ranks can be repeated. Arrays of a GPU pass through the host:
its stream is synchronised by the copy, so any MPI library will do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

import numpy as np

from ..errors import NumericalError
from .arrays import namespace, to_host

Array = Any
Value = TypeVar("Value")

_DATA, _KNOCK = 0, 1  # tags: a knock says nothing but that it came, and must not be taken for data
_POLL = 0.02  # seconds between looks of a rank that has nothing to do
_WHOLE = (
    2**14
)  # bytes: what is smaller is added up everywhere, larger arrays by shares that are then passed around


@dataclass(frozen=True)
class Ranks:
    """One process: every operation gives back what it gets."""

    rank: int = 0
    size: int = 1

    def share(self, count: int, rank: int | None = None) -> slice:
        """The part of ``count`` things that a rank (this one) has: contiguous, in the order of the ranks, as even as can be."""
        this = self.rank if rank is None else rank
        return slice(this * count // self.size, (this + 1) * count // self.size)

    def gather(self, rows: Array) -> Array:
        """The rows (n_rank, ...) of all ranks one below the other, in the order of the ranks, on every rank."""
        return rows

    def sum(self, array: Array) -> Array:
        """The sum of an array of one shape over the ranks, on every rank, to the bit."""
        return array

    def exchange(self, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Give ``parts[r]`` to rank r; what the ranks have for this one, in their order. Shapes are free, one type."""
        return list(parts)

    def spread(self, array: Array, source: int) -> Array:
        """The array of rank ``source`` on every rank. The others pass one of the same shape and type, to be written to."""
        return array

    def agree(self, value: Value) -> Value:
        """What rank 0 says, on every rank; any plain value."""
        return value

    def collect(self, value: Value) -> list[Value]:
        """What every rank says, in the order of the ranks; any plain value."""
        return [value]

    def together(self, task: Callable[[], Value]) -> Value:
        """Do something that may fail with NumericalError on some ranks: then it fails on all, with the first rank's reason."""
        if self.size == 1:
            return task()
        result, reason = None, ""
        try:
            result = task()
        except NumericalError as problem:
            reason = str(problem)
        reasons = [said for said in self.collect(reason) if said]
        if reasons:
            raise NumericalError(reasons[0])
        return result  # type: ignore[return-value]

    def meet(self, look: Callable[[], None] = lambda: None) -> None:
        """Wait until all ranks are here, without keeping a core busy; ``look`` is called now and then."""

    def notify(self) -> None:
        """Knock at rank 0, without waiting for it."""

    def notified(self) -> bool:
        """Whether a rank has knocked since the last look (rank 0 asks)."""
        return False

    def abort(self, code: int) -> None:
        """End all ranks at once; the exit code of this one."""
        raise SystemExit(code)


ALONE = Ranks()


class MpiRanks(Ranks):
    """The processes that ``mpiexec`` or ``srun`` started together. Needs mpi4py (the extra ``mpi``)."""

    def __init__(self) -> None:
        from mpi4py import MPI

        super().__init__(MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size)

    @property
    def _mpi(self) -> Any:
        return import_module("mpi4py.MPI")

    @property
    def _world(self) -> Any:
        return self._mpi.COMM_WORLD

    def gather(self, rows: Array) -> Array:
        mine = np.ascontiguousarray(to_host(rows))
        counts = np.empty(self.size, np.int64)
        self._world.Allgather(np.asarray([len(mine)]), counts)
        whole = np.empty((int(counts.sum()), *mine.shape[1:]), mine.dtype)
        sizes = counts * (whole.nbytes // max(len(whole), 1))
        self._world.Allgatherv(_bytes(mine), (_bytes(whole), sizes))
        return namespace(rows).asarray(whole)

    def sum(self, array: Array) -> Array:
        mine = np.ascontiguousarray(to_host(array)).reshape(-1)
        whole = mine[: mine.size if mine.nbytes <= _WHOLE else 0]
        if whole.size or not mine.size:
            total = _added(self.gather(whole).reshape(self.size, -1))
        else:
            parts = self.exchange([mine[self.share(mine.size, rank)] for rank in range(self.size)])
            total = self.gather(_added(np.stack(parts)))
        return namespace(array).asarray(total.reshape(array.shape))

    def exchange(self, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        mine = [np.ascontiguousarray(part) for part in parts]
        received = [np.empty(shape, mine[0].dtype) for shape in self._world.alltoall([p.shape for p in mine])]
        received[self.rank] = mine[self.rank]  # a message to oneself would cost more than the others
        others = [rank for rank in range(self.size) if rank != self.rank]
        requests = [self._world.Irecv(_bytes(received[rank]), rank, _DATA) for rank in others]
        requests += [self._world.Isend(_bytes(mine[rank]), rank, _DATA) for rank in others]
        self._mpi.Request.Waitall(requests)
        return received

    def spread(self, array: Array, source: int) -> Array:
        mine = np.ascontiguousarray(to_host(array))
        self._world.Bcast(_bytes(mine), source)
        return array if source == self.rank else namespace(array).asarray(mine)

    def agree(self, value: Value) -> Value:
        return self._world.bcast(value)

    def collect(self, value: Value) -> list[Value]:
        return self._world.allgather(value)

    def meet(self, look: Callable[[], None] = lambda: None) -> None:
        request = self._world.Ibarrier()
        while not request.Test():
            look()
            time.sleep(_POLL)

    def notify(self) -> None:
        self._world.Isend(np.empty(0, np.uint8), 0, _KNOCK).Free()

    def notified(self) -> bool:
        if not self._world.Iprobe(tag=_KNOCK):
            return False
        self._world.Recv(np.empty(0, np.uint8), tag=_KNOCK)
        return True

    def abort(self, code: int) -> None:
        self._world.Abort(code)


def _bytes(array: np.ndarray) -> np.ndarray:
    """The memory of a contiguous array: MPI need not know its type."""
    return array.reshape(-1).view(np.uint8)


def _added(rows: np.ndarray) -> np.ndarray:
    """The sum of the rows, one after the other."""
    total = rows[0].copy()
    for row in rows[1:]:
        total += row
    return total
