"""From a document to validated records: each section on its own, then against those that are sound.

Nothing stops at the first problem. Sections are handed to pydantic as JSON, where arrays may become tuples
although the records are strict.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from typing import Any

from pydantic import ValidationError

from .document import Document
from .problems import KeyPath, Problem, dotted, nearest, show
from .root import DEFAULT_KINDS, REGISTRIES, REQUIRED_SECTIONS, SECTIONS, Heading, Spec, records_of, resolve
from .section import Finding, Section
from .sections import DEFAULT_SEED

_LARGEST_INTEGER = 2**63 - 1
_KEY_PARTS = re.compile(r"[^.\[\]]+")

# What is expected, by pydantic's name of the error, in our words; {...} is filled from the error's context.
_EXPECTED = {
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "string_pattern_mismatch": "must be a path",
    "tuple_type": "must be an array",
    "list_type": "must be an array",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "literal_error": "must be {expected}",
    "choices": "must be {expected}",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "too_short": "must have at least {min_length} elements",
    "too_long": "must have at most {max_length} elements",
}


class Missing(Problem):
    """Something required that is not there."""


Validated = tuple[Section | None, list[Problem]]
Memory = dict[tuple[str, int], tuple[Any, Validated]]


def validate(
    document: Document, complete: bool = True, memory: Memory | None = None
) -> tuple[Spec | None, list[Problem]]:
    """The resolved spec of a document without sweep, or None and everything that is wrong with it.

    ``complete=False`` says that part of the document is known to be lost (an unreadable base): nothing counts
    as missing. ``memory``, handed on from one point of a sweep to the next, spares the sections that they share.
    """
    memory = {} if memory is None else memory
    problems = list(_unknown_sections(document))
    heading, found = _record(document, (), Heading)
    problems += found
    sections: dict[str, Section] = {}
    for name in SECTIONS:
        record, found = _remembered(document, name, memory)
        problems += found
        if record is not None:
            sections[name] = record
    seed = heading.seed if isinstance(heading, Heading) else DEFAULT_SEED
    sections = resolve(seed, sections)
    problems += _findings(document, sections)
    if not complete:
        problems = [problem for problem in problems if not isinstance(problem, Missing)]
    if problems or not isinstance(heading, Heading) or len(sections) < len(SECTIONS):
        return None, problems
    fields: dict[str, Any] = {"name": heading.name, "seed": heading.seed, **sections}
    return Spec(**fields), []


def _remembered(document: Document, name: str, memory: Memory) -> Validated:
    """A section, validated once for all points that hold the very same table (which the memory keeps alive)."""
    values = document.values.get(name)
    key = (name, id(values))
    if key not in memory:
        memory[key] = (values, _section(document, name))
    return memory[key][1]


def _section(document: Document, name: str) -> Validated:
    values = document.values.get(name)
    if values is None:
        if name in REQUIRED_SECTIONS:
            what = f"the section [{name}] is required and missing ({Spec.model_fields[name].description})"
            return None, [Missing(document.origin(()), name, what)]
        values = {}
    if not isinstance(values, dict):
        what = f"must be one table, [{name}], got {show(values)}"
        return None, [Problem(document.origin((name,)), name, what)]
    if name not in REGISTRIES:
        return _record(document, (name,), records_of(name)[0])
    record, found = _kind(document, name, values)
    return (None, found) if record is None else _record(document, (name,), record)


def _kind(
    document: Document, name: str, values: Mapping[str, Any]
) -> tuple[type[Section] | None, list[Problem]]:
    """The record class that ``kind`` asks for."""
    registry, path = REGISTRIES[name], (name, "kind")
    kind = values.get("kind", DEFAULT_KINDS.get(name))
    known = " or ".join(map(show, registry))
    if kind is None:
        return None, [Missing(document.origin(path), dotted(path), f"required key is missing: {known}")]
    if not isinstance(kind, str):
        what = f"must be a string, {known}, got {show(kind)}"
        return None, [Problem(document.origin(path), dotted(path), what)]
    if kind not in registry:
        what = f"unknown kind {show(kind)}; known: {known}"
        return None, [Problem(document.origin(path), dotted(path), what, nearest(kind, registry))]
    return registry[kind], []


def _record(document: Document, path: KeyPath, record: type[Section]) -> Validated:
    """Validate one section (or, for the empty path, the keys above all sections)."""
    values: Any = document.values
    for part in path:
        values = values.get(part, {})
    if not path:
        values = {key: value for key, value in values.items() if key in record.model_fields}
    foreign: dict[KeyPath, str] = {}
    values = _as_json(values, path, foreign)
    if path and path[0] in DEFAULT_KINDS:
        values.setdefault("kind", DEFAULT_KINDS[str(path[0])])
    text = json.dumps(values)
    validated, errors = _validate(record, text)
    problems = [Problem(document.origin(place), dotted(place), what) for place, what in foreign.items()]
    for error in errors:
        place = (*path, *error["loc"])
        # elements that are wrong do not count for pydantic, so that it finds too few of them as well
        short = error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]
        if not short and not any(place[:n] in foreign for n in range(len(place) + 1)):
            problems.append(_problem(document, place, error, record))
    if validated is None and all(
        error["type"] == "extra_forbidden" and len(error["loc"]) == 1 for error in errors
    ):
        known = {key: value for key, value in values.items() if key in record.model_fields}
        validated, _ = _validate(record, json.dumps(known))  # unknown keys do not hide what else is wrong
    return (None if foreign else validated), problems


@lru_cache(maxsize=4096)
def _validate(record: type[Section], text: str) -> tuple[Section | None, list[Any]]:
    try:
        return record.model_validate_json(text), []
    except ValidationError as error:
        return None, _plain_places(error.errors(include_url=False), json.loads(text))


def _plain_places(errors: list[Any], values: Any) -> list[Any]:
    """The errors at the places that the user wrote.

    Where a value may be one of several things (an integer or a word), pydantic reports what is wrong with each of them, the
    thing meant being a part of the place. If one of them is of the right type, so that a bound or an element of it is wrong,
    that alone is said; else all of them, in one error.
    """
    plain: list[Any] = []
    choices: dict[KeyPath, list[Any]] = {}
    for error in errors:
        place, choice = _without_choice(error["loc"], values)
        error = {**error, "loc": place}
        if choice is None:
            plain.append(error)
            continue
        if choice not in choices:
            choices[choice] = []
            plain.append(choices[choice])
        choices[choice].append(error)
    return [
        found for entry in plain for found in (_of_choices(entry) if isinstance(entry, list) else [entry])
    ]


def _without_choice(place: KeyPath, values: Any) -> tuple[KeyPath, KeyPath | None]:
    """The place without the name of a choice in it, and the place of the value that has the choice."""
    for depth, part in enumerate(place):
        if isinstance(values, dict) and part in values:
            values = values[part]
        elif isinstance(values, list) and isinstance(part, int):
            values = values[part] if part < len(values) else None
        elif isinstance(values, dict) and depth == len(place) - 1:  # a key that is missing
            return place, None
        else:
            return place[:depth] + place[depth + 1 :], place[:depth]
    return place, None


def _of_choices(errors: list[Any]) -> list[Any]:
    shallow = min(len(error["loc"]) for error in errors)
    fitting = [
        error
        for error in errors
        if len(error["loc"]) > shallow
        or not error["type"].endswith(("_type", "literal_error", "pattern_mismatch"))
    ]
    if fitting or len(errors) == 1:
        return fitting or errors
    expected = [_expected(error).removeprefix("must be ") for error in errors]
    return [{**errors[0], "type": "choices", "ctx": {"expected": " or ".join(dict.fromkeys(expected))}}]


def _as_json(value: Any, path: KeyPath, foreign: dict[KeyPath, str]) -> Any:
    """The value without what JSON has no word for; ``foreign`` collects where that was and what is wrong."""
    if isinstance(value, dict):
        return {key: _as_json(inner, (*path, key), foreign) for key, inner in value.items()}
    if isinstance(value, list):
        return [_as_json(inner, (*path, index), foreign) for index, inner in enumerate(value)]
    if isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
        foreign[path] = "is an integer of more than 64 bits"
        return None
    if isinstance(value, str | int | float):
        return value
    foreign[path] = f"dates and times have no place in a spec, got {value} (quote what is meant as a string)"
    return None


def _problem(document: Document, place: KeyPath, error: Mapping[str, Any], record: type[Section]) -> Problem:
    """One error of pydantic in our words."""
    kind, origin = error["type"], document.origin(place)
    record = _innermost(record, place, document)
    if kind == "missing" and isinstance(place[-1], int):
        array, size = place[:-1], place[-1] + 1
        what = f"must have {size} elements, got {show(error['input'])}"
        return Problem(document.origin(array), dotted(array), what)
    if kind == "missing":
        return Missing(origin, dotted(place), f"required key is missing{_described(record, place)}")
    if kind == "extra_forbidden":
        what, candidates = _unknown_key(place, record)
        return Problem(origin, dotted(place), what, candidates)
    context = error.get("ctx", {})
    if kind == "value_error":
        return Problem(origin, dotted(place), str(context["error"]))
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        known = [name.strip("' ") for name in error["ctx"].get("expected_tags", "").split(",") if name]
        given = error["ctx"].get("tag")
        path, told = (*place, "kind"), f" {show(given)}" if given else ""
        what = f"unknown kind{told}" if given else "required key is missing"
        listed = f"; known: {' or '.join(map(show, known))}" if known else ""
        return Problem(
            document.origin(path), dotted(path), what + listed, nearest(given, known) if given else ()
        )
    what, candidates = _expected(error), ()
    if kind in ("literal_error", "choices") and isinstance(error["input"], str):
        candidates = nearest(error["input"], re.findall("'(.*?)'", context["expected"]))
    return Problem(origin, dotted(place), f"{what}, got {show(error['input'])}", candidates)


def _expected(error: Mapping[str, Any]) -> str:
    kind = error["type"]
    return _EXPECTED[kind].format(**error.get("ctx", {})) if kind in _EXPECTED else error["msg"]


def _innermost(record: type[Section], place: KeyPath, document: Document) -> type[Section]:
    """The record of the table that holds the key at ``place``: of the section, or of a table inside it."""
    values: Any = document.values.get(str(place[0])) if place else None
    for part in place[1:-1]:
        values = values.get(part) if isinstance(values, dict) else None
        kind = values.get("kind") if isinstance(values, dict) else None
        kinds = record.tables_of_kinds().get(str(part), {})
        record = {**record.tables(), **record.arrays_of_tables()}.get(str(part), record)
        record = kinds.get(str(kind), record)
    return record


def _described(record: type[Section], place: KeyPath) -> str:
    field = record.model_fields.get(str(place[-1]))
    return f" ({field.description})" if field is not None and field.description else ""


def _unknown_key(place: KeyPath, record: type[Section]) -> tuple[str, tuple[str, ...]]:
    """What to say about a key that the section does not have, and where it may belong."""
    section, key = str(place[0]), str(place[-1])
    table = ".".join(map(str, place[:-1]))
    kinds = [kind for kind, other in REGISTRIES.get(section, {}).items() if key in other.model_fields]
    if kinds and len(place) == 2:
        return f"unknown key here; it belongs to kind {' or '.join(map(show, kinds))}", ()
    near = (*nearest(key, record.model_fields), *_sections_with(key))
    if near:
        return "unknown key", near
    return f"unknown key; [{table}] has {', '.join(record.model_fields) or 'none'}", ()


def _sections_with(key: str) -> tuple[str, ...]:
    """The dotted names of this key in all sections that have it, and in the tables inside them."""
    return _places_of_keys().get(key, ())


@cache
def _places_of_keys() -> dict[str, tuple[str, ...]]:
    tables = {section: records_of(section) for section in SECTIONS}
    for section in SECTIONS:
        for record in records_of(section):
            tables |= {f"{section}.{name}": (inner,) for name, inner in record.tables().items()}
    places: dict[str, tuple[str, ...]] = {}
    for table, records in tables.items():
        for key in {key: None for record in records for key in record.model_fields}:
            places[key] = (*places.get(key, ()), f"{table}.{key}")
    return places


def _unknown_sections(document: Document) -> Iterator[Problem]:
    known = (*Heading.model_fields, "extends", *SECTIONS, "sweep")
    for key, value in document.values.items():
        if key in known:
            continue
        what = "unknown section" if isinstance(value, dict) else "unknown key"
        near = nearest(key, known) or _sections_with(key)
        if not near:
            what += f"; a spec has {', '.join(known)}"
        yield Problem(document.origin((key,)), dotted((key,)), what, near)


def _findings(document: Document, sections: Mapping[str, Section]) -> Iterator[Problem]:
    tables: list[tuple[KeyPath, Section]] = [((name,), record) for name, record in sections.items()]
    tables += [((*path, name), getattr(record, name)) for path, record in tables for name in record.tables()]
    for path, record in tables:
        for finding in record.findings(sections):
            inner = tuple(int(part) if part.isdigit() else part for part in _KEY_PARTS.findall(finding.key))
            place = (*path, *inner)
            candidates = _closest(finding, document, place)
            yield Problem(document.origin(place), dotted(place), finding.what, candidates)


def _closest(finding: Finding, document: Document, place: KeyPath) -> tuple[str, ...]:
    """The candidate nearest to what is written there; all of them when that is no word."""
    value: Any = document.values
    try:
        for part in place:
            value = value[part]
    except (KeyError, IndexError, TypeError):
        return finding.candidates
    return nearest(value, finding.candidates) if isinstance(value, str) else finding.candidates
