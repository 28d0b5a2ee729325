"""The device of these tests: a stand-in for CuPy with the real kernels emulated on the CPU, or (marker gpu) a GPU."""

import importlib
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import emulation
import strict_cupy
from strict_cupy import pretended_gpu
from tiny_chain import VARIANTS, compute

from nqs_sae_service.engine.devices import choose_device

REAL = pytest.param("real", marks=pytest.mark.gpu, id="real")
# Order of the threads in a block, most threads in one, most blocks: kernels may depend on none of them. Last: as launched.
GEOMETRIES = [
    pytest.param((1, 7), id="ascending"),
    pytest.param((-1, 6, 2), id="descending, two blocks"),
    pytest.param((-1, 1024), id="whole blocks"),
]


@contextmanager
def _device(geometry):
    if geometry == "real":
        importlib.import_module("cupy")
        yield choose_device("gpu")
        return
    with pretended_gpu(raw_module=_kernels(*geometry)):
        yield choose_device("gpu")


def _kernels(order, threads, blocks=emulation.MANY):
    if emulation.COMPILER is None:
        pytest.skip("no C++20 compiler to emulate the kernels with")
    return type("RawModule", (emulation.RawModule,), {"order": order, "threads": threads, "blocks": blocks})


@pytest.fixture(params=[*GEOMETRIES, REAL])
def device(request):
    """The device, in several geometries of its blocks."""
    with _device(request.param) as device:
        yield device


@pytest.fixture(params=[GEOMETRIES[0], REAL])
def one_device(request):
    """The device."""
    with _device(request.param) as device:
        yield device


@pytest.fixture
def pretended():
    """The pretended GPU, for what cannot be asked of a real one."""
    with _device((1, 8)) as device:
        yield device


@pytest.fixture(scope="session")
def on_gpu(tmp_path_factory):
    """Runs of all variants on the pretended GPU."""
    with _device((1, 8)):
        return {name: compute(tmp_path_factory.mktemp(name), "gpu", *sets) for name, sets in VARIANTS.items()}


@pytest.fixture(scope="session")
def on_cpu(tmp_path_factory):
    """The same runs on the CPU."""
    return {name: compute(tmp_path_factory.mktemp(name), "cpu", *sets) for name, sets in VARIANTS.items()}


@pytest.fixture(scope="session")
def chain_calls(on_gpu):
    """What these runs asked of CuPy: calls, and methods of arrays."""
    return strict_cupy.CALLS, strict_cupy.METHODS
