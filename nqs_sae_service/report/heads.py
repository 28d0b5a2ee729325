"""Which attention heads carry the physics, and does their ranking say more than chance: sentence and table of heads.nc."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr

from .numbers import NOTHING, number, with_error
from .records import Kind, Section, Table, Verdict
from .values import attribute, cell, finite, grid, labels, series, several

TITLE = "Attention heads"
MOST_ROWS = 24
STABLE = 0.8  # rank correlation between disjoint sets of samples
RARE = 0.05  # p of the ranking among the random orders
STRONGEST, WEAKEST, RANDOM = "strongest first", "weakest first", "random"
HEADS = {
    "score": "max(|receiver|, |sender|) x share of the sub-probes in which it reaches the threshold, scaled to 0..1 over the "
    "heads for every counterfactual and readout, then the mean; its error from the disjoint sets of samples",
    "by gradients": "the same from one backward pass for all heads",
    "receiver": "largest effect in size, over counterfactuals and readouts that count, later heads held: a share of "
    "the effect of the counterfactual",
    "sender": "the same of what reaches the output through the heads of later blocks alone",
    "readouts": "score by this readout, mean over counterfactuals",
}


def heads_section(dataset: xr.Dataset) -> Section | None:
    """Verdict and table of heads.nc; None where there is none."""
    if "mean_score" not in dataset or not finite(dataset["mean_score"]).size:
        return None
    return Section(TITLE, _verdicts(dataset), [_table(dataset)], ("heads",))


def random_orders(dataset: xr.Dataset) -> list[Any]:
    """Labels of the random orders of knocking out."""
    return [order for order in labels(dataset, "order") if str(order).startswith(RANDOM)]


def _verdicts(dataset: xr.Dataset) -> list[Verdict]:
    """Does the ranking beat random knock-outs, and is it stable?"""
    own = cell(dataset, "area", order=STRONGEST)
    random = np.asarray([cell(dataset, "area", order=order) for order in random_orders(dataset)])
    if math.isnan(own) or len(random) < 2 or not np.isfinite(random).all():
        return []
    mean, p = float(random.mean()), float(1 + (random >= own).sum()) / (1 + len(random))
    stability, gradient = (attribute(dataset, name) for name in ("stability", "gradient_rank_correlation"))
    beats, loses = p <= RARE, own < mean
    stable = stability >= STABLE
    kind: Kind = "good" if beats and stable else "bad" if loses else "open"
    told = "beats" if beats else "is worse than" if loses else "does not clearly beat"
    text = (
        f"The ranking {told} random knock-outs: the infidelity, averaged over the share of heads that is knocked out, is "
        f"{number(own, 3)} strongest first and {number(mean, 3)} in random order (p = {number(p, 2)} among {len(random)} "
        f"orders); its rank correlation between disjoint sets of samples is {number(stability, 2)}"
    )
    text += "" if math.isnan(stability) else ", stable" if stable else ", not stable"
    text += "" if math.isnan(gradient) else f", with the ranking by gradients {number(gradient, 2)}"
    return [Verdict(kind, f"{text}.")]


def _table(dataset: xr.Dataset) -> Table:
    """The first heads by rank."""
    rank, counted = grid(dataset, "rank", "block", "head"), _counted(dataset)
    blocks, heads = labels(dataset, "block"), labels(dataset, "head")
    order = np.argsort(rank.ravel(), kind="stable")[:MOST_ROWS]
    readouts, rows = labels(dataset, "readout"), []
    for place in order:
        block, head = np.unravel_index(place, rank.shape)
        at = {"block": blocks[block], "head": heads[head]}
        sets = series(dataset, "set_score", "sample_set", **at)
        error = float(sets.std(ddof=1) / math.sqrt(len(sets))) if len(sets) > 1 else math.nan
        by_readout = (several(dataset, "score", **at, readout=readout) for readout in readouts)
        rows.append(
            (
                f"block {at['block']}, head {at['head']}",
                with_error(cell(dataset, "mean_score", **at), error),
                number(cell(dataset, "gradient_score", **at), 2),
                *(_largest(several(counted, name, **at)) for name in ("receiver", "sender")),
                *(number(float(x.mean()), 2) if x.size else NOTHING for x in by_readout),
            )
        )
    columns = ("head", "score", "by gradients", "receiver", "sender", *map(str, readouts))
    left = "" if rank.size <= MOST_ROWS else f", the first {MOST_ROWS} of {rank.size}"
    return Table(f"Heads by the physics they carry{left}", columns, rows, definitions=HEADS)


def _counted(dataset: xr.Dataset) -> xr.Dataset:
    """Effects by the readouts that enter the score."""
    if "score" not in dataset:
        return dataset
    known = dataset["score"].notnull()
    return xr.Dataset(
        {name: dataset[name].where(known) for name in ("receiver", "sender") if name in dataset}
    )


def _largest(values: np.ndarray) -> str:
    """The value of the largest size."""
    return number(float(values[np.abs(values).argmax()]), 2) if values.size else NOTHING
