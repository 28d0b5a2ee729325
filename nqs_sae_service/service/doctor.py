"""``nqs-sae doctor``: what this machine offers, what is missing, and the remedy.

A finding is ``ok``, ``warning`` (runs are possible, but slower or with less) or ``error`` (they are not).
"""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from .filesystem import is_network, kind_of_filesystem
from .queue import VARIABLE, default_queue

_PACKAGES = ("numpy", "scipy", "numba", "llvmlite", "xarray", "netCDF4", "pydantic", "matplotlib")
_OLDEST_PYTHON = (3, 10)
_COMFORTABLE = 2.0  # GiB of free memory that the shipped specs need at most
_MPI_SECONDS = 20
# Cores that OpenBLAS falls back to when it does not know the processor: no AVX2.
_PLAIN_CORES = {"generic", "prescott", "core2", "penryn", "nehalem", "barcelona", "sandybridge"}

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``remedy`` says what to do unless all is well."""

    level: Level
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.level:<8} {self.text}" + (f"\n{'':<8} -> {self.remedy}" if self.remedy else "")


def examine(results: Path) -> Iterator[Finding]:
    """Look at everything, one finding after the other; ``results`` is where run directories would go."""
    examinations: tuple[Callable[[], Iterator[Finding]], ...] = (
        _software,
        _processor,
        _threads,
        _blas,
        _memory,
        _kernel_cache,
        lambda: _results(results),
        _queue,
        _gpu,
        _mpi,
    )
    for examination in examinations:
        try:
            yield from examination()
        except Exception as problem:  # one examination that fails must not hide the others
            name = getattr(examination, "__name__", "results").strip("_")
            yield Finding("warning", f"{name}: could not be examined ({type(problem).__name__}: {problem})")


def _software() -> Iterator[Finding]:
    python = sys.version_info
    line = f"nqs_sae_service {version('nqs_sae_service')}, Python {platform.python_version()}, {platform.platform()}"
    if python < _OLDEST_PYTHON:
        yield Finding("error", line, "Python >= 3.10 is needed")
    else:
        yield Finding("ok", line)
    with suppress(ImportError):
        import_module("..engine.jit", __package__)  # sets Numba up: it must come before Numba itself
    found, missing = [], []
    for package in _PACKAGES:
        try:
            import_module(package)
            found.append(f"{package} {version(package)}")
        except (ImportError, PackageNotFoundError) as problem:
            missing.append(f"{package} ({problem})")
    if found:
        yield Finding("ok", ", ".join(found))
    if missing:
        yield Finding(
            "error",
            f"cannot be imported: {'; '.join(missing)}",
            "pip install --force-reinstall nqs_sae_service",
        )


def _processor() -> Iterator[Finding]:
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    known = ("avx512f", "avx2", "fma", "sve", "neon")
    simd = [name for name in known if features.get(name)]
    line = f"processor {_model()}: {', '.join(simd) or 'no SIMD instructions known to LLVM'}"
    if platform.machine() in ("x86_64", "AMD64") and "avx2" not in simd:
        yield Finding("warning", line, "kernels run without AVX2, several times slower: choose a newer node")
    else:
        yield Finding("ok", line)


def _model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _threads() -> Iterator[Finding]:
    from ..engine.jit import numba
    from ..engine.threads import available_threads

    available, limit = available_threads(), int(numba.config.NUMBA_NUM_THREADS)
    threads = min(available, limit)
    line = f"{os.cpu_count()} cores, {available} of them for this process, {threads} kernel threads"
    quota = _quota()
    if limit < available:
        yield Finding("warning", line, f"NUMBA_NUM_THREADS={limit} holds cores back: unset it")
    elif quota is not None and quota < threads - 0.5:
        yield Finding(
            "warning",
            f"{line}, but a quota of {quota:g} cores",
            f"set engine.threads = {max(1, int(quota))}, or raise the quota of the container",
        )
    else:
        yield Finding("ok", line)


def _quota() -> float | None:
    """Cores that the control group allows, None when unlimited or unknown."""
    try:
        share, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    return None if share == "max" else int(share) / int(period)


def _blas() -> Iterator[Finding]:
    from threadpoolctl import threadpool_info

    from ..engine.threads import configure_threads

    configure_threads()
    libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    if not libraries:
        yield Finding(
            "warning",
            "no BLAS library was recognised",
            "its threads cannot be limited: set OMP_NUM_THREADS=1",
        )
    for library in libraries:
        core = str(library.get("architecture") or "unknown core")
        line = (
            f"{library['internal_api']} {library['version']} ({Path(library['filepath']).name}) for {core}, "
            f"{library['num_threads']} thread inside the kernels' own"
        )
        if library["num_threads"] != 1:
            yield Finding("warning", line, "set OMP_NUM_THREADS=1: these threads fight those of the kernels")
        elif core.lower() in _PLAIN_CORES:
            yield Finding("warning", line, "it does not know this processor: try OPENBLAS_CORETYPE=Haswell")
        else:
            yield Finding("ok", line)


def _memory() -> Iterator[Finding]:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) / 2**20 for line in lines}
        free, total = sizes["MemAvailable"], sizes["MemTotal"]
    except (OSError, KeyError):
        yield Finding("ok", "free memory: unknown on this system")
        return
    line = f"{free:.1f} of {total:.1f} GiB of memory are free"
    if free < _COMFORTABLE:
        yield Finding("warning", line, "set a small engine.chunk, such as 2048, and fewer samples")
    else:
        yield Finding("ok", line)


def _kernel_cache() -> Iterator[Finding]:
    from ..engine.jit import CACHE_DIRECTORY as folder

    wanted = os.environ.get("NQS_SAE_CACHE")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        yield Finding(
            "error",
            f"kernel cache {folder}: {problem.strerror}",
            "point the environment variable NQS_SAE_CACHE to a folder that can be written",
        )
        return
    kernels = sum(1 for _ in folder.rglob("*.nbc"))
    line = f"kernel cache {folder}: {kernels} compiled kernels"
    if wanted and not folder.is_relative_to(Path(wanted)):
        yield Finding(
            "warning", line, f"NQS_SAE_CACHE={wanted} cannot be written, so the temporary folder is used"
        )
    elif not kernels:
        yield Finding(
            "warning", line, "the first run compiles for about a minute; `nqs-sae warmup` does it ahead"
        )
    else:
        yield Finding("ok", line)


def _results(results: Path) -> Iterator[Finding]:
    """Writable? File locks? Hard links, which let runs share stages without copies?"""
    folder = next(path for path in (results, *results.absolute().parents) if path.exists())
    where = f"results in {results.absolute()}"
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as scratch:
            first, second = Path(scratch, "first"), Path(scratch, "second")
            with open(first, "w", encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            linked = _links(first, second)
    except OSError as problem:
        yield Finding(
            "error", f"{where}: {problem.strerror or problem}", "choose another folder with --results"
        )
        return
    if linked:
        yield Finding("ok", f"{where}: can be written, locks and hard links work")
    else:
        yield Finding(
            "warning", f"{where}: no hard links here", "runs copy shared stages: more disk, nothing else"
        )


def _queue() -> Iterator[Finding]:
    """A queue needs a local disk; results do not."""
    folder = default_queue()
    if is_network(folder):
        yield Finding(
            "warning",
            f"queue in {folder}: on a network file system ({kind_of_filesystem(folder)})",
            f"set {VARIABLE} to a folder on a local disk, or use submit --slurm",
        )
    else:
        yield Finding("ok", f"queue in {folder}: on a local disk ({kind_of_filesystem(folder) or 'unknown'})")


def _links(first: Path, second: Path) -> bool:
    try:
        os.link(first, second)
    except OSError:
        return False
    return True


def _gpu() -> Iterator[Finding]:
    if find_spec("cupy") is None:
        yield Finding("ok", "GPU: not used, CuPy is not installed (extras cuda12 and cuda13)")
        return
    try:
        cupy = import_module("cupy")
        runtime = cupy.cuda.runtime
        devices = runtime.getDeviceCount()
        driver = runtime.driverGetVersion()
        names = [
            f"{p['name'].decode()} ({p['totalGlobalMem'] / 2**30:.0f} GiB)"
            for p in map(runtime.getDeviceProperties, range(devices))
        ]
    except Exception as problem:  # CuPy's own errors, and ImportError of CUDA libraries
        reason = " ".join(str(problem).split())
        yield Finding(
            "warning", f"GPU: CuPy finds none ({reason})", "install the driver, or compute on the CPU"
        )
        return
    yield Finding("ok", f"GPU: CuPy {cupy.__version__}, driver for CUDA {_cuda(driver)}, {', '.join(names)}")
    try:
        major, minor = import_module("cupy_backends.cuda.libs.nvrtc").getVersion()
        yield Finding("ok", f"GPU: NVRTC {major}.{minor} compiles the kernels")
    except Exception as problem:
        reason = " ".join(str(problem).split())
        yield Finding(
            "warning", f"GPU: no NVRTC ({reason})", "install the extra cuda12 or cuda13, which brings it"
        )


def _cuda(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _mpi() -> Iterator[Finding]:
    if find_spec("mpi4py") is None:
        yield Finding("ok", "MPI: not used, mpi4py is not installed (extra mpi)")
        return
    # In a process of its own: an MPI that cannot start ends the process that asks.
    ask = "from mpi4py import MPI; print(MPI.Get_library_version())"
    try:
        asked = subprocess.run(
            [sys.executable, "-c", ask], capture_output=True, text=True, timeout=_MPI_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        yield Finding("warning", "MPI: does not start", "load the MPI module that mpi4py was built with")
        return
    if asked.returncode == 0:
        yield Finding("ok", f"MPI: {' '.join(asked.stdout.split())[:80]}")
    else:
        reason = (asked.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        yield Finding("warning", f"MPI: {reason}", "load the MPI module that mpi4py was built with")
