"""Every test computes with the threads of the engine: parallel kernels, one BLAS thread inside them."""

import shutil
import sys
from pathlib import Path

import pytest

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
