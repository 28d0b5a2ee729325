"""What the crosscoder found: which features all views share, what sharing costs, and whether untrained networks do the same."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr

from ..sae.classes import COMMON, NEITHER
from .numbers import number, with_interval
from .records import Kind, Section, Table, Verdict
from .values import attribute, axis, cell, finite, grid, index, labels, plain, series

VIEWS = {
    "norm share": "median over live features of the share of the view in the lengths of the decoder rows; first seed",
    "specific": "live features whose decoder row is long in this view alone, mean over seeds",
    "explained": "explained variance on the select split, mean over seeds",
    "alone": "that of a dictionary of this view alone with the same settings: what does sharing cost?",
    "untrained": "that of crosscoders of untrained networks, mean over initialisations",
}
BEST = {
    "feature": "of the crosscoder, with the largest |r| on select chains, and the views it is for",
    "r": "Pearson correlation on test chains of this run, with its interval",
    "best control": "untrained: the crosscoder of untrained networks; neuron: a component of any view; separate: the best "
    "feature of the dictionaries of single views",
    "gain": "|r| of the feature minus |r| of the best control, with its interval",
}


def crosscoder_section(dataset: xr.Dataset) -> Section | None:
    """Verdicts and tables of crosscoder.nc; None where there is none."""
    if not labels(dataset, "view") or "explained_variance" not in dataset:
        return None
    verdicts = [*_sharing(dataset), *_cost(dataset), *_following(dataset)]
    return Section("Crosscoder", verdicts, [_views(dataset), _best(dataset)], ("crosscoder",))


def _shares(dataset: xr.Dataset, prefix: str, dim: str) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the live features that are shared by all views, and that are specific to one, in percent (dim,)."""
    live = series(dataset, f"{prefix}live_features", dim)
    shared = series(dataset, f"{prefix}shared_features", dim)
    specific = grid(dataset, f"{prefix}specific_features", dim, "view").sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100 * shared / live, 100 * specific / live


def _sharing(dataset: xr.Dataset) -> list[Verdict]:
    """How many features are shared and how many specific, beside untrained networks."""
    own, others = _shares(dataset, "", "sae_seed"), _shares(dataset, "untrained_", "initialisation")
    if not np.isfinite(own).all() or not own[0].size:
        return []
    text = (
        f"Of the features of {len(labels(dataset, 'view'))} views {_percent(own[0])} are shared by all and "
    )
    text += f"{_percent(own[1])} specific to one"
    if not others[0].size or not np.isfinite(others).all():
        return [Verdict("note", f"{text}; there is no untrained network beside it.")]
    apart = any(a.min() > b.max() or a.max() < b.min() for a, b in zip(own, others, strict=True))
    text += f"; in crosscoders of untrained networks {_percent(others[0])} and {_percent(others[1])}: "
    if apart:
        return [Verdict("good", f"{text}training changes that.")]
    return [Verdict("bad", f"{text}no difference to training that shows.")]


def _percent(values: np.ndarray) -> str:
    low, high = (f"{end:.0f} %" for end in (values.min(), values.max()))
    return low if low == high else f"{low[:-2]} to {high}"


def _cost(dataset: xr.Dataset) -> list[Verdict]:
    """The view that loses most by sharing."""
    shared, alone = (
        _explained(dataset, "explained_variance"),
        _explained(dataset, "separate_explained_variance"),
    )
    cost = alone - shared
    if not np.isfinite(cost).any():
        return []
    worst = int(np.nanargmax(cost))
    view = labels(dataset, "view")[worst]
    text = f"Sharing one dictionary costs at most {number(100 * cost[worst], 2)} points of explained variance ({view}: "
    return [Verdict("note", f"{text}{number(shared[worst], 4)} instead of {number(alone[worst], 4)} alone).")]


def _explained(dataset: xr.Dataset, name: str) -> np.ndarray:
    """Explained variance (view,), mean over seeds or initialisations."""
    dim = "initialisation" if name.startswith("untrained") else "sae_seed"
    values = grid(dataset, name, dim, "view")
    return values.mean(axis=0) if len(values) else np.full(len(labels(dataset, "view")), np.nan)


def _following(dataset: xr.Dataset) -> list[Verdict]:
    """Does any feature follow an observable better than its controls do?"""
    names = labels(dataset, "observable")
    better, worse = (
        [name for name in names if test(cell(dataset, end, observable=name))]
        for end, test in (("gain_low", lambda x: x > 0), ("gain_high", lambda x: x < 0))
    )
    if not finite(dataset.get("gain")).size:
        return []
    if better:
        kind: Kind = "good"
        text = f"A feature of the crosscoder follows {_listed(better)} better than any control does"
        text += (
            f"; not so {_listed([name for name in names if name not in better])}"
            if len(better) < len(names)
            else ""
        )
    else:
        kind = "bad" if len(worse) == len(names) else "open"
        text = "No feature of the crosscoder follows an observable better than the best control does"
    return [Verdict(kind, f"{text}.")]


def _listed(names: list[Any]) -> str:
    return ", ".join(map(plain, names))


def _views(dataset: xr.Dataset) -> Table:
    alive = grid(dataset, "specific_view", "sae_seed", "feature")[:1] >= NEITHER
    share = grid(dataset, "norm_share", "sae_seed", "view", "feature")[:1]
    specific = grid(dataset, "specific_features", "sae_seed", "view")
    explained = [
        _explained(dataset, f"{which}explained_variance") for which in ("", "separate_", "untrained_")
    ]
    rows = []
    for place, view in enumerate(labels(dataset, "view")):
        of_live = share[:, place][alive]
        median = float(np.median(of_live)) if of_live.size else math.nan
        count = float(specific[:, place].mean()) if len(specific) else math.nan
        rows.append(
            (str(view), number(median, 2), number(count, 3), *(number(x[place], 4) for x in explained))
        )
    features = f"{len(labels(dataset, 'feature'))} features"
    return Table(f"Views of the crosscoder ({features})", ("view", *VIEWS), rows, definitions=VIEWS)


def _best(dataset: xr.Dataset) -> Table:
    rows = []
    for name in labels(dataset, "observable"):
        feature = index(cell(dataset, "best_feature", observable=name))
        r = series(dataset, "control_pearson", "control", observable=name)
        strongest = int(np.nanargmax(np.abs(r))) if np.isfinite(r).any() else None
        control = (
            "–" if strongest is None else f"{labels(dataset, 'control')[strongest]} {number(r[strongest], 3)}"
        )
        shown = [cell(dataset, end, observable=name) for end in ("best_pearson", "best_low", "best_high")]
        gain = [cell(dataset, end, observable=name) for end in ("gain", "gain_low", "gain_high")]
        of = "–" if feature < 0 else f"{feature}, {_meant_for(dataset, feature)}"
        rows.append((plain(name), of, with_interval(*shown), control, with_interval(*gain, sign=True)))
    confidence = attribute(dataset, "confidence")
    of = "" if math.isnan(confidence) else f" ({confidence:.0%} intervals)"
    return Table(
        f"Features of the crosscoder and observables{of}", ("observable", *BEST), rows, definitions=BEST
    )


def _meant_for(dataset: xr.Dataset, feature: int) -> str:
    """The views of a feature of the first seed, in words."""
    views, seeds = labels(dataset, "view"), axis(dataset, "sae_seed")
    at = {"feature": feature, "sae_seed": seeds[0]} if seeds.size else {}
    found = cell(dataset, "specific_view", **at)
    if not math.isnan(found) and 0 <= found < len(views):
        return str(views[int(found)])
    return "all views" if found == COMMON else "some views"
