"""Numba, set up once: import ``njit`` and ``prange`` from here, never from numba.

Compiled kernels are cached on disk in a folder named by a hash of all kernel sources, because Numba does not notice an edited
callee in another module. ``NQS_SAE_CACHE`` moves the cache (default: the user's cache folder).
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent.parent
_ROOMS = (
    "engine",
    "states",
    "sampling",
    "vmc",
    "sae",
)  # where kernels, and the constants compiled into them, live


def _sources_digest() -> str:
    digest = hashlib.sha256()
    for room in _ROOMS:
        for source in sorted((_PACKAGE / room).rglob("*.py")):
            digest.update(str(source.relative_to(_PACKAGE)).encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]


def _cache_directory() -> Path:
    root = os.environ.get("NQS_SAE_CACHE")
    base = (
        Path(root)
        if root
        else Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "nqs_sae_service"
    )
    try:
        base.mkdir(parents=True, exist_ok=True)
        if not os.access(base, os.W_OK):
            raise PermissionError(base)
    except OSError:
        base = Path(tempfile.gettempdir()) / f"nqs_sae_service-{os.getuid()}"
        base.mkdir(mode=0o700, exist_ok=True)
    return base / f"kernels-{_sources_digest()}"


CACHE_DIRECTORY = Path(os.environ.setdefault("NUMBA_CACHE_DIR", str(_cache_directory())))
# Threads that wait must not spin: kernels are short, machines are shared, and a spinning thread takes a core from the other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numba  # noqa: E402
from numba import prange  # noqa: E402
from numba.core import event  # noqa: E402
from numba.core.codegen import JITCodeLibrary, JITCPUCodegen  # noqa: E402

# Contractions and reassociation let sums vectorise. NaN and infinity keep their meaning: a diverged network must be seen.
FAST = {"contract", "nsz", "arcp", "reassoc"}
# For bit-trick arithmetic ((x + C) - C must survive): never reassociate.
EXACT = {"contract", "nsz", "arcp"}

# In the names of what Numba compiles for a parallel loop: its body, and what stands around it.
_BODY, _AROUND = "__numba_parfor_gufunc", ("GufuncWrapper", "parallelgufuncwrapper")


class _OwnCopies(JITCodeLibrary):
    """A kernel calls its own copies of the functions it calls.

    Numba links a copy of every callee into the caller as a weak symbol. A process that has just compiled the callee runs the
    callee's own code in its place, one that loads the caller from the cache runs the copy. Each was optimised apart and may add
    in another order, so that a run that is killed and continued would differ in its last bits. Private symbols end that.

    Numba also optimises and translates the body of a parallel loop by itself and in two wrappers, before it does so in the
    kernel to which alone it belongs. Here these three are linked, no more: such kernels compile three times as fast.
    """

    _only_linked = False

    def finalize(self):
        around = any(name in self.name for name in _AROUND) and any(
            getattr(library, "_only_linked", False) for library in self._linking_libraries
        )
        if _BODY not in self.name and not around:
            super().finalize()
            for name in list(_waiting):
                _set_environment(self.codegen, name, _waiting.pop(name))
            return
        self._raise_if_finalized()
        for library in dict.fromkeys(self._linking_libraries):
            self._reload_init.update(library._reload_init)
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = self._only_linked = True

    def _optimize_final_module(self):
        super()._optimize_final_module()
        self._finalized = True
        self._get_module_for_linking()  # callers get the weak symbols: they need one copy, not one per path to it
        self._finalized = False
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage.name == "linkonce_odr":
                function.linkage = "internal"


def _set_environment(codegen, name, environment):
    """The environment of a function, as soon as the kernel that holds the function has been translated."""
    if codegen._engine.get_global_value_address(name):
        _set_known_environment(codegen, name, environment)
    else:
        _waiting[name] = environment


_waiting: dict[str, Any] = {}
_set_known_environment = JITCPUCodegen.set_env
JITCPUCodegen.set_env = _set_environment
JITCPUCodegen._library_class = _OwnCopies


def njit(parallel: bool = False, fastmath: set[str] = FAST, **options):
    """``numba.njit`` with this project's rules: cached, without the GIL, NumPy error model."""
    return numba.njit(
        parallel=parallel, fastmath=fastmath, cache=True, nogil=True, error_model="numpy", **options
    )


class _Before(event.Listener):
    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def on_start(self, event) -> None:
        self.action()

    def on_end(self, event) -> None:
        pass


def before_each_pass(action: Callable[[], None]) -> AbstractContextManager[event.Listener]:
    """While entered, ``action`` is called before each pass of the compiler over a kernel; it may raise to end the compilation.

    A signal handler must not raise there: LLVM calls back into Python, which prints and drops what is raised in a callback.
    """
    return event.install_listener("numba:run_pass", _Before(action))


__all__ = ["CACHE_DIRECTORY", "EXACT", "FAST", "before_each_pass", "njit", "prange"]
