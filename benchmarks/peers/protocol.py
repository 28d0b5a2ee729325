"""How a benchmark talks to the programs it compares: one JSON object per line on stdin, one per line on stdout.

Each contender is a process of its own, in its own virtual environment, that stays alive between requests. So the contenders can
take turns, repetition by repetition, and what disturbs the machine disturbs all of them alike. Only the standard library is
used here, because every environment must be able to import it.

    {"do": "build", ...}  -> {"seconds": ..., ...}      prepare the work (once)
    {"do": <anything>}    -> {"seconds": ..., ...}      whatever the contender offers; ``seconds`` is its own clock
    {"do": ..., "count": 9}                             the same nine times in a row; ``seconds`` is the mean
                          -> {"failure": "..."}           when it went wrong
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

Answer = dict[str, Any]
Handler = Callable[[Mapping[str, Any]], Answer | None]


class ContenderFailed(Exception):
    """A contender answered with an error, or ended."""


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answer requests until stdin ends. What libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = _answer(handlers, json.loads(line))
        except Exception as problem:
            answer = {"failure": f"{type(problem).__name__}: {problem}"}
        print(json.dumps(answer), file=answers, flush=True)


def _answer(handlers: Mapping[str, Handler], request: Mapping[str, Any]) -> Answer:
    """Call a handler ``count`` times (once unless said): its last answer, and the seconds of one call on average."""
    count, seconds = request.get("count", 1), 0.0
    for _ in range(count):
        began = time.perf_counter()
        answer = handlers[request["do"]](request) or {}
        seconds += answer.get("seconds", time.perf_counter() - began)
    return {**answer, "seconds": seconds / count}


class Contender:
    """A running contender, seen from the benchmark. ``running`` are the process numbers of all."""

    running: ClassVar[set[int]] = set()

    def __init__(
        self, name: str, python: Path, script: Path, environment: Mapping[str, str], log: Path
    ) -> None:
        self.name, self._log = name, log
        with open(log, "ab") as errors:
            self._process = subprocess.Popen(
                [str(python), str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **environment},
            )
        self.running.add(self._process.pid)

    def __enter__(self) -> Contender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.kill()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self.running.discard(self._process.pid)

    def ask(self, do: str, **arguments: Any) -> Answer:
        """Send a request and wait for its answer. Raises ContenderFailed with the contender's own words."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ContenderFailed(f"{self.name} ended (its output is in {self._log})")
        answer = json.loads(line)
        if "failure" in answer:
            raise ContenderFailed(f"{self.name}: {answer['failure']} (its output is in {self._log})")
        return answer

    def seconds(self, do: str, **arguments: Any) -> float:
        """The time a request took, by the contender's clock."""
        return float(self.ask(do, **arguments)["seconds"])
