"""Line and column of every key and array element of a TOML text.

tomli parses but forgets positions. This scanner walks over a text that tomli has already accepted, so it
checks nothing: it only has to know where keys, values and comments begin and end (https://toml.io/en/v1.1.0).
"""

from __future__ import annotations

import re
from bisect import bisect_right

import tomli

from .problems import KeyPath

Position = tuple[int, int]

DEEPEST = 32  # levels of a document; no spec needs more than five
MOST = 50_000  # keys and array elements; a sweep needs at most as many as it has points


class TooMuch(ValueError):
    """The document is nested deeper, or holds more, than any spec can: ``position`` is where it goes too far."""

    def __init__(self, what: str, position: Position) -> None:
        super().__init__(what)
        self.position = position


_BLANK = re.compile(r"[ \t]*")
_GAP = re.compile(r"(?:[ \t\n]|#[^\n]*)*")  # between elements: blanks, line breaks, comments
_REST_OF_LINE = re.compile(r"[^\n]*")
_KEY = re.compile(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'|[A-Za-z0-9_-]+')
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}'
    r"|'''(?:[^']|'{1,2}(?!'))*'{3,5}"
    r'|"(?:[^"\\]|\\.)*"'
    r"|'[^']*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n]+")  # numbers, booleans, dates (which may contain a blank)


def locate(text: str) -> dict[KeyPath, Position]:
    """(line, column) from 1 of every key and array element, by its path: ``("observables", "names", 2)``.

    A table has the position of its name in the first header or dotted key that mentions it. ``text`` must
    be valid TOML with ``\\n`` line ends. Raises TooMuch.
    """
    scanner = _Scanner(text)
    scanner.document()
    return scanner.positions


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.positions: dict[KeyPath, Position] = {}
        self.elements: dict[KeyPath, int] = {}  # of each array of tables, so far
        self.line_starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def document(self) -> None:
        table: KeyPath = ()
        self.skip(_GAP)
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                table = self.header()
            else:
                self.key_value(table)
            self.skip(_REST_OF_LINE)
            self.skip(_GAP)

    def header(self) -> KeyPath:
        """``[a.b]`` or ``[[a.b]]``: the path of the table that the next keys belong to."""
        is_array = self.text.startswith("[[", self.at)
        self.at += 2 if is_array else 1
        path: KeyPath = ()
        keys = self.dotted_key()
        for index, (key, position) in enumerate(keys):
            path = (*path, key)
            self.record(path, position)
            is_last = index == len(keys) - 1
            if is_last and is_array:
                self.elements[path] = self.elements.get(path, -1) + 1
            if path in self.elements:
                path = (*path, self.elements[path])
                self.record(path, position)
        return path

    def key_value(self, table: KeyPath) -> None:
        path = table
        for key, position in self.dotted_key():
            path = (*path, key)
            self.record(path, position)
        self.at += 1  # the equals sign
        self.skip(_BLANK)
        self.value(path)

    def dotted_key(self) -> list[tuple[str, Position]]:
        """The parts of a key with their positions; stops after it and the blanks that follow."""
        parts = []
        while True:
            self.skip(_BLANK)
            position = self.position()
            raw = self.skip(_KEY)
            parts.append((_unquoted(raw), position))
            self.skip(_BLANK)
            if not self.text.startswith(".", self.at):
                return parts
            self.at += 1

    def value(self, path: KeyPath) -> None:
        if self.text[self.at] == "[":
            self.array(path)
        elif self.text[self.at] == "{":
            self.inline_table(path)
        elif not self.skip(_STRING):
            self.skip(_SCALAR)

    def array(self, path: KeyPath) -> None:
        self.at += 1
        self.skip(_GAP)
        index = 0
        while self.text[self.at] != "]":
            self.record((*path, index), self.position())
            self.value((*path, index))
            self.skip_comma()
            index += 1
        self.at += 1

    def inline_table(self, path: KeyPath) -> None:
        self.at += 1
        self.skip(_GAP)
        while self.text[self.at] != "}":
            self.key_value(path)
            self.skip_comma()
        self.at += 1

    def skip_comma(self) -> None:
        self.skip(_GAP)
        if self.text[self.at] == ",":
            self.at += 1
            self.skip(_GAP)

    def skip(self, pattern: re.Pattern[str]) -> str:
        """Move over what the pattern matches here, and return it; "" when it does not match."""
        match = pattern.match(self.text, self.at)
        if match is None:
            return ""
        self.at = match.end()
        return match.group()

    def position(self) -> Position:
        line = bisect_right(self.line_starts, self.at)
        return line, self.at - self.line_starts[line - 1] + 1

    def record(self, path: KeyPath, position: Position) -> None:
        if len(path) > DEEPEST:
            raise TooMuch(f"nested deeper than {DEEPEST} levels", position)
        if len(self.positions) >= MOST:
            raise TooMuch(f"holds more than {MOST} keys and values", position)
        self.positions.setdefault(path, position)


def _unquoted(raw: str) -> str:
    if raw[0] == "'":
        return raw[1:-1]
    if raw[0] == '"':
        return tomli.loads(f"key = {raw}")["key"]
    return raw
