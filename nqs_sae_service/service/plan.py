"""The plan: for every point of a spec, which stages run and why, and what they will cost.

A stage's key is a hash of the sections it reads, of its version and of the keys upstream. A stage whose key is in the store
never runs again; when the key differs from that of the file in the run directory, the sections tell what was changed.
"""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..datasets import Store, read_attributes
from ..errors import UserError, plain
from ..spec.keys import canonical_json, stage_key
from ..stages.stage import Cost, Stage
from .sources import Source, find_sources, identified, with_ranked_heads

if TYPE_CHECKING:
    from ..spec import Point

STORE = ".store"


@dataclass(frozen=True)
class Step:
    """One stage of one point. ``wanted`` is False beyond ``--until``; ``runs`` tells whether it will be computed.

    ``upstream`` holds the keys of the stages that it reads, by their names; ``sources`` are the files besides the spec that it
    starts from, by their keys in the spec.
    """

    stage: Stage
    key: str
    sections: str
    wanted: bool
    runs: bool
    forced: bool
    reason: str
    cost: Cost
    upstream: Mapping[str, str]
    sources: Mapping[str, Source] = field(default_factory=dict)


@dataclass(frozen=True)
class PointPlan:
    """What will happen to one point of a spec; ``directory`` is its run directory."""

    point: Point
    directory: Path
    store: Store
    steps: tuple[Step, ...]


def make_plan(
    points: Sequence[Point],
    stages: Mapping[str, Stage],
    results: Path,
    until: Collection[str] = (),
    force: Collection[str] = (),
) -> list[PointPlan]:
    """Plan every point.

    ``stages`` maps names to stages, upstream ones first. ``until`` leaves out what none of those stages needs;
    ``force`` names stages that are computed again with all that depends on them. Raises UserError for a name that is no stage,
    and for what a point would start from when it is missing, not finished, or does not fit.
    """
    for name in (*until, *force):
        _check_name(name, stages)
    wanted = set[str]().union(*(_ancestors(stages, name) for name in until)) if until else set(stages)
    beyond = [name for name in force if name not in wanted]
    if beyond:
        raise UserError(f"--force {beyond[0]}: not computed for --until {' --until '.join(until)}")
    forced = _descendants(stages, force)
    for name, point in itertools.product((*until, *force), points):
        if not stages[name].wanted(point.spec):
            raise UserError(
                f"{point.run}: {name} is no stage of this spec: it has no [{name}] that asks for it"
            )
    store, claimed = Store(results / STORE), dict[str, str]()
    return [
        _plan_point(point, stages, results, store, wanted, forced, set(force), claimed) for point in points
    ]


def _plan_point(
    point: Point,
    stages: Mapping[str, Stage],
    results: Path,
    store: Store,
    wanted: set[str],
    forced: set[str],
    named: set[str],
    claimed: dict[str, str],
) -> PointPlan:
    """Plan one point; ``claimed`` maps the keys that earlier points compute to their runs, and is extended."""
    directory = results / point.run
    point = with_ranked_heads(point, results)
    sources = find_sources(point, results)
    spec = identified(point.spec, sources)
    keys: dict[str, str] = {}
    steps = []
    chain = {name: stage for name, stage in stages.items() if stage.wanted(spec)}
    for name, stage in chain.items():
        read = {section: getattr(spec, section) for section in stage.reads}
        sections = canonical_json(read)
        upstream = {above: keys[above] for above in stage.upstream if above in chain}
        key = stage_key(name, stage.version, read, upstream)
        keys[name] = key
        again = name in forced and key not in claimed
        runs = name in wanted and key not in claimed and (again or not store.has(name, key))
        if name not in wanted:
            reason = "not asked for"
        elif key in claimed:
            reason = f"shared with {claimed[key]}"
        elif again:
            reason = "forced" if name in named else "upstream runs"
        elif not runs:
            reason = "cached"
        else:
            reason = _why(directory / f"{name}.nc", stage, key, sections, store.checkpoint(name, key))
        own = {place: source for place, source in sources.items() if place.startswith(stage.sources)}
        if runs:
            claimed[key] = point.run
            _check_fit(point, stage, own)
        cost = stage.estimate(point.spec)
        steps.append(Step(stage, key, sections, name in wanted, runs, again, reason, cost, upstream, own))
    return PointPlan(point, directory, store, tuple(steps))


def _check_fit(point: Point, stage: Stage, sources: Mapping[str, Source]) -> None:
    """Raise UserError where what a stage starts from does not fit the spec."""
    if not stage.check or not sources:
        return
    try:
        stage.check(point.spec, {key: source.path for key, source in sources.items()})
    except UserError as problem:
        raise UserError(plain(f"{point.run}: {problem}")) from None


def _why(present: Path, stage: Stage, key: str, sections: str, checkpoint: Path) -> str:
    """Why a stage runs, from the file that the run directory shows now."""
    if checkpoint.exists():
        return "continues from its checkpoint"
    attributes = read_attributes(present)
    if not attributes:
        return "not computed yet"
    try:
        before, after = _flat(json.loads(attributes["sections"])), _flat(json.loads(sections))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return "the file there is not of this stage"
    changed = [name for name in sorted(before | after) if before.get(name) != after.get(name)]
    if changed:
        return f"changed: {', '.join(changed)}"
    if attributes.get("key") == key:
        return "missing or damaged in the store"
    return "upstream runs" if attributes.get("stage_version") == stage.version else "new version of the stage"


def _flat(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested tables as one, with dotted keys."""
    flat: dict[str, object] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _check_name(name: str, stages: Mapping[str, Stage]) -> None:
    if name in stages:
        return
    near = difflib.get_close_matches(name, stages, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(stages)}"
    raise UserError(f"no stage is called {name!r} ({hint})")


def _ancestors(stages: Mapping[str, Stage], name: str) -> set[str]:
    return {name}.union(*(_ancestors(stages, above) for above in stages[name].upstream))


def _descendants(stages: Mapping[str, Stage], names: Collection[str]) -> set[str]:
    """The named stages and all that depends on them."""
    found = set(names)
    for name, stage in stages.items():  # upstream ones come first
        if found & set(stage.upstream):
            found.add(name)
    return found
