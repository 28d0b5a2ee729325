"""``nqs-sae warmup``: compile kernels ahead of a run, by running the same chain on next to nothing.

What Numba compiles depends on types, not on sizes. So a run with the same lattice, network and dictionary, but with a handful
of chains and two steps, leaves every kernel in the cache that the real run will ask for. The numbers it makes are thrown away.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from ..engine.jit import CACHE_DIRECTORY
from ..sae import KINDS
from ..spec import Point, Spec
from ..spec.keys import canonical_json
from ..stages import STAGES
from ..states import STATES
from .plan import make_plan
from .runner import run_plans

_CHAINS = 16
_MOST_FEATURES = 2**16  # beyond these only the running time grows
_VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "transformer": (
        {},
        {"attention": "positional", "amplitude": "complex"},
        {"attention": ("full", "kernel", "kernel", "kernel")},
    ),
    "rbm": ({}, {"symmetric": True}),
}
_LENGTHS = (16, 20)  # with and without sums over all configurations


def warm_up(points: Sequence[Point]) -> tuple[int, Path]:
    """Compile what the points need. Returns the exit code, as of a run, and the folder of the compiled kernels."""
    different: dict[str, Point] = {}
    for point in points:
        different.setdefault(_what_is_compiled(point.spec), point)
    small = [
        _with_any_ranking(reduced(point, number)) for number, point in enumerate(different.values(), start=1)
    ]
    with tempfile.TemporaryDirectory(prefix="nqs-sae-warmup-") as folder:
        outcome = run_plans(make_plan(small, STAGES, Path(folder)))
    return outcome.code, CACHE_DIRECTORY


def default_points() -> list[Point]:
    """Points that between them need the kernels of every architecture and every kind of dictionary."""
    networks = [{"kind": kind, **change} for kind in STATES for change in _VARIANTS.get(kind, ({},))]
    points = []
    everything = zip(cycle(networks), cycle(KINDS), cycle(_LENGTHS), strict=False)
    for network, dictionary, length in islice(everything, max(len(networks), len(KINDS))):
        spec = Spec.model_validate(
            {
                "name": "warmup",
                "lattice": {"kind": "chain", "length": length},
                "hamiltonian": {"kind": "tfim", "h": 1.0},
                "state": network,
                "sae": {"kind": dictionary, "features": 64},
            }
        )
        points.append(Point(spec.completed(), spec.name, {}))
    return points


def reduced(point: Point, number: int) -> Point:
    """The point with the same types and next to no work. Only the first one draws its figures."""
    spec, sae, symmetry = point.spec, point.spec.sae, point.spec.state.symmetry
    changes: dict[str, dict[str, Any]] = {
        "sampling": {"chains": _CHAINS, "burn_in": 1, "sweeps": 1},
        "state": {
            "load": None,
            "symmetry": symmetry.model_copy(
                update={"from_step": min(symmetry.from_step, 1)}
            ),  # a step of either
        },
        "transfer": {"teacher": None},
        "ground_state": {
            "start_from": None,
            "steps": 2,
            "samples": 2 * _CHAINS,
            "final_samples": 4 * _CHAINS,
            "checkpoints": (0,) if spec.ground_state.checkpoints or spec.crosscoder.runs else (),
        },
        "samples": {"count": 8 * _CHAINS, "sweeps": 1, "split": (0.5, 0.25, 0.25)},
        "sae": {
            "features": min(sae.features, _MOST_FEATURES),
            "seeds": sae.seeds[:2],
            "steps": 3,
            "batch": 64,
            "dead_after": 64,  # features die at once, so that their loss is compiled too
            "untrained": min(sae.untrained, 1),
        },
        "features": {"bootstrap": 10, "permutations": 10},
        "steering": {"samples": 2 * _CHAINS, "draws": 2, "burn_in": 1, "scales": (0.9, 1.0, 1.1)},
        "attribution": {
            "samples": min(spec.attribution.samples, 2 * _CHAINS),
            "ablated": 2,
            "ablation_samples": _CHAINS,
            "steps": 1,
            "edges": 1,
        },
        "crosscoder": {
            "checkpoints": (0,) if spec.crosscoder.checkpoints or spec.crosscoder.runs else (),
            "runs": (),
            "features": min(spec.crosscoder.features, _MOST_FEATURES),
        },
        "heads": {
            "samples": 2 * _CHAINS if spec.heads.wanted else 0,
            "sets": 1,
            "probes": 1,
            "orders": 2,
        },
        "completeness": {"order": min(spec.completeness.order, 1), "samples": 2 * _CHAINS},
        "output": {"report": number == 1, "figures": number == 1},
    }
    records = {name: getattr(spec, name).model_copy(update=change) for name, change in changes.items()}
    return Point(spec.model_copy(update=records), f"warmup-{number}", {})


def _with_any_ranking(point: Point) -> Point:
    """The point with the first heads full where a ranking chooses them: kernels do not depend on which they are."""
    state = point.spec.state
    if getattr(state, "attention", None) != "ranked":
        return point
    chosen = state.ranked(range(state.heads * state.layers))
    return replace(point, spec=point.spec.model_copy(update={"state": chosen}))


def _what_is_compiled(spec: Spec) -> str:
    """Points that agree in this text need the same kernels."""
    return canonical_json(
        {
            "lattice": spec.lattice,
            "state": spec.state,
            "observables": spec.observables,
            "activations": spec.activations,
        }
    ) + ":".join((spec.hamiltonian.kind, spec.sae.kind, spec.sae.input, str(spec.sae.features)))
