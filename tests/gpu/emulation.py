"""The ``.cu`` files of the package on the CPU: compiled as C++20 with ``cuda_emulation.h``, called through ctypes.

``RawModule`` has the interface of CuPy's. A launch checks what CuPy does not: the number and exact types of the arguments
against the C signature, and that arrays are contiguous. It shrinks blocks to at most ``THREADS`` threads (no kernel may
rely on its geometry) and puts every array between guard zones, NaN where floats are read beyond the end, checked for writes
afterwards.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

THREADS, MANY = 8, 2**31
_GUARD = 64  # bytes on either side of an array
_HEADER = Path(__file__).with_name("cuda_emulation.h")
_SCALARS = {
    "int": (np.int32, ctypes.c_int),
    "unsigned": (np.uint32, ctypes.c_uint),
    "float": (np.float32, ctypes.c_float),
    "double": (np.float64, ctypes.c_double),
}
_ELEMENTS = {
    "float": np.float32,
    "double": np.float64,
    "int": np.int32,
    "long long": np.int64,
    "signed char": np.int8,
    "unsigned": np.uint32,
    "unsigned char": np.uint8,
    "bool": np.bool_,
}
_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\s*\(([^)]*)\)', re.S
)

COMPILER = shutil.which("g++") or shutil.which("clang++")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel: its C type, and whether it is a pointer, and to constants."""

    element: str
    pointer: bool
    constant: bool


def parameters(source: str) -> dict[str, list[Parameter]]:
    """Parameters of every kernel in a CUDA source, by name."""
    plain = re.sub(r"//[^\n]*", "", source)
    return {name: [_parameter(text) for text in listed.split(",")] for name, listed in _KERNEL.findall(plain)}


def _parameter(text: str) -> Parameter:
    words = text.replace("*", " * ").replace("__restrict__", " ").split()
    pointer, constant = "*" in words, "const" in words
    return Parameter(" ".join(w for w in words[:-1] if w not in ("*", "const")), pointer, constant)


def _as_cpp(source: str) -> str:
    """The source with dynamic shared memory from the emulation, and a C function ``run_<kernel>`` for each kernel."""
    code = re.sub(
        r"extern\s+__shared__\s+float\s+(\w+)\[\];", r"float* const \1 = emulation::shared.data();", source
    )
    parts = [f'#include "{_HEADER}"\n', code]
    for name, listed in parameters(source).items():
        fields = "".join(
            f"{'const ' if p.constant else ''}{p.element}{'*' if p.pointer else ''} a{i}; "
            for i, p in enumerate(listed)
        )
        declared = ", ".join(
            f"{'const ' if p.constant else ''}{p.element}{'*' if p.pointer else ''} a{i}"
            for i, p in enumerate(listed)
        )
        passed = ", ".join(f"a{i}" for i in range(len(listed)))
        unpacked = ", ".join(f"a->a{i}" for i in range(len(listed)))
        parts.append(
            f"""
struct arguments_{name} {{ {fields} }};
static void body_{name}(void* p) {{ auto* a = static_cast<arguments_{name}*>(p); {name}({unpacked}); }}
extern "C" int run_{name}(unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared_bytes, int descending, {declared}) {{
  arguments_{name} a{{{passed}}};
  return emulation::run(body_{name}, &a, dim3{{gx, gy, gz}}, dim3{{bx, by, bz}}, shared_bytes, descending != 0);
}}
"""
        )
    return "".join(parts)


