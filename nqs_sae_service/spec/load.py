"""From a TOML file to the resolved points of an experiment, or to all that is wrong with it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import tomli
import tomli_w
from pydantic import ValidationError

from ..errors import UserError
from .document import Document, Setting, read_document, read_setting
from .files import anchored
from .problems import KeyPath, Problem, SpecError
from .root import REGISTRIES, Spec
from .sweep import expand, label
from .validate import Memory, validate

_LONGEST_LABEL = 200  # characters of a directory name; file systems allow 255 bytes


@dataclass(frozen=True)
class Point:
    """One run: its resolved spec, its directory relative to the results, its coordinates in the sweep."""

    spec: Spec
    run: str
    coordinates: Mapping[str, Any]

    def toml(self) -> str:
        """The resolved spec as TOML: every value written out, no ``extends``, no sweep. Loads back."""
        document = self.spec.model_dump(exclude_none=True)
        for section in REGISTRIES:
            document[section] = {"kind": document[section]["kind"], **document[section]}
        return tomli_w.dumps(document)


def load_spec(path: str | os.PathLike[str], sets: Iterable[str] = ()) -> list[Point]:
    """All points of the spec in a file, in the order of its sweep; a spec without sweep has one.

    ``sets`` are values of the command line, ``"section.key=value"``, that override the file. Raises
    SpecError with every problem of the file, its bases and the command line.
    """
    document, problems = read_document(os.fspath(path))
    complete = not problems
    settings: list[Setting] = []
    for text in sets:
        try:
            setting = read_setting(text)
            document = setting.applied(document)
            settings.append(setting)
        except SpecError as error:
            problems += error.problems
            complete = False
    expansion = expand(document, settings)
    complete = complete and not expansion.problems
    memory: Memory = {}
    documents = [anchored(point) for point in expansion.documents]
    results = [validate(point, complete, memory) for point in documents]
    problems += expansion.problems
    problems += _common(documents, expansion.targets, [found for _, found in results])
    if problems:
        raise SpecError(problems)
    points = [_point(spec, expansion.targets) for spec, _ in results if spec is not None]
    _refuse_shared_directories(points, document)
    return points


def frozen_point(text: str, run: str, coordinates: Mapping[str, Any]) -> Point:
    """The point whose ``toml()`` is ``text``. Raises UserError when this version of the package does not understand it."""
    try:
        spec = Spec.model_validate_json(json.dumps(tomli.loads(text)))
    except (tomli.TOMLDecodeError, ValidationError) as problem:
        reason = problem.errors()[0]["msg"] if isinstance(problem, ValidationError) else problem
        raise UserError(
            f"{run}: its frozen spec does not fit this version ({reason}); submit it again"
        ) from None
    return Point(spec, run, coordinates)


def _point(spec: Spec, targets: Sequence[KeyPath]) -> Point:
    if not targets:
        return Point(spec, spec.name, {})
    coordinates = {".".join(map(str, target)): _value(spec, target) for target in targets}
    directory = label(coordinates)
    if len(directory) > _LONGEST_LABEL:
        digest = hashlib.sha256(directory.encode()).hexdigest()[:12]
        directory = f"{directory[: _LONGEST_LABEL - 13]}-{digest}"
    return Point(spec, f"{spec.name}/{directory}", coordinates)


def _value(spec: Spec, target: KeyPath) -> Any:
    value: Any = spec
    for part in target:
        value = getattr(value, str(part))
    return value


def _common(
    documents: Sequence[Document], targets: Sequence[KeyPath], found: Sequence[Sequence[Problem]]
) -> list[Problem]:
    """The problems of all points, each once. One that only some points have names the first of them."""
    where: dict[Problem, list[int]] = {}
    for index, problems in enumerate(found):
        for problem in dict.fromkeys(problems):
            where.setdefault(problem, []).append(index)

    @cache
    def place(index: int) -> str:
        document = documents[index]
        return label({".".join(map(str, target)): _written(document, target) for target in targets})

    common = []
    for problem, points in where.items():
        document = documents[points[0]]
        at_sweep = any(problem.origin == document.origin(target) for target in targets)
        if len(points) < len(documents) and not at_sweep:
            problem = replace(problem, what=f"{problem.what}, at {place(points[0])}")
        common.append(problem)
    return common


def _written(document: Document, target: KeyPath) -> Any:
    value: Any = document.values
    for part in target:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _refuse_shared_directories(points: Sequence[Point], document: Document) -> None:
    seen: set[str] = set()
    for point in points:
        if point.run in seen:
            what = f"two points are both {point.run}: the values of a sweep must differ"
            raise SpecError([Problem(document.origin(("sweep",)), "sweep", what)])
        seen.add(point.run)
