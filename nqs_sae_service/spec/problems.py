"""What is wrong with a spec, said so that the user can mend it: one plain line per problem.

file:line:column: section.key: what is wrong (did you mean "..."?)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from ..errors import UserError, plain

KeyPath = tuple[str | int, ...]  # of a value in a document: ("observables", "names", 2)

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST_VALUE = 60
_LONGEST_PART = 500  # of a line: the place, the key, what is wrong
_MOST_PROBLEMS = 100  # nobody reads more at a time
COMMAND_LINE = 1000  # rank of ``--set``: after the spec (0) and its bases (1, 2, ...)


@dataclass(frozen=True)
class Origin:
    """Where something was written: file, line and column (from 1; 0: the file as a whole), or ``--set ...``.

    ``rank`` orders the sources of one spec: the file itself, its bases, then the command line.
    """

    source: str
    line: int = 0
    column: int = 0
    rank: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True)
class Problem:
    """One thing to mend. ``key`` is dotted, ``"observables.names[2]"``; empty for the file as a whole."""

    origin: Origin
    key: str
    what: str
    candidates: tuple[str, ...] = ()

    @property
    def order(self) -> tuple[int, str, int, int]:
        """Sorts problems by the place where they were written."""
        return (self.origin.rank, self.origin.source, self.origin.line, self.origin.column)

    def __str__(self) -> str:
        line = ": ".join(
            _cut(part, _LONGEST_PART) for part in (str(self.origin), self.key, self.what) if part
        )
        if self.candidates:
            line += f" (did you mean {' or '.join(show(candidate) for candidate in self.candidates)}?)"
        return plain(line)


class SpecError(UserError):
    """A spec that cannot be run. ``problems`` holds what was found, in the order of the text: the first hundred."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        found = sorted(dict.fromkeys(problems), key=lambda problem: problem.order)
        if left := found[_MOST_PROBLEMS:]:
            found[_MOST_PROBLEMS:] = [Problem(left[0].origin, "", f"and {len(left)} more problems")]
        self.problems: tuple[Problem, ...] = tuple(found)
        super().__init__("\n".join(map(str, self.problems)))


def show(value: Any) -> str:
    """A value roughly as TOML writes it, cut to a readable length."""
    if isinstance(value, dict):
        return "a table"
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a very deep array
        return "a value too large to show"
    text = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}.get(text, text)
    return _cut(text, _LONGEST_VALUE)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def dotted(path: KeyPath) -> str:
    """The path as a user writes it: ``("observables", "names", 2)`` is ``observables.names[2]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            word = part if _BARE.fullmatch(part) else json.dumps(part, ensure_ascii=False)
            text += f".{word}" if text else word
    return text


def nearest(word: str, names: Iterable[str]) -> tuple[str, ...]:
    """At most one of ``names`` that ``word`` may have meant; case and ``-`` against ``_`` do not matter."""
    folded = {name.lower().replace("-", "_"): name for name in names}
    close = get_close_matches(word[:200].lower().replace("-", "_"), folded, n=1, cutoff=0.6)
    return tuple(folded[match] for match in close)
