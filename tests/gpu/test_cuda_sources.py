"""Every CUDA source compiles without a warning for the architectures in use, and keeps the rules of ``engine.cuda``."""

import os
import re
from pathlib import Path

import emulation
import pytest

import nqs_sae_service

SOURCES = sorted(Path(nqs_sae_service.__file__).parent.rglob("*.cu"))
ARCHITECTURES = (80, 90, 100)


def nvrtc():
    try:
        from cupy_backends.cuda.libs import nvrtc

        nvrtc.getVersion()
    except Exception as problem:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"NVRTC is not installed ({problem}); the extra test-gpu brings it")
    return nvrtc


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_it_compiles_without_a_warning(source, architecture):
    compiler = nvrtc()
    if architecture not in compiler.getSupportedArchs():
        pytest.skip(f"this NVRTC does not know sm_{architecture}")
    program = compiler.createProgram(source.read_text(encoding="utf-8"), source.name, (), ())
    try:
        compiler.compileProgram(program, ("--std=c++17", f"-arch=sm_{architecture}"))
    except compiler.NVRTCError:
        pytest.fail(compiler.getProgramLog(program))
    assert compiler.getProgramLog(program).strip("\0\n ") == ""


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_it_keeps_the_rules(source):
    """Known parameter types; every kernel has a grid-stride loop; no warp intrinsics; atomics only on integers."""
    text = source.read_text(encoding="utf-8")
    kernels = emulation.parameters(text)
    assert len(kernels) == text.count("__global__")
    for listed in kernels.values():
        assert all((emulation._ELEMENTS if p.pointer else emulation._SCALARS)[p.element] for p in listed)
    bodies = re.split(r'extern "C" __global__', text)[1:]
    assert all("gridDim.x" in body for body in bodies)
    assert "_sync(" not in text.replace("__syncthreads(", "")
    integers = {"&count[key >> shift & (DIGITS - 1u)]", "counter"}
    assert len(integers & set(re.findall(r"atomic\w+\(([^,]*)", text))) == text.count("atomic")


def test_all_sources_are_in_the_package():
    assert [path.name for path in SOURCES] == [
        "kernels_gpu.cu",
        "metropolis_gpu.cu",
        "transformer_gpu.cu",
        "transformer_jacobian_gpu.cu",
    ]
