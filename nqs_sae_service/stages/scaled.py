"""Dictionaries of a sweep in size, steps and learning rate, from their ``sae.nc``: no stage, it belongs to no run.

The science is in ``interpret/scaling.py``; ``report/scaling.py`` says which points of a sweep belong together, and keeps what
comes out.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..datasets.netcdf import open_plainly
from ..datasets.schema import labelled
from ..interpret.scaling import BUDGETS, QUANTITIES, Descent, Scaling, descent, operations, scaling

SWEPT = ("features", "steps", "learning_rate")  # fields of [sae]
FATES = ("lost", "kept", "split", "new")
MOST_FEATURES = 2**15  # of a dictionary whose splitting is followed
_END = 0.01  # share of the steps whose training loss is averaged


@dataclass(frozen=True)
class Trained:
    """The dictionaries of a point, by layer and seed; ``decoder`` of the first seed, where it is small, and ``live``."""

    at: tuple[float, ...]  # of SWEPT
    layers: tuple[str, ...]
    seeds: tuple[int, ...]
    operations: float  # of an input
    batch: int
    unexplained: np.ndarray
    training_loss: np.ndarray
    dead: np.ndarray
    decoder: np.ndarray | None
    live: np.ndarray

    @classmethod
    def read(cls, path: Path) -> Trained:
        with open_plainly(path) as stored:
            record = json.loads(stored.attrs["sections"])["sae"]
            last = max(1, int(_END * stored.sizes["step"]))
            small = stored.sizes["feature"] <= MOST_FEATURES
            return cls(
                at=tuple(float(record[name]) for name in SWEPT),
                layers=tuple(map(str, stored["layer"].values)),
                seeds=tuple(map(int, stored["sae_seed"].values)),
                operations=operations(
                    int(stored.attrs.get("k", 0)), stored.sizes["feature"], stored.sizes["width"]
                ),
                batch=int(record["batch"]),
                unexplained=1 - stored["explained_variance"].values,
                training_loss=stored["loss"][..., -last:].values.mean(axis=-1),
                dead=stored["dead_fraction"][..., -1].values,
                decoder=stored["decoder"][:, 0].values if small else None,
                live=stored["feature_density"][:, 0].values > 0,
            )


def scaled(groups: Mapping[str, Sequence[Path]]) -> xr.Dataset:
    """scaling.nc of groups of ``sae.nc`` files, which within a group differ in nothing but ``SWEPT``."""
    found = {label: [Trained.read(path) for path in paths] for label, paths in groups.items()}
    every = [point for points in found.values() for point in points]
    sizes, steps, rates = (np.unique([point.at[axis] for point in every]) for axis in range(len(SWEPT)))
    grid = _Grid(sizes, steps, rates, tuple(dict.fromkeys(seed for point in every for seed in point.seeds)))
    layers = list(dict.fromkeys(layer for point in every for layer in point.layers))
    tables = [[grid.layer(points, layer) for layer in layers] for points in found.values()]
    variables = {
        name: np.stack([np.stack([table[name] for table in row]) for row in tables]) for name in tables[0][0]
    }
    whole = sizes.astype(int)
    coordinates = {
        "group": list(found),
        "layer": layers,
        "sae_seed": list(grid.seeds),
        "budget": np.arange(BUDGETS),
        "quantity": list(QUANTITIES),
        "growth": [f"{small} to {large}" for small, large in itertools.pairwise(whole)],
        "fate": list(FATES),
        "feature": np.arange(min(whole.max(), MOST_FEATURES)),
        "features": whole,
        "steps": grid.steps.astype(int),
        "learning_rate": grid.rates,
    }
    return labelled("scaling", variables, coordinates)


@dataclass(frozen=True)
class _Grid:
    """Values of ``SWEPT`` that occur, and the seeds."""

    sizes: np.ndarray
    steps: np.ndarray
    rates: np.ndarray
    seeds: tuple[int, ...]

    def layer(self, points: Sequence[Trained], layer: str) -> dict[str, Any]:
        """Everything on one layer of a group, without the dimensions ``group`` and ``layer``."""
        shape = len(self.sizes), len(self.steps), len(self.rates), len(self.seeds)
        result: dict[str, Any] = {
            name: np.full(shape, np.nan) for name in ("unexplained", "training_loss", "dead")
        }
        compute = np.full(shape[:2], np.nan)
        decoders: dict[int, tuple[tuple[float, float], np.ndarray, np.ndarray]] = {}
        for point in points:
            if layer not in point.layers:
                continue
            row = point.layers.index(layer)
            axes = zip((self.sizes, self.steps, self.rates), point.at, strict=True)
            i, j, k = (int(np.searchsorted(axis, value)) for axis, value in axes)
            columns = [self.seeds.index(seed) for seed in point.seeds]
            for name in ("unexplained", "training_loss", "dead"):
                result[name][i, j, k, columns] = getattr(point, name)[row]
            compute[i, j] = point.operations * point.batch * point.at[1]
            if point.decoder is not None:
                merit = (
                    point.at[1],
                    -float(point.unexplained[row].mean()),
                )  # the longest training, then the best
                if i not in decoders or merit > decoders[i][0]:
                    decoders[i] = merit, point.decoder[row], point.live[row]
        result["compute"] = compute
        return result | self._laws(compute, result["unexplained"]) | self._splitting(decoders)

    def _laws(self, compute: np.ndarray, unexplained: np.ndarray) -> dict[str, Any]:
        """Frontier and laws where the grid is complete enough for them, else NaN."""
        nothing = np.full(BUDGETS, np.nan)
        none = np.full(len(QUANTITIES), np.nan)
        known = ~np.isnan(compute)
        some = known.any(axis=1)
        found: Scaling | None = None
        if known[some].all() and (unexplained[some] > 0).any():
            loss = np.where(unexplained[some] > 0, unexplained[some], np.nan)
            found = scaling(self.sizes[some], self.steps, self.rates, compute[some], loss)
        table: dict[str, Any] = {"budget_compute": nothing, "optimum_inside": nothing}
        rate = np.full(compute.shape, np.nan)
        for name in ("loss", "features", "steps"):
            table |= {f"optimal_{name}{end}": nothing for end in ("", "_low", "_high")}
        table |= dict.fromkeys(("exponent", "exponent_low", "exponent_high", "prefactor"), none)
        if found is not None:
            table |= {"budget_compute": found.frontier.compute, "optimum_inside": found.frontier.inside}
            for end, frontier in (("", found.frontier), ("_low", found.low), ("_high", found.high)):
                table |= {f"optimal_{q}{end}": getattr(frontier, q) for q in ("loss", "features", "steps")}
            table["exponent"] = np.array([found.laws[q].exponent for q in QUANTITIES])
            table["prefactor"] = np.array([found.laws[q].prefactor for q in QUANTITIES])
            table["exponent_low"], table["exponent_high"] = np.array(
                [found.exponents[q] for q in QUANTITIES]
            ).T
            rate[some] = found.learning_rate
        return table | {"optimal_learning_rate": rate}

    def _splitting(
        self, decoders: Mapping[int, tuple[tuple[float, float], np.ndarray, np.ndarray]]
    ) -> dict[str, Any]:
        """From every size to the next: fates of features, parents and their cosines; -1 and NaN without any."""
        n = len(self.sizes) - 1
        n_features = int(min(self.sizes.max(), MOST_FEATURES))
        fate, threshold = np.full((n, len(FATES)), np.nan), np.full(n, np.nan)
        parent, cosine = np.full((n, n_features), -1), np.full((n, n_features), np.nan)
        for i in range(n):
            if i not in decoders or i + 1 not in decoders:
                continue
            (_, small, live_small), (_, large, live_large) = decoders[i], decoders[i + 1]
            found: Descent | None = descent(small, large, live_small, live_large)
            if found is not None:
                fate[i] = [found.shares[name] for name in FATES]
                threshold[i] = found.threshold
                parent[i, : len(large)], cosine[i, : len(large)] = found.parent, found.cosine
        return {
            "fate_share": fate,
            "descent_threshold": threshold,
            "parent": parent,
            "parent_cosine": cosine,
        }
