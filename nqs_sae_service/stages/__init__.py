"""The stages, upstream ones first: each is a spec section, a module here, and a NetCDF file."""

from . import (
    activations,
    attribution,
    completeness,
    crosscoder,
    dynamics,
    features,
    ground_state,
    heads,
    observables,
    sae,
    samples,
    steering,
    transfer,
)
from .stage import Context, Stage

STAGES: dict[str, Stage] = {
    module.STAGE.name: module.STAGE
    for module in (
        transfer,
        ground_state,
        dynamics,
        samples,
        observables,
        activations,
        sae,
        features,
        steering,
        attribution,
        crosscoder,
        completeness,
        heads,
    )
}

__all__ = ["STAGES", "Context", "Stage"]
