"""The toy chain with a ground state that several processes compute together: ``mpiexec -n 2 python FILE SPEC RESULTS``.

Its numbers do not depend on how many there are. ``TOY_FAILS`` says what happens in step 5: the number of the rank that fails
alone, or ``all``. ``TOY_LOG`` collects the process numbers.
"""

import os
import sys
import time

import numpy as np
import toy
import xarray as xr

from nqs_sae_service.errors import NumericalError
from nqs_sae_service.stages.stage import Context, Stage


def ground_state(context: Context) -> xr.Dataset:
    """As ``toy.ground_state``; every rank iterates its share of the numbers."""
    spec, ranks = context.spec, context.ranks
    toy.note(f"rank {ranks.rank} of {ranks.size}: {os.getpid()}")
    steps, fails = spec.ground_state.steps, os.environ.get("TOY_FAILS")
    whole, first = np.random.default_rng(spec.ground_state.seed).random(7) * spec.hamiltonian.h / 4, 0
    history = np.full(steps, np.nan)
    saved = context.restore()
    if saved is not None:
        first, whole, history = int(saved["step"]), saved["x"], saved["history"]
    x = whole[ranks.share(7)]
    for step in range(first, steps):

        def state(step=step, x=x):
            return {"step": step, "x": ranks.gather(x), "history": history}

        context.tick(step, steps, "", state)
        if step == 5 and fails == str(ranks.rank):
            raise ZeroDivisionError("a bug")
        if step == 5 and fails == "all":
            raise NumericalError("the energy is not finite; use a smaller ground_state.learning_rate")
        x = 3.99 * x * (1 - x)
        history[step] = ranks.gather(x).mean()
        time.sleep(float(os.environ.get("TOY_SLEEP", "0")))
    return xr.Dataset({"energy": ("step", history), "parameters": ("parameter", ranks.gather(x))})


STAGES = toy.STAGES | {
    "ground_state": Stage(
        "ground_state",
        ("lattice", "hamiltonian", "ground_state"),
        (),
        1,
        ground_state,
        toy.estimate,
        distributed=True,
    )
}

if __name__ == "__main__":
    import nqs_sae_service.stages
    from nqs_sae_service.cli import app

    nqs_sae_service.stages.STAGES = STAGES
    spec_path, results, *rest = sys.argv[1:]
    app(["run", spec_path, "--results", results, *rest])
