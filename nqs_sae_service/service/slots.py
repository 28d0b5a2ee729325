"""Which cores and GPUs a run may have, when several workers share a machine.

The machine is cut into slots: one for every core, or as many as were asked for if that is more. A run takes as many as
``engine.threads`` says; one that says 0 takes its share of all, cores / ``slots``. A slot is a locked file in the folder of
the queue, so it is free again when its owner ends, however it ends. The process is bound to the cores of its slots, and a run
with ``threads = 0`` then has as many threads as cores. A worker that finds GPUs keeps a free one for as long as it lives.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..datasets.files import locked
from ..engine.threads import cores

_GPUS = Path("/proc/driver/nvidia/gpus")


class Slots:
    """The slots of this machine, as locks in ``directory``.

    ``at_once`` runs of ``threads = 0`` share it; 0: one for each GPU, or a single one.
    """

    def __init__(self, directory: Path, at_once: int = 0) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.cores = sorted(cores())
        self.at_once = at_once or max(1, len(gpus()))
        self.count = max(len(self.cores), self.at_once)

    def needed(self, threads: int) -> int:
        """Slots of a run with ``engine.threads = threads``."""
        return min(threads or max(1, len(self.cores) // self.at_once), self.count)

    @contextmanager
    def taken(self, threads: int) -> Iterator[bool]:
        """Hold the slots of a run and stay on their cores inside; False when there are not enough now."""
        with ExitStack() as stack:
            held: list[int] = []
            # One chooses at a time: two that take half each would both give up.
            with locked(self.directory / "choosing.lock", wait=lambda: None):
                for slot in range(self.count):
                    if len(held) < self.needed(threads):
                        with suppress(BlockingIOError):
                            stack.enter_context(locked(self.directory / f"core-{slot}.lock"))
                            held.append(slot)
            if len(held) < self.needed(threads):
                yield False
                return
            stay_on({self.cores[slot % len(self.cores)] for slot in held})
            try:
                yield True
            finally:
                stay_on(set(self.cores))

    @contextmanager
    def one_gpu(self) -> Iterator[bool]:
        """Hold a free GPU and make it the only one that this process sees; False when there is none, or none free."""
        with ExitStack() as stack:
            for gpu in gpus():
                with suppress(BlockingIOError):
                    stack.enter_context(locked(self.directory / f"gpu-{gpu}.lock"))
                    # Read when CUDA starts, which nothing has done yet.
                    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
                    yield True
                    return
            yield False


def gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; found without starting CUDA."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    with suppress(OSError):
        return [str(number) for number in range(len(list(_GPUS.iterdir())))]
    return []


def stay_on(chosen: set[int]) -> None:
    """Bind every thread of this process, and those that it will start, to these cores."""
    if not hasattr(os, "sched_setaffinity"):
        return
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), chosen)
