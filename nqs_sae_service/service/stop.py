"""Stopping on request: SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 ask for a checkpoint and an orderly end.

The first signal sets a flag that stages meet at their next tick; a later one leaves at once, and the last checkpoint stands.
Two within half a second are one: srun and mpiexec pass on to a process what it has received by itself too.
The first run compiles kernels for many seconds without a tick: there the compiler ends before its next pass.
A known end of the time (``--max-time``) asks in the same way, early enough for the checkpoint.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Protocol

from ..engine.jit import before_each_pass
from ..errors import CompilationStopped

FAILED = 1
EXIT_AGAIN = 75  # EX_TEMPFAIL: run the same command again to continue
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_SHOW_CURSOR = b"\033[?25h"
_TOGETHER = 0.5  # seconds
_CHECKPOINT_SECONDS = 10.0  # from being asked to having stopped


class Stop(Protocol):
    """Something that may ask a run to stop."""

    @property
    def asked(self) -> bool:
        """Whether to write a checkpoint now and end."""


def deadline_in(seconds: float) -> float:
    """When, on the monotonic clock, a process that must be gone in ``seconds`` has to be asked to stop."""
    return time.monotonic() + seconds - min(_CHECKPOINT_SECONDS, 0.1 * seconds)


class StopRequest:
    """Asks when a signal has come while it is entered (in the main thread), or when the monotonic clock passes ``deadline``."""

    def __init__(self, deadline: float = math.inf) -> None:
        self.deadline = deadline
        self.signalled = False
        self._first = math.inf  # when the first signal came
        self._before: dict[signal.Signals, object] = {}
        self._guard = before_each_pass(self._end_compilation)

    @property
    def asked(self) -> bool:
        """Whether to write a checkpoint now and end."""
        return self.signalled or time.monotonic() >= self.deadline

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        self._guard.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._guard.__exit__(kind, error, trace)
        if self.signalled:
            return  # the process is on its way out: one more signal still leaves at once, and quietly
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signalled:
            if time.monotonic() > self._first + _TOGETHER:
                _leave_at_once()
            return
        self.signalled, self._first = True, time.monotonic()
        text = f"{signal.Signals(number).name} received: writing a checkpoint, then stopping (once more: leave at once)\n"
        os.write(2, text.encode())

    def _end_compilation(self) -> None:
        if self.asked and threading.current_thread() is threading.main_thread():
            raise CompilationStopped


def _leave_at_once() -> None:
    if os.isatty(2):
        os.write(2, _SHOW_CURSOR)
    os._exit(EXIT_AGAIN)
