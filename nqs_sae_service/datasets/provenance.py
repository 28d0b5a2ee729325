"""Where a file comes from: which code, which libraries, which machine, when.

Everything here is listed in the file's ``volatile`` attribute, because none of it may change the numbers: the same spec on
the same kind of processor gives the same bits.
"""

from __future__ import annotations

import json
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

from .. import __version__

_PACKAGE = Path(__file__).resolve().parent.parent
_LIBRARIES = ("numpy", "scipy", "numba", "llvmlite", "xarray", "netCDF4")


@cache
def code_version() -> dict[str, str | int]:
    """Package version and, in a source checkout, the git commit and whether the package differs from it."""
    version: dict[str, str | int] = {"package_version": __version__}
    if not (_PACKAGE.parent / ".git").exists():
        return version
    commit = _git("rev-parse", "HEAD")
    if commit:
        version |= {
            "git_commit": commit,
            "git_dirty": int(bool(_git("status", "--porcelain", "--", str(_PACKAGE)))),
        }
    return version


@cache
def machine(gpu: str = "") -> dict[str, str]:
    """Host name, processor (the GPU, where one computed) and the versions of Python and of the numerical libraries (JSON)."""
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            versions[library] = "unknown"
    device = f"gpu: {gpu}" if gpu else f"cpu: {_processor()}"
    return {"host": platform.node(), "device": device, "versions": json.dumps(versions)}


def _git(*arguments: str) -> str:
    try:
        command = ["git", "-C", str(_PACKAGE.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
