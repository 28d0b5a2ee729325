"""A TOML document that remembers where each of its values was written, through ``extends`` and ``--set``."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, time
from pathlib import PurePath
from typing import Any

import tomli

from .locate import TooMuch, locate
from .problems import COMMAND_LINE, KeyPath, Origin, Problem, SpecError, dotted, show
from .root import DEFAULT_KINDS, REGISTRIES

_LARGEST_FILE = 1_000_000  # bytes
_LONGEST_CHAIN = 20  # bases of bases
_BARE_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.+/-]*")
_TOMLI_PLACE = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)
_TOMLI_TWICE = re.compile(r"Cannot declare \((.*)\) twice")
_QUOTED = re.compile("'(.*?)'")


@dataclass(frozen=True)
class Document:
    """Values as tomli reads them, and the origin of every key and array element by its path."""

    values: dict[str, Any]
    origins: Mapping[KeyPath, Origin]

    def origin(self, path: KeyPath) -> Origin:
        """Where the value at ``path`` was written, or what encloses it when it was not written at all."""
        while path not in self.origins:
            path = path[:-1]
        return self.origins[path]

    def assigned(self, path: KeyPath, value: Any, origins: Mapping[KeyPath, Origin]) -> Document:
        """A copy with ``value`` at ``path`` and its ``origins``. Raises KeyError where a non-table is entered."""
        known = {p: o for p, o in self.origins.items() if p[: len(path)] != path}
        enclosing = {path[:n]: origins[path] for n in range(1, len(path))}
        return Document(replaced(self.values, path, value), {**enclosing, **known, **origins})


def replaced(values: dict[str, Any], path: KeyPath, value: Any) -> dict[str, Any]:
    """A copy with ``value`` at ``path``; tables beside the path are shared. Raises KeyError where a non-table is entered."""
    values = dict(values)
    table: dict[Any, Any] = values
    for part in path[:-1]:
        inner = table.get(part, {})
        if not isinstance(inner, dict):
            raise KeyError(part)
        table[part] = table = dict(inner)
    table[path[-1]] = value
    return values


def read_document(path: str) -> tuple[Document, list[Problem]]:
    """The document of a file with its bases merged in, and what is wrong with the bases. Raises SpecError."""
    return _read(path, ())


def _read(path: str, descendants: tuple[str, ...]) -> tuple[Document, list[Problem]]:
    file = Origin(path, rank=len(descendants))
    document = _parse(_read_text(file), file)
    if "extends" not in document.values:
        return document, []
    origin = document.origin(("extends",))
    extends = document.values.pop("extends")
    descendants = (*descendants, os.path.realpath(path))
    try:
        base_path = _base_path(path, extends, descendants)
        base, problems = _read(base_path, descendants)
    except _Unusable as unusable:
        return document, [Problem(origin, "extends", str(unusable))]
    except SpecError as error:
        located = [p for p in error.problems if p.origin.line]
        whole = [Problem(origin, "extends", str(p)) for p in error.problems if not p.origin.line]
        return document, located + whole
    return _merge(base, document), problems


class _Unusable(Exception):
    """Why a value of ``extends`` leads nowhere."""


def _base_path(path: str, extends: Any, descendants: tuple[str, ...]) -> str:
    if not isinstance(extends, str) or not extends:
        raise _Unusable(f"must be the path of one spec file, relative to this one, got {show(extends)}")
    if PurePath(extends).is_absolute():
        raise _Unusable(f"must be a path relative to this file, got {show(extends)}")
    base_path = os.path.normpath(os.path.join(os.path.dirname(path), extends))
    if "\0" not in base_path and os.path.realpath(base_path) in descendants:
        raise _Unusable(f"{show(extends)} extends this file in turn: a spec cannot be its own base")
    if len(descendants) > _LONGEST_CHAIN:
        raise _Unusable(f"more than {_LONGEST_CHAIN} specs extend one another")
    return base_path


def _open_base(path: str, flags: int) -> int:
    """Open a base, which must not wait for anybody. (The spec itself is named by the user, and may be a pipe of the shell.)"""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device")
    return os.open(
        path, flags | os.O_NONBLOCK
    )  # some files of /proc call themselves regular and wait all the same


def _read_text(file: Origin) -> str:
    try:
        with open(file.source, "rb", opener=_open_base if file.rank else None) as stream:
            content = stream.read(_LARGEST_FILE + 1) or b""
    except FileNotFoundError:
        raise SpecError([Problem(file, "", "no such file")]) from None
    except IsADirectoryError:
        raise SpecError([Problem(file, "", "is a directory; a spec is a .toml file")]) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError([Problem(file, "", f"cannot be read: {reason}")]) from None
    if len(content) > _LARGEST_FILE:
        what = f"is larger than {_LARGEST_FILE / 1e6:g} MB; a spec is a few kB of TOML"
        raise SpecError([Problem(file, "", what)])
    if not content.strip():
        raise SpecError([Problem(file, "", "the file is empty (`nqs-sae init NAME` writes a starter spec)")])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError([Problem(file, "", f"is not a text file in UTF-8 (byte {error.start})")]) from None
    if "\0" in text:
        raise SpecError([Problem(file, "", "is a binary file, not a spec in TOML")])
    return text.replace("\r\n", "\n")


def _parse(text: str, file: Origin) -> Document:
    def at(line: int, column: int) -> Origin:
        return Origin(file.source, line, column, file.rank)

    try:
        values = tomli.loads(text)
        places = locate(text)
    except TooMuch as error:
        raise SpecError([Problem(at(*error.position), "", str(error))]) from None
    except RecursionError:
        raise SpecError([Problem(at(1, 1), "", "nested deeper than any spec can be")]) from None
    except ValueError as error:  # of tomli, or of int() for numbers of thousands of digits
        what, line, column = _syntax_error(str(error), text)
        raise SpecError([Problem(at(line, column), "", f"not valid TOML: {what}")]) from None
    return Document(values, {(): at(1, 1), **{path: at(*place) for path, place in places.items()}})


def _syntax_error(message: str, text: str) -> tuple[str, int, int]:
    """What tomli says, with line and column (tomli gives the end of the document without numbers)."""
    match = _TOMLI_PLACE.fullmatch(message)
    what = match.group(1) if match else message
    lines = text.rstrip("\n").split("\n")
    line, column = len(lines), len(lines[-1]) + 1
    if match and match.group(2):
        line, column = int(match.group(2)), int(match.group(3))
    twice = _TOMLI_TWICE.fullmatch(what)
    if twice:
        what = f"the table [{'.'.join(re.findall(_QUOTED, twice.group(1)))}] appears twice"
    return what, line, column


def _merge(base: Document, child: Document) -> Document:
    """The child over its base. A section whose ``kind`` changes is replaced, other tables merge."""
    replaced: set[KeyPath] = set()
    values = _merged(base.values, child.values, (), replaced)
    kept = {
        path: origin
        for path, origin in base.origins.items()
        if not any(path[:n] in replaced for n in range(1, len(path) + 1))
    }
    return Document(values, {**kept, **child.origins})


def _merged(
    base: dict[str, Any], child: dict[str, Any], path: KeyPath, replaced: set[KeyPath]
) -> dict[str, Any]:
    result = dict(base)
    for key, value in child.items():
        here, old = (*path, key), base.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and not _kind_changes(here, old, value):
            result[key] = _merged(old, value, here, replaced)
        else:
            replaced.add(here)
            result[key] = value
    return result


def _kind_changes(path: KeyPath, base: dict[str, Any], child: dict[str, Any]) -> bool:
    if len(path) != 1 or path[0] not in REGISTRIES or "kind" not in child:
        return False
    return child["kind"] != base.get("kind", DEFAULT_KINDS.get(str(path[0])))


@dataclass(frozen=True)
class Setting:
    """One ``--set section.key=value`` of the command line."""

    path: KeyPath
    value: Any
    origin: Origin

    def applied(self, document: Document) -> Document:
        """The document with this value. Raises SpecError where the key enters something that is no table."""
        try:
            return document.assigned(self.path, self.value, {self.path: self.origin})
        except KeyError as error:
            what = f"{error.args[0]} is a value, not a table with keys"
            raise SpecError([Problem(self.origin, dotted(self.path), what)]) from None


def read_setting(text: str) -> Setting:
    """Parse ``section.key=value``. The value is TOML; a bare word, date or time is a string. Raises SpecError."""
    origin = Origin(f"--set {text}", rank=COMMAND_LINE)

    def wrong(what: str, key: str = "") -> SpecError:
        return SpecError([Problem(origin, key, what)])

    key, equals, literal = (part.strip() for part in text.partition("="))
    if not equals or not key or "\n" in text or "\r" in text:
        raise wrong("must read section.key=value")
    path = _parse_key(key)
    if path is None:
        raise wrong(f"{show(key)} is not a key such as hamiltonian.h")
    if path[0] == "extends":
        raise wrong("the base of a spec cannot be set on the command line", "extends")
    try:
        parsed = tomli.loads(f"value = {literal}")
        locate(f"{key} = {literal}")
    except TooMuch as error:
        raise wrong(str(error)) from None
    except (ValueError, RecursionError):
        if not _BARE_WORD.fullmatch(literal):
            what = f"{show(literal)} is not a TOML value (quote a string, as in key='\"two words\"')"
            raise wrong(what, dotted(path)) from None
        parsed = {"value": literal}
    value = parsed["value"]
    return Setting(path, literal if isinstance(value, date | time) else value, origin)


def _parse_key(key: str) -> KeyPath | None:
    try:
        table: Any = tomli.loads(f"{key} = 0")
    except (ValueError, RecursionError):
        return None
    path: KeyPath = ()
    while isinstance(table, dict):
        if len(table) != 1:
            return None
        ((part, table),) = table.items()
        path = (*path, part)
    return path
