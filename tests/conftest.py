"""Every test computes with the threads of the engine: parallel kernels, one BLAS thread inside them."""

import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from nqs_sae_service.engine.arrays import namespace, to_host
from nqs_sae_service.engine.ranks import Ranks
from nqs_sae_service.engine.threads import configure_threads


@pytest.fixture(autouse=True, scope="session")
def _threads():
    configure_threads()


@pytest.fixture(scope="session")
def mpiexec():
    """``mpiexec(n)``: the beginning of a command that runs a Python program in n processes, each on one thread."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    beside = Path(sys.executable).parent / "mpiexec"
    program = str(beside) if beside.exists() else shutil.which("mpiexec")
    if program is None:
        pytest.skip("there is no mpiexec")
    return lambda processes: [program, "-n", str(processes), sys.executable]


class _ThreadRank(Ranks):
    """A rank that is a thread of this process."""

    def __init__(self, rank, size, said, barrier):
        super().__init__(rank, size)
        vars(self).update(said=said, barrier=barrier)

    def collect(self, value):
        self.said[self.rank] = value
        self.barrier.wait()
        everything = list(self.said)
        self.barrier.wait()
        return everything

    def gather(self, rows):
        return namespace(rows).asarray(np.concatenate(self.collect(to_host(rows))))

    def sum(self, array):
        return namespace(array).asarray(sum(self.collect(to_host(array))))

    def exchange(self, parts):
        return [theirs[self.rank] for theirs in self.collect(parts)]

    def spread(self, array, source):
        return namespace(array).asarray(self.collect(to_host(array))[source].copy())

    def agree(self, value):
        return self.collect(value)[0]


@pytest.fixture
def in_ranks():
    """``in_ranks(n, task)``: what ``task(ranks)`` returns on each of n ranks, threads of this process (no parallel kernels)."""

    def run(size, task):
        said, barrier = [None] * size, threading.Barrier(size, timeout=60)

        def one(rank):
            try:
                return task(_ThreadRank(rank, size, said, barrier))
            except BaseException:
                barrier.abort()
                raise

        with ThreadPoolExecutor(size) as pool:
            return list(pool.map(one, range(size)))

    return run


@pytest.fixture(scope="session")
def assert_above():
    """``assert_above(exact, energy, error)``: no variational energy is more than 3 standard errors below."""

    def check(exact, energy, error):
        energy, error = np.asarray(energy), np.asarray(error)
        assert np.isfinite(energy).all()
        worst = np.min(energy + 3 * error)
        assert worst > exact - 1e-9 * abs(exact), f"{worst} at most lies below the exact energy {exact}"

    return check
