"""Sweeps: one document becomes many, one for each point.

``[sweep.grid]`` is the product of its arrays in the order written; the arrays of ``[sweep.zip]`` move together
and are, as a whole, the last axis of the product. Keys are dotted, ``"hamiltonian.h"``; ``seed`` may be swept too.
"""

from __future__ import annotations

import itertools
import math
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .document import Document, Setting, replaced
from .problems import COMMAND_LINE, KeyPath, Origin, Problem, dotted, nearest, show
from .root import SECTIONS, records_of
from .section import Section

MOST_POINTS = 10_000
_MOST_AXES = 100  # a spec has fewer keys
_MOST_VALUES = 2_000_000  # of all points together: seconds of validation, hundreds of megabytes


@dataclass(frozen=True)
class Axis:
    """One swept key: where its array stands in the document, the path that it sets, its values and their origins."""

    place: KeyPath
    target: KeyPath
    values: tuple[Any, ...]
    origins: tuple[
        dict[KeyPath, Origin], ...
    ]  # of every value and of what is inside it, by the paths they go to


@dataclass(frozen=True)
class Expansion:
    """The documents of all points without ``[sweep]``, the swept paths, and what is wrong with the sweep.

    Without a sweep, and with a wrong one, the only document is that of the spec itself.
    """

    documents: list[Document]
    targets: tuple[KeyPath, ...] = ()
    problems: tuple[Problem, ...] = ()


def expand(document: Document, settings: Sequence[Setting]) -> Expansion:
    """All points of a spec; ``settings`` are the values of the command line, which a sweep must not touch."""
    rest = {key: value for key, value in document.values.items() if key != "sweep"}
    single = Document(
        rest, {path: origin for path, origin in document.origins.items() if path[:1] != ("sweep",)}
    )
    if "sweep" not in document.values:
        return Expansion([single])
    problems: list[Problem] = []
    grid, zipped = _read_axes(document, problems)
    for axis in (*grid, *zipped):
        problems += _axis_problems(document, axis, settings)
    problems += _repetition_problems(document, [*grid, *zipped])
    problems += _size_problems(document, grid, zipped)
    if problems:
        return Expansion([single], problems=tuple(problems))
    moving = [(axis,) for axis in grid] + ([tuple(zipped)] if zipped else [])
    axes = [[[(axis, i) for axis in together] for i in range(len(together[0].values))] for together in moving]
    targets = tuple(axis.target for axis in (*grid, *zipped))
    unswept = {p: o for p, o in single.origins.items() if not any(p[: len(t)] == t for t in targets)}
    choices = map(itertools.chain.from_iterable, itertools.product(*axes))
    return Expansion([_point(rest, unswept, choice) for choice in choices], targets)


def _point(
    values: dict[str, Any], origins: dict[KeyPath, Origin], choice: Iterable[tuple[Axis, int]]
) -> Document:
    """The document of one point. What is not swept is shared by all points, not copied."""
    written: dict[KeyPath, Origin] = {}
    enclosing: dict[KeyPath, Origin] = {}
    for axis, index in choice:
        try:
            values = replaced(values, axis.target, axis.values[index])
        except KeyError:  # the section is no table, which is a problem of the section
            continue
        written |= axis.origins[index]
        enclosing[axis.target[:-1]] = written[axis.target]
    return Document(values, ChainMap(written, origins, enclosing))


def _read_axes(document: Document, problems: list[Problem]) -> tuple[list[Axis], list[Axis]]:
    sweep = document.values["sweep"]
    if not isinstance(sweep, dict):
        what = f"must be a table, [sweep.grid] or [sweep.zip], got {show(sweep)}"
        problems.append(Problem(document.origin(("sweep",)), "sweep", what))
        return [], []
    for key in sweep.keys() - {"grid", "zip"}:
        path = ("sweep", key)
        what = 'unknown key: a sweep is written as [sweep.grid] or [sweep.zip] with keys like "hamiltonian.h"'
        problems.append(Problem(document.origin(path), dotted(path), what, nearest(key, ("grid", "zip"))))
    grid, zipped = (
        list(
            itertools.islice(_axes(document, ("sweep", kind), sweep.get(kind, {}), problems), _MOST_AXES + 1)
        )
        for kind in ("grid", "zip")
    )
    if max(len(grid), len(zipped)) > _MOST_AXES:
        what = f"more than {_MOST_AXES} keys are swept"
        problems.append(Problem(document.origin(("sweep",)), "sweep", what))
        return [], []
    return grid, zipped


