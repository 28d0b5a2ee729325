"""benchmarks/gpu.py on the stand-in: it finds nothing wrong where nothing is, sees what is, and reports."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from strict_cupy import pretended_gpu

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny(script):
    return script.Network(8, 2, 1, sites=8, patch=2, chains=16)


def test_without_a_gpu_it_says_so_in_one_line_and_ends_with_2(script, capsys, tmp_path):
    with pretended_gpu(devices=0):
        assert script.main(["--results", str(tmp_path / "nothing")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert "no CUDA device was found" in captured.err
    assert not (tmp_path / "nothing").exists()


def test_all_checks_pass_on_a_device_that_is_right(script, tiny, one_device):
    found = [
        *script.checks(one_device, tiny, 24),
        *script.dictionary_checks(one_device, (6, 24, 3), 24),
    ]
    assert len(found) == 10
    assert [check.what for check in found if not check.passed] == []


@pytest.mark.parametrize("broken", ["normalise", "walk", "segment_sums"])
def test_a_kernel_that_does_nothing_is_seen(script, tiny, pretended, monkeypatch, broken):
    from nqs_sae_service.engine import cuda

    right = cuda.Kernels.launch

    def launch(self, name, *arguments, **options):
        if name != broken:
            right(self, name, *arguments, **options)

    monkeypatch.setattr(cuda.Kernels, "launch", launch)
    with np.errstate(all="ignore"):
        found = [
            *script.checks(pretended, tiny, 24),
            *script.dictionary_checks(pretended, (6, 24, 3), 24),
        ]
    assert not all(check.passed for check in found)


def test_a_whole_run_writes_its_tables(script, tiny, pretended, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(script, "NETWORKS", (tiny,))
    monkeypatch.setattr(script, "DICTIONARIES", ((6, 24, 3),))
    monkeypatch.setattr(script, "REPEATS", 1)
    monkeypatch.setattr(
        script,
        "measure_ceilings",
        lambda device, measure=script.measure_ceilings: measure(device, 16, 64),
    )
    small = lambda device, shape, ceilings, times=script.sae_times: times(device, shape, ceilings, 32, 1)  # noqa: E731
    monkeypatch.setattr(script, "sae_times", small)
    vmc = lambda device, network, ceilings, times=script.vmc_times: times(device, network, ceilings, 1)  # noqa: E731
    monkeypatch.setattr(script, "vmc_times", vmc)
    monkeypatch.setattr(script, "netket_times", lambda networks: iter(()))
    assert script.main(["--results", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "gpu-pretended-gpu.json").read_text(encoding="utf-8"))
    assert {timing["phase"] for timing in data["timings"]} >= {
        "sampling, one sweep",
        "whole step",
        "Gram matrix",
        "backward",
    }
    assert all(timing["median"] > 0 for timing in data["timings"])
    tables = (tmp_path / "gpu-pretended-gpu.md").read_text(encoding="utf-8")
    assert tables.startswith("# Pretended GPU\n")
    assert "Ceilings, measured: copy" in tables
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "gpu-pretended-gpu.md")


def test_floors_are_counted(script):
    """The 40-site network of width 32: 0.42 MFLOP a configuration."""
    state = script.Network(32, 4, 2).trainer(script.choose_device("cpu")).state
    assert script.network_flops(state) == pytest.approx(0.42e6, rel=0.03)
    ceilings = script.Ceilings(copy=1e12, sgemm=1e13, dgemm=1e13, launch=1e-6)
    assert ceilings.floor(1e13, 1e10) == 1.0
    assert ceilings.floor(1e10, 1e12) == 1.0
