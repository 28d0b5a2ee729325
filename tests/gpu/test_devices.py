"""Which device a run gets, and what it is told when there is none."""

import gc
import sys

import numpy as np
import pytest
from strict_cupy import pretended_gpu

from nqs_sae_service.cli import app
from nqs_sae_service.engine.arrays import beside, namespace, to_host
from nqs_sae_service.engine.devices import HOST, choose_device, rows_that_fit
from nqs_sae_service.errors import UserError

SPEC = """
name = "ring"
[lattice]
kind = "chain"
length = 8
[hamiltonian]
kind = "tfim"
h = 1.0
[state]
kind = "transformer"
[engine]
device = "gpu"
"""


def _exit_code(*arguments):
    with pytest.raises(SystemExit) as ended:
        app(list(arguments), prog_name="nqs-sae")
    return ended.value.code or 0


def test_auto_takes_a_gpu_and_falls_back_on_the_host():
    with pretended_gpu() as cupy:
        device = choose_device("auto")
        assert (device.kind, device.xp, device.name) == ("gpu", cupy, "Pretended GPU")
        assert choose_device("cpu") is HOST
    with pretended_gpu(devices=0):
        assert choose_device("auto") is HOST
    with pretended_gpu(devices=-1):
        assert choose_device("auto") is HOST


def test_processes_of_one_machine_take_its_gpus_in_turn():
    with pretended_gpu(devices=4) as cupy:
        for number, expected in ((0, 0), (3, 3), (5, 1)):
            assert choose_device("gpu", number).kind == "gpu"
            assert cupy.cuda.runtime.getDevice() == expected


@pytest.mark.parametrize(
    ("devices", "said"),
    [(0, "no CUDA device was found"), (-1, "no driver); check the driver with nvidia-smi")],
)
def test_a_gpu_that_is_not_there_is_an_error_with_a_remedy(devices, said):
    with pretended_gpu(devices=devices), pytest.raises(UserError) as error:
        choose_device("gpu")
    assert str(error.value).startswith('engine.device = "gpu": ')
    assert said in str(error.value)
    assert str(error.value).endswith('; or set engine.device to "auto" or "cpu"')


def test_without_cupy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(UserError, match="install the extra cuda13 or cuda12"):
        choose_device("gpu")


def test_a_run_without_its_gpu_ends_with_code_1_and_one_line(tmp_path, capsys):
    spec = tmp_path / "ring.toml"
    spec.write_text(SPEC, encoding="utf-8")
    with pretended_gpu(devices=0):
        assert _exit_code("validate", str(spec)) == 0
        assert _exit_code("run", str(spec), "--results", str(tmp_path / "results")) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith('error: ring: engine.device = "gpu": no CUDA device was found')
    assert "Traceback" not in "".join(lines)


def test_arrays_go_where_they_are_put():
    host = np.arange(4.0)
    assert HOST.put(host) is host
    assert to_host(host) is host
    with pretended_gpu() as cupy:
        device = choose_device("gpu")
        there = device.put(host)
        assert namespace(there) is cupy
        assert device.put(there) is there
        np.testing.assert_array_equal(to_host(there), host)
        assert HOST.put(there).tolist() == host.tolist()


def test_a_constant_is_moved_once_and_forgotten_with_its_original():
    constant = np.arange(5)
    assert beside(constant, np.ones(1)) is constant
    with pretended_gpu() as cupy:
        there = cupy.ones(1)
        copy = beside(constant, there)
        assert beside(constant, there) is copy
        assert copy.get().tolist() == constant.tolist()
        for _ in range(3):  # arrays that take the place of a deleted one
            fresh = np.random.default_rng().integers(9, size=5)
            assert beside(fresh, there).get().tolist() == fresh.tolist()
            del fresh
            gc.collect()


def test_passes_shrink_by_powers_of_two_when_a_device_is_full(monkeypatch):
    """Half of the free memory may be filled; small passes do not ask."""
    assert rows_that_fit(1e12, np.ones(1), 512, 10**9) == 512
    with pretended_gpu(free_bytes=10) as cupy:
        assert rows_that_fit(1000, cupy.ones(1), 4096, 10**9) == 4096
        assert rows_that_fit(10**9, cupy.ones(1), 4096, 0) == 4096
    monkeypatch.setattr("nqs_sae_service.engine.devices.SMALL", 0)
    for rows, expected in ((4096, 4096), (4095, 2048), (65, 64), (0, 1)):
        with pretended_gpu(free_bytes=2 * rows * 1000) as cupy:
            assert rows_that_fit(1000, cupy.ones(1), 4096, 10**9) == expected
