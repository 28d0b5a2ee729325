"""features.nc after a quench: of every observable one feature, and one candidate of every control, for all times.

What may be followed, the features among it, is offered with its correlations at every time: variables ``OFFERED`` (time, layer,
candidate, observable) with labels along ``candidate``. One of each kind is chosen on the training times, and its numbers kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..datasets.schema import SCHEMA, labelled
from ..interpret.controls import of_chosen
from ..interpret.followed import Candidates, Evidence, verdict
from .over_time import held_out

FEATURE = "feature"  # the label of a candidate that is no control
OFFERED = ("select_pearson", "test_pearson")


def followed(dataset: xr.Dataset) -> xr.Dataset:
    """features.nc from that of all times, with one feature of every observable followed through them."""
    coordinates = {name: dataset[name].values for name in ("time", "layer", "control", "observable")}
    held = held_out(len(coordinates["time"]))
    parts = [_at_layer(dataset.isel(layer=[i]), held) for i in range(dataset.sizes["layer"])]
    variables = {
        name: np.concatenate([part[name] for part in parts], SCHEMA["features"][name].dims.index("layer"))
        for name in parts[0]
    }
    added = labelled("features", variables, coordinates | {"held_out": ("time", held)})
    return dataset.drop_dims("candidate").assign(added.data_vars)


def _at_layer(dataset: xr.Dataset, held: NDArray[np.int8]) -> dict[str, Any]:
    """The variables of one feature for all times, at a single layer."""
    names = [str(name) for name in dataset["control"].values]
    candidates = Candidates(dataset["candidate"].values, *(dataset[name].values[:, 0] for name in OFFERED))
    feature, pearson = candidates.followed(FEATURE, held == 0)
    controlled = np.stack([candidates.followed(name, held == 0)[1] for name in names], axis=1)
    low, high = (of_chosen(dataset[name].values[:, 0], feature) for name in ("pearson_low", "pearson_high"))
    verdicts = [
        verdict(
            Evidence(
                layer=str(dataset["layer"].values[0]),
                observable=str(observable),
                feature=int(feature[o]),
                times=dataset["time"].values[held == 1],
                pearson=pearson[held == 1, o],
                controls=names,
                control_pearson=controlled[held == 1, :, o].T,
            )
        )
        for o, observable in enumerate(dataset["observable"].values)
    ]
    return {
        "followed_feature": feature[None],
        "followed_pearson": pearson[:, None],
        "followed_low": low[:, None],
        "followed_high": high[:, None],
        "followed_control_pearson": controlled[:, None],
        "followed_verdict": np.asarray([verdicts]),
    }
