"""Single times of a run that follows its state after a quench.

What knows no time shows one: tables and figures of observables and features the last training time, where dictionaries were
trained and features chosen; steering every steered time while these are few, else the first and the last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import xarray as xr

from .numbers import number
from .values import axis

MOST_SHOWN = 3  # steered times
_ROUNDING = 1e-9  # of times


def settled(stages: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Every stage that has one time to show at that time; the others, and all of a run without dynamics, as they are."""
    shown = last_training_time(stages)
    through_time = ("dynamics", "sae", "steering")
    return {
        stage: dataset if stage in through_time else at_time(dataset, shown)
        for stage, dataset in stages.items()
    }


def last_training_time(stages: Mapping[str, xr.Dataset]) -> float:
    """The last time at which dictionaries were trained; where no stage says which these are, the last time of all."""
    for dataset in (stages[stage] for stage in ("features", "sae", "observables") if stage in stages):
        training = axis(dataset, "time")[~held_out(dataset)]
        if training.size:
            return float(training[-1])
    return math.inf


def held_out(dataset: xr.Dataset) -> np.ndarray:
    """Whether each time was held out of training and choice, bool (time,)."""
    if "held_out" not in dataset.coords or dataset["held_out"].dims != ("time",):
        return np.zeros(dataset.sizes.get("time", 0), dtype=bool)
    return np.asarray(dataset["held_out"], dtype=float) > 0


def at_time(dataset: xr.Dataset, time: float) -> xr.Dataset:
    """The dataset at the last of its times that is not after ``time``, which becomes a scalar coordinate."""
    if "time" not in dataset.dims:
        return dataset
    if not dataset.sizes["time"]:
        return dataset.drop_dims("time")
    earlier = np.flatnonzero(axis(dataset, "time") <= time + _ROUNDING)
    return dataset.isel(time=int(earlier[-1]) if earlier.size else 0)


def shown_times(dataset: xr.Dataset) -> list[xr.Dataset]:
    """The dataset at every time that is shown of it; without times, the dataset itself."""
    count = dataset.sizes.get("time", 0)
    if "time" not in dataset.dims or not count:
        return [at_time(dataset, math.inf)]
    return [dataset.isel(time=i) for i in (range(count) if count <= MOST_SHOWN else (0, count - 1))]


def moment(dataset: xr.Dataset) -> float:
    """The one time of a dataset, NaN when there is none."""
    if "time" not in dataset.coords or dataset["time"].ndim:
        return math.nan
    return float(dataset["time"])


def when(dataset: xr.Dataset, before: str = "", after: str = "") -> str:
    """The one time of a dataset in words, between two texts; nothing at all when there is none."""
    time = moment(dataset)
    return "" if math.isnan(time) else f"{before}{clock(time)}{after}"


def clock(time: float) -> str:
    """A time in words, ``t = 0.35``."""
    return f"t = {time:g}" if math.isfinite(time) else f"t = {number(time)}"
