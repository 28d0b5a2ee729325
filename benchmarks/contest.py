"""A fair contest: contenders in processes of their own take turns, repetition by repetition, on the same machine settings."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.protocol import Contender

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PEERS = ROOT / ".venv-peers"
_SCRIPTS = ROOT / "benchmarks" / "peers"

# glibc gives freed memory back to the kernel and asks for it again at the next step. On a virtual machine the page faults then
# cost NetKet and PyTorch up to half their time. Every contender, ours too, keeps its memory and uses huge pages instead, except
# in rows that say "as installed".
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

_LONGEST_HOLD = 45.0
_QUIET = 0.15  # cores that others may use during a measurement
_PATIENCE = 4


@dataclass(frozen=True)
class Side:
    """A program to compare: its interpreter and its script among ``benchmarks/peers``."""

    name: str
    python: Path
    script: str
    environment: Mapping[str, str]

    def start(self, keep_memory: bool = True, **environment: str) -> Contender:
        """Start it, with the settings of ``ALLOCATOR`` or those of the machine.

        Raises SystemExit with the remedy when its environment is not installed.
        """
        if not self.python.exists():
            raise SystemExit(f"{self.python} is missing: run `make bench-peers` first")
        log = RESULTS / f"{self.name}.log"
        settings = {**(ALLOCATOR if keep_memory else {}), **self.environment, **environment}
        return Contender(self.name, self.python, _SCRIPTS / self.script, settings, log)


OURS = Side("ours", Path(sys.executable), "ours_server.py", {"PYTHONPATH": str(ROOT)})
NETKET = Side("netket", PEERS / "netket" / "bin" / "python", "netket_server.py", {"JAX_PLATFORMS": "cpu"})
TORCH = Side("torch", PEERS / "torch" / "bin" / "python", "torch_server.py", {"HF_HUB_OFFLINE": "1"})


class Turnstile:
    """Keeps a machine to ourselves while we measure, where several benchmarks share it: a lock on a file that all agree on.

    The lock is kept from one measurement to the next, and let go for a moment when it was held for ``_LONGEST_HOLD`` seconds.
    """

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else open(path, "a")  # noqa: SIM115  (held until the program ends)
        self._since: float | None = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock, if there is one."""
        if self._file is not None and self._since is None:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._since = time.monotonic()
        yield
        if self._since is not None and time.monotonic() - self._since > _LONGEST_HOLD:
            self.release()

    def release(self) -> None:
        """Let others through."""
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._since = None


def take_turns(
    measure: Mapping[str, Callable[[], float]], repetitions: int, turnstile: Turnstile
) -> dict[str, list[float]]:
    """Call every measurement ``repetitions`` times, A B C A B C ...; seconds of each, in order.

    Rounds go on, up to four times as many, until each has so many repetitions during which nobody else used the machine; those
    with the least company are kept.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in measure}
    for _ in range(_PATIENCE * repetitions):
        for name, call in measure.items():
            with turnstile.alone():
                found[name].append(_with_company(call))
        quiet = [sum(company <= _QUIET for company, _ in f) for f in found.values()]
        if min(quiet) >= repetitions:
            break
    return {name: _least_disturbed(f, repetitions) for name, f in found.items()}


def _least_disturbed(found: Sequence[tuple[float, float]], repetitions: int) -> list[float]:
    """The seconds of the repetitions with the least company, in the order in which they were measured."""
    by_company = sorted(range(len(found)), key=lambda i: (max(found[i][0], _QUIET), i))
    return [found[i][1] for i in sorted(by_company[:repetitions])]


def _with_company(call: Callable[[], float]) -> tuple[float, float]:
    """Cores that other programs used while ``call`` ran (0 where unknown), and what it returned."""
    before, began = _foreign_seconds(), time.perf_counter()
    seconds = call()
    return (_foreign_seconds() - before) / (time.perf_counter() - began), seconds


def _foreign_seconds() -> float:
    """Processor time of everybody but ourselves, our contenders and the processes we have waited for. Linux only."""
    try:
        counters = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        own = sum(_ticks(pid) for pid in (os.getpid(), *Contender.running))
    except OSError:
        return 0.0
    user, nice, system, _, _, interrupt, soft = counters[:7]
    waited_for = os.times().children_user + os.times().children_system
    return (user + nice + system + interrupt + soft - own) / os.sysconf("SC_CLK_TCK") - waited_for


def _ticks(pid: int) -> int:
    """Processor time of a process in clock ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def fastest(
    methods: Sequence[str], time_of: Callable[[str], float], turnstile: Turnstile, probes: int = 2
) -> tuple[str, dict[str, float]]:
    """The fastest of a contender's methods and the best time of each, after one call that compiles."""
    best: dict[str, float] = {}
    for method in methods:
        with turnstile.alone():
            time_of(method)
        for _ in range(probes if len(methods) > 1 else 0):
            with turnstile.alone():
                best[method] = min(best.get(method, float("inf")), time_of(method))
    return (min(best, key=best.__getitem__) if best else methods[0]), best


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, smallest and largest of some times, and all of them."""
    return {
        "median": statistics.median(seconds),
        "smallest": min(seconds),
        "largest": max(seconds),
        "all": [round(s, 6) for s in seconds],
    }


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "cpu": model,
        "threads": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "system": platform.system(),
    }


def read_results(path: Path) -> dict[str, Any]:
    """Earlier results of the same machine, so that rows can be measured one at a time; {} when there are none."""
    if not path.exists():
        return {}
    stored = json.loads(path.read_text())
    return stored if stored.get("machine") == machine() else {}


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write results as JSON."""
    path.write_text(json.dumps(results, indent=1) + "\n")
