"""Stopping on request: SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 ask for a checkpoint and an orderly end.

The first signal sets a flag that stages meet at their next tick; a second one leaves at once, and the last checkpoint stands.
The first run compiles kernels for many seconds without a tick: there the signal interrupts the compiler (CompilationStopped).
"""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType

from ..engine.jit import compiling
from ..errors import CompilationStopped

EXIT_AGAIN = 75  # EX_TEMPFAIL: run the same command again to continue
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_SHOW_CURSOR = b"\033[?25h"


class StopRequest:
    """Listens for the signals while it is entered (in the main thread); ``asked`` tells whether one came."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.asked:
            return  # the process is on its way out: one more signal still leaves at once, and quietly
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            _leave_at_once()
        self.asked = True
        text = f"{signal.Signals(number).name} received: writing a checkpoint, then stopping (once more: leave at once)\n"
        os.write(2, text.encode())
        if compiling():
            raise CompilationStopped


def _leave_at_once() -> None:
    if os.isatty(2):
        os.write(2, _SHOW_CURSOR)
    os._exit(EXIT_AGAIN)
