"""Waves: how the points of a sweep are computed on machines that do not wait for one another, each shared stage once.

A stage that several points need is computed by one of them in an earlier wave, and the others find it in the store. Missing
keys that are needed by the same points form a group. All that a key depends on is needed by the same points or more, so the
groups are partially ordered; the wave of a group is the longest path to it, and the last wave is every point to its end.

    ground_state - samples - sae      sweep of samples.seed (2) x sae.k (3)
    wave 1: ground_state once;  wave 2: samples once for each seed;  wave 3: the six points
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .plan import PointPlan

if TYPE_CHECKING:
    from ..spec import Point

Need = tuple[str, str]  # stage and key
Group = tuple[int, ...]  # the points that need the same keys


@dataclass(frozen=True)
class Task:
    """One point, computed as far as the stages ``until`` (none: to its end)."""

    point: Point
    until: tuple[str, ...] = ()


def waves(plans: Sequence[PointPlan]) -> list[list[Task]]:
    """The waves of these points in turn; tasks depend on earlier waves only, and those of one wave have different points."""
    upstream = _upstream(plans)
    groups: dict[Group, list[Need]] = {}
    group_of: dict[Need, Group] = {}
    for need, points in _missing(plans).items():
        if len(points) > 1:
            group_of[need] = tuple(points)
            groups.setdefault(tuple(points), []).append(need)
    found: dict[int, dict[int, list[str]]] = {}
    for group, needs in groups.items():
        tasks = found.setdefault(_wave(group, groups, group_of, upstream), {})
        point = next((point for point in group if point not in tasks), group[0])
        above = {need for other in needs for need in upstream[other]}
        tasks.setdefault(point, []).extend(stage for stage, key in needs if (stage, key) not in above)
    shared = [
        [Task(plans[point].point, tuple(until)) for point, until in sorted(found[wave].items())]
        for wave in sorted(found)
    ]
    return [*shared, [Task(plan.point) for plan in plans]]


def _missing(plans: Sequence[PointPlan]) -> dict[Need, list[int]]:
    """Every key that the store does not have, upstream ones first, with the points that need it."""
    users: dict[Need, list[int]] = {}
    for index, plan in enumerate(plans):
        for step in plan.steps:
            users.setdefault((step.stage.name, step.key), []).append(index)
    return {need: points for need, points in users.items() if not plans[points[0]].store.has(*need)}


def _upstream(plans: Sequence[PointPlan]) -> dict[Need, list[Need]]:
    """What each key is made from."""
    steps = [step for plan in plans for step in plan.steps]
    return {(step.stage.name, step.key): list(step.upstream.items()) for step in steps}


def _wave(
    group: Group,
    groups: dict[Group, list[Need]],
    group_of: dict[Need, Group],
    upstream: dict[Need, list[Need]],
) -> int:
    """The wave of a group, from 1: after those of all groups that it depends on."""
    above = {group_of[need] for own in groups[group] for need in upstream[own] if need in group_of} - {group}
    return 1 + max((_wave(other, groups, group_of, upstream) for other in above), default=0)