def _axes(document: Document, place: KeyPath, table: Any, problems: list[Problem]) -> Iterator[Axis]:
    """The arrays in a table. An unquoted dotted key makes tables in tables; it is read like the quoted one."""
    if isinstance(table, dict):
        for key, value in table.items():
            yield from _axes(document, (*place, key), value, problems)
    elif isinstance(table, list) and table and len(place) > 2:
        target = tuple(".".join(map(str, place[2:])).split("."))
        yield Axis(place, target, tuple(table), _value_origins(document, place, target, len(table)))
    else:
        what = f"must be an array of values with at least one element, got {show(table)}"
        problems.append(Problem(document.origin(place), dotted(place), what))


def _value_origins(
    document: Document, place: KeyPath, target: KeyPath, count: int
) -> tuple[dict[KeyPath, Origin], ...]:
    origins = tuple({target: document.origin((*place, index))} for index in range(count))
    depth = len(place)
    for path, origin in document.origins.items():
        if path[:depth] == place and len(path) > depth:
            origins[int(path[depth])][target + path[depth + 1 :]] = origin
    return origins


def _axis_problems(document: Document, axis: Axis, settings: Sequence[Setting]) -> Iterator[Problem]:
    origin, key = document.origin(axis.place), ".".join(map(str, axis.target))
    section, *rest = map(str, axis.target)
    for setting in settings:
        shared = min(len(setting.path), len(axis.target))
        if setting.path[:shared] == axis.target[:shared]:
            what = f"{key} is swept, at {origin}: change the sweep instead"
            yield Problem(setting.origin, dotted(setting.path), what)
    written = document.origins.get(axis.target, origin)
    if written.rank < origin.rank < COMMAND_LINE:
        yield Problem(written, key, f"is swept by a base of this spec, at {origin}: sweep it here instead")
    if axis.target == ("seed",):
        return
    tables = _tables(section, *rest[:-1]) if section in SECTIONS and rest else ()
    if not tables:
        what = f'cannot be swept: a swept key is "seed" or reads "section.key", got {show(key)}'
        near = nearest(section, SECTIONS) if section not in SECTIONS else ()
        yield Problem(origin, dotted(axis.place), what, near)
        return
    fields = {name for record in tables for name in record.model_fields}
    if rest[-1] not in fields:
        near = tuple(".".join((section, *rest[:-1], name)) for name in nearest(rest[-1], fields))
        yield Problem(origin, dotted(axis.place), f"unknown key {show(key)}", near)
    elif any(rest[-1] in record.tables() for record in tables):
        yield Problem(origin, dotted(axis.place), f"cannot be swept: [{key}] is a table")


def _tables(section: str, *names: str) -> tuple[type[Section], ...]:
    """Every record that a section, or the table inside it that the names lead to, may turn out to be."""
    records = records_of(section)
    for name in names:
        records = tuple(record.tables()[name] for record in records if name in record.tables())
    return records


def _repetition_problems(document: Document, axes: Sequence[Axis]) -> Iterator[Problem]:
    first: dict[KeyPath, Origin] = {}
    for axis in axes:
        origin = document.origin(axis.place)
        if axis.target in first:
            yield Problem(origin, dotted(axis.place), f"is swept twice, first at {first[axis.target]}")
        first.setdefault(axis.target, origin)


def _size_problems(document: Document, grid: Sequence[Axis], zipped: Sequence[Axis]) -> Iterator[Problem]:
    lengths = {len(axis.values) for axis in zipped}
    if len(lengths) > 1:
        sizes = ", ".join(f"{'.'.join(map(str, axis.target))} has {len(axis.values)}" for axis in zipped)
        what = f"arrays must have equal lengths: {sizes}"
        yield Problem(document.origin(("sweep", "zip")), "sweep.zip", what)
    points = math.prod(len(axis.values) for axis in grid) * max(lengths, default=1)
    if points > MOST_POINTS:
        what = f"makes {points} points; at most {MOST_POINTS} are allowed"
        yield Problem(document.origin(("sweep",)), "sweep", what)
    values = sum(path[0] != "sweep" for path in document.origins if path)
    if points <= MOST_POINTS and points * values > _MOST_VALUES:
        what = f"makes {points} points of {values} values each; at most {_MOST_VALUES // points} each can be handled"
        yield Problem(document.origin(("sweep",)), "sweep", what)


def label(coordinates: Mapping[str, Any]) -> str:
    """Directory of a point inside its sweep, ``hamiltonian.h=0.5,sae.k=8``, safe on every file system.

    Characters other than letters, digits and ``._+=-`` become ``_``; the caller sees to it that names differ.
    """
    text = ",".join(f"{key}={_word(value)}" for key, value in coordinates.items())
    return "".join(c if c.isascii() and (c.isalnum() or c in "._+=,-") else "_" for c in text)


def _word(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "+".join(map(_word, value))
    return value if isinstance(value, str) else show(value)
