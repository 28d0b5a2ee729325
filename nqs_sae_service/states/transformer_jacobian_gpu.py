"""Per-sample derivatives of a transformer on a GPU, float32: one kernel, where the bricks' tape takes hundreds of launches.

A block of threads is a sample: it goes forward, keeps what the way back needs in its own stretch of memory (about 15 T d +
3 T H numbers, and 6 T d + T H more per block of the network; T tokens, width d, hidden width H) and goes back once for each
part of log psi. In all 2 T n_parameters operations forward and 4 T n_parameters for each way back, and one write of
n_parameters numbers: with 1024 samples, 24,448 parameters and a phase 5 GFLOP and 200 MB. These are few beside the tens of
thousands of log psi of a step, so the kernel is plain: a thread per output, no tiles.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.arrays import beside, namespace
from ..engine.cuda import Kernels
from .primitives import Attention, Dense, Mix
from .state import State
from .transformer_packing import depth

Array = Any

_KERNELS = Kernels(Path(__file__).with_suffix(".cu"))
_THREADS, _BLOCKS = 256, 1024  # the results depend on neither


def per_sample_columns(state: State, parameters: Array, sigma: Array) -> Array:
    """d log psi / d theta of configurations (n, n_sites) int8, not centred: (part, n, n_parameters) float32.

    Parts are real and imaginary part of log psi, or the real one alone. Equals ``Tape.gradients`` to rounding.
    """
    xp = namespace(sigma)
    mixer = next(brick for brick in state.bricks if isinstance(brick, (Attention, Mix)))
    positional, parts = isinstance(mixer, Mix), 2 if state.complex_amplitude else 1
    patch, hidden = (
        state.layout[f"{name}.weight"][1][place] for name, place in (("embedding", 0), ("mlp_1.up", 1))
    )
    floats = _scratch_floats(state, hidden, mixer.heads, positional)
    blocks = min(len(sigma), _BLOCKS)
    scratch = xp.empty(blocks * floats, dtype=xp.float32)
    out = xp.empty((parts, len(sigma), state.n_parameters), dtype=xp.float32)
    layout = (_places(state), _transposition(state), _order(state))
    places, transposed, order = (beside(array, sigma) for array in layout)
    columns = mixer.grid[-1] if mixer.grid else 0
    _KERNELS.launch(
        "differentiate", blocks, (_THREADS,), xp.ascontiguousarray(sigma), parameters, parameters[transposed], places, scratch,
        out, len(sigma), state.n_parameters, floats, state.n_tokens, patch, state.width, hidden, mixer.heads, depth(state),
        parts, positional, columns, order,
    )  # fmt: skip
    return out


def _scratch_floats(state: State, hidden: int, heads: int, positional: bool) -> int:
    """Numbers that a block of threads takes, in the order of the source."""
    tokens, d = state.n_tokens, state.width
    stream, pairs, units = tokens * d, heads * tokens**2, tokens * hidden
    head = 7 * d + 3 * (d + 1)
    work = 7 * stream + 2 * units + pairs
    kept = 2 * (stream + tokens) + 2 * stream + units + (0 if positional else 2 * stream + pairs)
    return stream + head + work + depth(state) * kept


@cache
def _transposition(state: State) -> np.ndarray:
    """Index (n_parameters,) int64 that transposes every matrix within the flat vector."""
    index = np.arange(state.n_parameters)
    for brick in state.bricks:
        if isinstance(brick, Dense):
            place, shape = state.layout[f"{brick.name}.weight"]
            index[place] = index[place].reshape(shape).T.ravel()
    return index


@cache
def _order(state: State) -> np.ndarray:
    """The sites of every token (token, spins per token) int32."""
    return np.ascontiguousarray(state.sites, dtype=np.int32)


@cache
def _places(state: State) -> np.ndarray:
    """Where the arrays of parameters begin in the flat vector, -1 for what the network does not have, int32."""
    names = ["embedding.weight", "embedding.bias", "position.code"]
    mix = "weight" if "attention_1.mix.weight" in state.layout else "bias"
    for i in range(1, depth(state) + 1):
        a, m = f"attention_{i}", f"mlp_{i}"
        names += [f"{a}.norm.gain", f"{a}.norm.bias"]
        names += [f"{a}.{name}.{kind}" for name in ("query", "key", "value") for kind in ("weight", "bias")]
        names += [f"{a}.mix.{mix}", f"{a}.out.weight", f"{a}.out.bias", f"{m}.norm.gain", f"{m}.norm.bias"]
        names += [f"{m}.{name}.{kind}" for name in ("up", "down") for kind in ("weight", "bias")]
    names += ["head.norm.gain", "head.norm.bias"]
    for part in ("real", "imaginary") if state.complex_amplitude else ("real",):
        names += [
            f"head.{part}.weight",
            f"head.{part}.bias",
            f"head.{part}_norm.gain",
            f"head.{part}_norm.bias",
        ]
    return np.array([state.layout[name][0].start if name in state.layout else -1 for name in names], np.int32)
