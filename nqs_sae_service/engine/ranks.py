"""The processes that share one run: a thin layer over MPI, and its trivial form for a run that is alone.

Every rank executes the same stage on its share of chains, samples or features; what all must know goes through the few
operations below, which every rank calls in the same order. Arrays of a GPU pass through the host: its stream is synchronised
by the copy, so any MPI library will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

import numpy as np

from .arrays import namespace, to_host

Array = Any
Value = TypeVar("Value")


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
        """The sum of an array of one shape over the ranks, on every rank."""
        return array

    def exchange(self, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Give ``parts[r]`` to rank r; what the ranks have for this one, in their order. Shapes are free, one type."""
        return list(parts)

    def agree(self, value: Value) -> Value:
        """What rank 0 says, on every rank; any plain value."""
        return value


ALONE = Ranks()


class MpiRanks(Ranks):
    """The processes that ``mpiexec`` or ``srun`` started together. Needs mpi4py (the extra ``mpi``)."""

    def __init__(self) -> None:
        from mpi4py import MPI

        super().__init__(MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size)

    @property
    def _mpi(self) -> Any:
        return import_module("mpi4py.MPI")

    def gather(self, rows: Array) -> Array:
        mine = np.ascontiguousarray(to_host(rows))
        parts = self.exchange([mine] * self.size)
        return namespace(rows).asarray(np.concatenate(parts))

    def sum(self, array: Array) -> Array:
        mine = np.ascontiguousarray(to_host(array))
        total = np.empty_like(mine)
        self._mpi.COMM_WORLD.Allreduce(mine, total)
        return namespace(array).asarray(total)

    def exchange(self, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        world, mine = self._mpi.COMM_WORLD, [np.ascontiguousarray(part) for part in parts]
        received = [np.empty(shape, mine[0].dtype) for shape in world.alltoall([part.shape for part in mine])]
        requests = [world.Irecv(_bytes(part), rank) for rank, part in enumerate(received)]
        requests += [world.Isend(_bytes(part), rank) for rank, part in enumerate(mine)]
        self._mpi.Request.Waitall(requests)
        return received

    def agree(self, value: Value) -> Value:
        return self._mpi.COMM_WORLD.bcast(value)


def _bytes(array: np.ndarray) -> np.ndarray:
    """The memory of a contiguous array: MPI need not know its type."""
    return array.reshape(-1).view(np.uint8)
