"""Points of a sweep that differ in the size and the training of their dictionaries: ``scaling.nc`` and what it says.

Points belong together where everything but features, steps and learning rate of ``[sae]`` is the same. The laws take a grid of
at least three sizes; how features split is told from two sizes on. The dataset is made by ``stages/scaled.py``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from .kept import kept, not_computed
from .numbers import NOTHING, number, with_interval
from .records import Section, Table, Verdict
from .values import cell, grid, labels

if TYPE_CHECKING:
    from .reading import Point

FILE = "scaling.nc"
VERSION = 1
SWEPT = ("sae.features", "sae.steps", "sae.learning_rate")
TITLE = "How large should the dictionary be?"
FRONTIER = {
    "operations": "multiplications and additions of the training: steps x batch x those of an input",
    "features": "size that leaves least unexplained at this budget, and its interval from the scatter between seeds; * where "
    "it is the smallest or the largest that reaches the budget: the optimum may lie beyond",
    "steps": "number of steps that goes with it",
    "unexplained": "share of the variance on the select chains that the dictionary misses",
}
LAWS = {
    "exponent": "b of a C^b for the optimum at C operations, with its interval; a dash with fewer than three optima inside "
    "the grid"
}
SPLITTING = {
    "lost, kept, split": "live features of the smaller dictionary without, with one, with several descendants in the larger: "
    "features whose decoder row is nearest to theirs, by a cosine above that of 99 % of random directions",
    "new": "live features of the larger dictionary that descend from none",
}


def scaling(directory: Path, points: Sequence[Point]) -> xr.Dataset | None:
    """What ``scaling.nc`` holds, read or computed and written; None where no two points differ in size alone."""
    groups = together(points)
    if not groups:
        return None
    from ..stages.scaled import scaled

    told = [
        [label, point.run.name, str(point.run.stages["sae"].attrs.get("key"))]
        for label, group in groups.items()
        for point in group
    ]
    files = {label: [point.run.directory / "sae.nc" for point in group] for label, group in groups.items()}
    return kept(directory / FILE, VERSION, told, lambda: scaled(files))


def together(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points that differ in ``SWEPT`` alone, by what their other coordinates say; groups of at least two sizes."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        rest = {key: value for key, value in point.coordinates.items() if key not in SWEPT}
        if _has_dictionaries(point):
            label = ", ".join(f"{key}={value}" for key, value in rest.items()) or "all points"
            groups.setdefault(label, []).append(point)
    return {
        label: group
        for label, group in groups.items()
        if len({point.run.stages["sae"].sizes["feature"] for point in group}) > 1
    }


def _has_dictionaries(point: Point) -> bool:
    found = point.run.stages.get("sae", xr.Dataset())
    try:
        json.loads(found.attrs["sections"])["sae"]
    except (KeyError, TypeError, ValueError):
        return False
    return "feature" in found.sizes and not point.run.evolves


def scaling_section(found: xr.Dataset | None) -> Section | None:
    """What ``scaling.nc`` says; None where there is nothing to compare."""
    if found is None:
        return None
    if section := not_computed(TITLE, found):
        return section
    tables = [_frontier(found), _laws(found), _splitting(found)]
    return Section(TITLE, list(_verdicts(found)), [table for table in tables if table.rows], ("scaling",))


def _places(found: xr.Dataset) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every group and layer, in words and as labels."""
    alone = found.sizes.get("group", 0) < 2
    for group in labels(found, "group"):
        for layer in labels(found, "layer"):
            yield str(layer) if alone else f"{group}, {layer}", {"group": group, "layer": layer}


def _verdicts(found: xr.Dataset) -> Iterator[Verdict]:
    for where, at in _places(found):
        budgets = labels(found, "budget")
        if math.isnan(cell(found, "budget_compute", **at, budget=0)):
            what = "no budget that three sizes reach: sweep sae.features and sae.steps together"
            yield Verdict("note", f"{where}: {what}.")
            continue
        inside = [b for b in budgets if cell(found, "optimum_inside", **at, budget=b) > 0]
        if not inside:
            what = "at no budget the best size lies between others that were tried: widen sae.features"
            yield Verdict("open", f"{where}: {what}.")
            continue
        names = ("budget_compute", "optimal_features", "optimal_steps", "optimal_loss")
        operations, size, steps, loss = (cell(found, name, **at, budget=inside[-1]) for name in names)
        exponent = cell(found, "exponent", **at, quantity="loss")
        law = (
            f"; ten times the operations multiply that by {10**exponent:.2f}"
            if math.isfinite(exponent)
            else ""
        )
        yield Verdict(
            "good",
            f"{where}: for {number(operations, 2)} operations, the largest budget with an optimum, {size:.0f} features trained "
            f"for {steps:.0f} steps are best and leave {number(100 * loss, 2)} % of the variance unexplained{law}.",
        )


def _interval(found: xr.Dataset, name: str, at: Mapping[str, Any], digits: int) -> str:
    value, low, high = (cell(found, name + end, **at) for end in ("", "_low", "_high"))
    if math.isnan(value):
        return NOTHING
    if math.isnan(low):
        return number(value, digits)
    return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"


def _frontier(found: xr.Dataset) -> Table:
    rows = []
    for where, at in _places(found):
        for budget in labels(found, "budget"):
            here = {**at, "budget": budget}
            operations = cell(found, "budget_compute", **here)
            if math.isnan(operations):
                continue
            end = "" if cell(found, "optimum_inside", **here) > 0 else " *"
            size = _interval(found, "optimal_features", here, 3) + end
            others = _interval(found, "optimal_steps", here, 3), _interval(found, "optimal_loss", here, 3)
            rows.append((where, number(operations, 2), size, *others))
    columns = ("layer", "operations", "features", "steps", "unexplained")
    return Table("Best dictionary of a budget", columns, rows, group=1, definitions=FRONTIER)


def _laws(found: xr.Dataset) -> Table:
    rows = []
    for where, at in _places(found):
        for quantity in labels(found, "quantity"):
            exponent, low, high = (
                cell(found, f"exponent{end}", **at, quantity=quantity) for end in ("", "_low", "_high")
            )
            if not math.isnan(cell(found, "budget_compute", **at, budget=0)):
                rows.append((where, str(quantity).replace("_", " "), with_interval(exponent, low, high)))
    return Table("Laws", ("layer", "optimal", "exponent"), rows, group=1, definitions=LAWS)


def _splitting(found: xr.Dataset) -> Table:
    rows = []
    for where, at in _places(found):
        for growth in labels(found, "growth"):
            shares = [
                cell(found, "fate_share", **at, growth=growth, fate=fate) for fate in labels(found, "fate")
            ]
            threshold = cell(found, "descent_threshold", **at, growth=growth)
            if not math.isnan(threshold):
                rows.append((where, str(growth), *(f"{share:.0%}" for share in shares), number(threshold, 2)))
    columns = ("layer", "features", *map(str, labels(found, "fate")), "cosine above")
    return Table("Splitting", columns, rows, group=1, definitions=SPLITTING)


def has_laws(found: xr.Dataset) -> bool:
    """Whether any budget has an optimum."""
    return bool((grid(found, "budget_compute", "group", "layer", "budget") > 0).any())
