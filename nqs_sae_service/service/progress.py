"""Progress of a stage on stderr: a live bar with the time left on a terminal, elsewhere a line every 30 seconds."""

from __future__ import annotations

import sys
import time

from loguru import logger
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from .durations import duration

_REFRESH = 0.2  # seconds between redraws of the bar
_LINE_EVERY = 30.0  # seconds between lines when stderr is not a terminal


class StageProgress:
    """Progress of one stage. The time left comes from the pace since the first report, so that a resumed stage is right."""

    def __init__(self, run: str, stage: str) -> None:
        self._label = f"{run}: {stage}"
        self._began = self._shown = time.monotonic()
        self._first: tuple[int, int] | None = None
        self.share = 0.0
        self.eta: float | None = None
        self._bar = _live_bar() if sys.stderr.isatty() else None
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=None, note="")

    def update(self, done: int, total: int, message: str = "") -> None:
        """Take note of ``done`` out of ``total``, and show it when it is time."""
        moment = time.monotonic()
        if self._first is None or self._first[1] != total or done < self._first[0]:
            self._first, self._began = (done, total), moment
        progressed = done - self._first[0]
        self.share = done / total if total else 0.0
        self.eta = (moment - self._began) / progressed * (total - done) if progressed > 0 else None
        if moment - self._shown < (_LINE_EVERY if self._bar is None else _REFRESH):
            return
        self._shown = moment
        note = ", ".join(
            part for part in (message, f"{duration(self.eta)} left" if self.eta is not None else "") if part
        )
        if self._bar is None:
            logger.info(
                "{} {}/{} ({:.0%}){}", self._label, done, total, self.share, f", {note}" if note else ""
            )
        else:
            self._bar.update(self._task, completed=done, total=total, note=note, refresh=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()


def _live_bar() -> Progress:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %", markup=False),
        TextColumn("{task.fields[note]}", markup=False),
    )
    return Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