@cache
def library(source: str) -> ctypes.CDLL:
    """The compiled emulation of a CUDA source; kept in the temporary folder under the hash of what went into it."""
    code = _as_cpp(source)
    digest = hashlib.sha256((code + _HEADER.read_text(encoding="utf-8")).encode()).hexdigest()[:20]
    folder = Path(tempfile.gettempdir()) / "nqs_sae_service-emulated-kernels"
    folder.mkdir(exist_ok=True)
    compiled = folder / f"{digest}.so"
    if not compiled.exists():
        cpp = folder / f"{digest}.cpp"
        cpp.write_text(code, encoding="utf-8")
        fresh = folder / f"{digest}.{id(code)}.so"
        assert COMPILER
        command = [
            COMPILER,
            "-std=c++20",
            "-O2",
            "-ffp-contract=off",
            "-U_FORTIFY_SOURCE",
            "-shared",
            "-fPIC",
        ]
        subprocess.run(
            [*command, "-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function", str(cpp), "-o", str(fresh)],
            check=True,
        )
        fresh.replace(compiled)
    return ctypes.CDLL(str(compiled))


@dataclass(frozen=True)
class Kernel:
    """A kernel that can be launched, on at most ``blocks`` of at most ``threads``; ``order`` of the threads: +1 ascending, -1
    descending.
    """

    source: str
    name: str
    threads: int = THREADS
    order: int = 1
    blocks: int = MANY

    def __call__(self, grid, block, arguments, *, shared_mem=0):
        listed = parameters(self.source)[self.name]
        assert len(arguments) == len(listed), f"{self.name}: {len(arguments)} arguments for {len(listed)}"
        guarded = [
            _Guarded(self.name, i, p, value)
            for i, (p, value) in enumerate(zip(listed, arguments, strict=True))
        ]
        geometry = [min(grid[0], self.blocks), 1, 1, *self._shrunk(block)]
        function = getattr(library(self.source), f"run_{self.name}")
        status = function(*geometry, shared_mem, self.order < 0, *(g.passed for g in guarded))
        assert status == 0, f"{self.name}: a barrier that not all threads of a block reach"
        for g in guarded:
            g.finish()

    def _shrunk(self, block):
        x, y, z = ([*block, 1, 1])[:3]
        assert x * y * z <= 1024, f"{self.name}: {block} is more than 1024 threads"
        if x * y * z <= self.threads:
            return [x, y, z]
        rows = min(y, 2)
        return [min(x, self.threads // rows), rows, 1]


class _Guarded:
    """One argument: checked, and an array moved between guard zones for the launch."""

    def __init__(self, kernel, position, parameter, value):
        where = f"{kernel}, argument {position}"
        self.where, self.array = where, None
        if not parameter.pointer:
            scalar, c_type = _SCALARS[parameter.element]
            assert type(value) is scalar, f"{where}: {type(value).__name__} is passed for {parameter.element}"
            self.passed = c_type(value.item())
            return
        self.array = array = value._data if hasattr(value, "_data") else value
        wanted = _ELEMENTS[parameter.element]
        assert array.dtype == wanted, f"{where}: {array.dtype} is passed for {parameter.element}*"
        assert array.flags.c_contiguous, f"{where}: not contiguous"
        self.writable = not parameter.constant
        self.buffer = np.full(array.nbytes + 2 * _GUARD, 0xFF, np.uint8)  # all bits set: NaN as a float
        self.inner = self.buffer[_GUARD : _GUARD + array.nbytes]
        self.inner[:] = array.reshape(-1).view(np.uint8)
        self.passed = ctypes.c_void_p(self.buffer.ctypes.data + _GUARD)

    def finish(self):
        if self.array is None:
            return
        outside = np.concatenate([self.buffer[:_GUARD], self.buffer[len(self.buffer) - _GUARD :]])
        assert (outside == 0xFF).all(), f"{self.where}: written outside of the array"
        if self.writable:
            self.array.reshape(-1).view(np.uint8)[:] = self.inner
        else:
            before = self.array.reshape(-1).view(np.uint8)
            assert np.array_equal(self.inner, before), f"{self.where}: a constant was written to"


class RawModule:
    """``cupy.RawModule``, as far as ``engine.cuda`` uses it."""

    threads, order, blocks = THREADS, 1, MANY

    def __init__(self, *, code, options=()):
        self.code = code

    def get_function(self, name):
        """The kernel of this name."""
        assert name in parameters(self.code), f"no kernel {name}"
        return Kernel(self.code, name, self.threads, self.order, self.blocks)
