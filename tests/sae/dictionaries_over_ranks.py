"""Dictionaries trained by as many processes as there are:

    mpiexec -n P python -m mpi4py dictionaries_over_ranks.py BEFORE AFTER

BEFORE holds what one process had learnt after ``FIRST`` steps. Rank 0 writes to AFTER what one more step, and the rest of the
steps, make of it.
"""

import sys

import numpy as np

from nqs_sae_service.engine.devices import HOST
from nqs_sae_service.engine.ranks import ALONE, MpiRanks
from nqs_sae_service.engine.threads import configure_threads
from nqs_sae_service.sae import KINDS, ReluL1, TopK
from nqs_sae_service.sae.dictionary import ARRAYS
from nqs_sae_service.sae.inputs import Held
from nqs_sae_service.sae.training import Training

WIDTH, FIRST, STEPS = 12, 15, 30
COMMON = {"steps": STEPS, "batch": 300, "seeds": [1, 2]}
RECORDS = {
    # Most features die within the first steps, so that the auxiliary loss is at work in the others.
    "topk": TopK(kind="topk", features=131, k=4, dead_after=1200, **COMMON),
    "relu-l1": ReluL1(kind="relu-l1", features=131, l1=5.0, **COMMON),
    "fewer features than ranks": TopK(kind="topk", features=2, k=2, **COMMON),
    **{
        kind: KINDS[kind](
            kind=kind, features=37, **({"k": 4} if "k" in KINDS[kind].model_fields else {}), **COMMON
        )
        for kind in list(KINDS)[2:]
    },
}


def training(case, ranks=ALONE, device=HOST):
    """Before the first step: two dictionaries on sparse mixtures of few directions."""
    generator = np.random.default_rng(7)
    directions, f = generator.normal(size=(20, WIDTH)), generator.uniform(0.5, 1.5, (2000, 20))
    x = np.where(generator.random(f.shape) < 0.1, f, 0) @ directions + 3.0
    return Training(RECORDS[case], Held(x.astype(np.float32)), [1, 2], device, ranks)


def go_on(trained, until):
    """The state (copies) after so many steps."""
    while trained.step < until:
        trained.advance()
    return {name: array.copy() for name, array in trained.state().items()}


def ends(trained):
    """The dictionaries, by the names of their arrays."""
    return {
        f"{place}.{name}": getattr(dictionary, name)
        for place, (dictionary, _) in enumerate(trained.finished())
        for name in ARRAYS
        if getattr(dictionary, name) is not None
    }


def continued(case, before, ranks=ALONE, device=HOST):
    """One step from the state ``before``, the last state, and the dictionaries."""
    trained = training(case, ranks, device)
    start = {f"start/{name}": array.copy() for name, array in trained.state().items()}
    trained.restore(before)
    step = {f"step/{name}": array for name, array in go_on(trained, FIRST + 1).items()}
    last = {f"last/{name}": array for name, array in go_on(trained, STEPS).items()}
    return start | step | last | {f"end/{name}": array for name, array in ends(trained).items()}


def part(arrays, prefix):
    """The arrays whose names begin with ``prefix``, by what follows."""
    return {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}


if __name__ == "__main__":
    configure_threads(1)
    ranks, before = MpiRanks(), dict(np.load(sys.argv[1]))
    after = {}
    for case in RECORDS:
        arrays = continued(case, part(before, f"{case}/"), ranks)
        for name in ("0.decoder_bias", "1.history"):  # nobody knows better than the others
            alike = ranks.gather(arrays[f"last/{name}"][None])
            assert (alike == alike[0]).all()
        after |= {f"{case}/{name}": array for name, array in arrays.items()}
    if ranks.rank == 0:
        np.savez(sys.argv[2], **after)
