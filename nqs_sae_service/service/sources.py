"""What a run starts from besides its spec: ground states, samples and rankings of heads of other runs, or parameters in a file.

A source counts by its content. In keys, and in the sections that a stage file carries, the key of the other run's ground
state stands in the place of its name, and the digest of a file in the place of its path: another source is another result,
and the same one under another name is not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..datasets import read_attributes, read_stage
from ..datasets.files import sha256_of
from ..datasets.runs import check_run
from ..datasets.status import read_status
from ..errors import UserError, plain
from ..spec.files import LOAD, RANKING, RUNS, START_FROM, TEACHER, is_path

if TYPE_CHECKING:
    from ..spec import Point, Spec

_OF_A_RUN = ("ground_state", "samples")  # stages that a crosscoder reads of another run
_LENGTH = 20  # hex digits, as of a key


class Unfinished(UserError):
    """The run to start from lacks what is needed of it, not yet perhaps. ``directory`` is that run's."""

    def __init__(self, text: str, directory: Path) -> None:
        super().__init__(text)
        self.directory = directory


@dataclass(frozen=True)
class Source:
    """A file that a run starts from, and what identifies its content. ``stage_file``: whether it is the NetCDF of a stage."""

    path: Path
    digest: str
    stage_file: bool

    def refuse_change(self, run: str) -> None:
        """Raise UserError when the file is not the one that was planned with."""
        now = _attributes(self.path).get("key") if self.stage_file else _digest(self.path)
        if now != self.digest:
            raise UserError(f"{self.path} has changed since {run} was planned: run it again")


def find_sources(point: Point, results: Path) -> dict[str, Source]:
    """The sources of a point by their keys in the spec. Raises UserError for one that is not there or not finished."""
    spec, found = point.spec, {}

    def add(key: str, run: str, stage: str = "ground_state") -> None:
        with _said_of(point, key):
            found[key] = _stage_file(run, results / point.run, results, stage)

    if start := spec.ground_state.start_from:
        add(START_FROM, start)
    if teacher := spec.transfer.teacher:
        add(TEACHER, teacher)
    if load := spec.state.load:
        with _said_of(point, LOAD):
            found[LOAD] = Source(Path(load), _digest(Path(load)), stage_file=False)
    for number, run in enumerate(spec.crosscoder.runs):
        for stage in _OF_A_RUN:
            add(f"{RUNS}[{number}].{stage}", run, stage)
    return found


@contextmanager
def _said_of(point: Point, key: str) -> Iterator[None]:
    """Errors say which run they are about, and which key of its spec."""
    try:
        yield
    except Unfinished as problem:
        raise Unfinished(plain(f"{point.run}: {key}: {problem}"), problem.directory) from None
    except (UserError, OSError) as problem:
        raise UserError(plain(f"{point.run}: {key}: {problem}")) from None


def with_ranked_heads(point: Point, results: Path) -> Point:
    """The point with the kind of every head written out, where they are chosen by the ``heads.nc`` of another run.

    Raises UserError where that is not there, not finished, or of a network of another shape.
    """
    state = point.spec.state
    if getattr(state, "attention", None) != "ranked":
        return point
    with _said_of(point, RANKING):
        file = _stage_file(state.ranking, results / point.run, results, "heads").path
        with read_stage(file) as heads:
            ranks = heads["rank"].values
        if ranks.shape != (state.layers, state.heads):
            there, here = (
                f"{layers} layers of {heads} heads"
                for layers, heads in (ranks.shape, (state.layers, state.heads))
            )
            raise UserError(f"{file} ranks {there}, this network has {here}")
    chosen = state.ranked(ranks.ravel().argsort(kind="stable").tolist())
    return replace(point, spec=point.spec.model_copy(update={"state": chosen}))


def identified(spec: Spec, sources: Mapping[str, Source]) -> Spec:
    """The spec with the content of the sources in the place of their names: what keys are made of."""
    digests: dict[str, list[str]] = {}
    for key, source in sources.items():
        digests.setdefault(key.partition("[")[0], []).append(source.digest)
    for field, found in digests.items():
        section, name = field.split(".")
        several = isinstance(getattr(getattr(spec, section), name), tuple)
        record = getattr(spec, section).model_copy(update={name: tuple(found) if several else found[0]})
        spec = spec.model_copy(update={section: record})
    return spec


def _stage_file(run: str, own: Path, results: Path, stage: str = "ground_state") -> Source:
    """The file of a stage of the run that ``run`` names, or that is at this path; a path may lead to a ground_state.nc."""
    path = Path(run) if is_path(run) else results / run
    directory = path.parent if path.suffix == ".nc" and not path.is_dir() else path
    file = path if directory != path and stage == "ground_state" else directory / f"{stage}.nc"
    if os.path.abspath(directory) == os.path.abspath(own):
        raise UserError("a run cannot start from itself: name another one")
    if not file.exists():
        if directory == path or stage != "ground_state":
            _refuse_missing(run, directory, results, stage)
        else:
            raise UserError(f"{file}: no such file")
    key = _key_of(file, stage)
    return Source(file, key, stage_file=True)


def _refuse_missing(run: str, directory: Path, results: Path, stage: str) -> None:
    try:
        check_run(directory)
    except UserError as problem:
        text = str(problem)
        if not is_path(run):
            text += f"; {run!r} is taken for a run in {results}, a path begins with ./ or /"
        raise (UserError(text) if directory.exists() else Unfinished(text, directory)) from None
    state = read_status(directory).get("state", "not begun")
    what = "no ground state" if stage == "ground_state" else f"no {stage}.nc"
    raise Unfinished(
        f"the run in {directory} has {what} yet (it is {state}): let it finish that stage first",
        directory,
    )


def _key_of(file: Path, stage: str) -> str:
    attributes = _attributes(file)
    if attributes.get("stage") != stage or "key" not in attributes:
        raise UserError(f"{file}: not the {stage}.nc of a run")
    return str(attributes["key"])


def _attributes(file: Path) -> Mapping[str, object]:
    return read_attributes(file) if file.is_file() else {}


def _digest(file: Path) -> str:
    if not file.is_file():
        raise UserError(f"{file}: {'not a file' if file.exists() else 'no such file'}")
    try:
        return sha256_of(file)[:_LENGTH]
    except OSError as problem:
        raise UserError(f"{file}: cannot be read ({problem.strerror or problem})") from None
