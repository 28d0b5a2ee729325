"""Networks from elsewhere: parameters from an NPZ file, by name, into the flat vector of a network here.

**Our layout.** One array for each parameter, named as the bricks name them and shaped as ``State.layout`` says: real numbers,
float32 or float64. Of the transformer, with d channels in h heads and p spins per token, everything being x W + b:

    embedding.weight (p, d), .bias (d,)               the spins of a patch row by row; tokens row by row over the lattice
    position.code (tokens, d)                         only full attention without translation invariance
    attention_1.norm.gain (d,), .bias (d,)            LayerNorm before the attention of the first block
    attention_1.value.weight (d, d), .bias (d,)       also .query and .key for full attention, and .out
    attention_1.mix.weight                            positional: (h, i, j), or (h, i - j) when translation-invariant
    attention_1.mix.bias (h, i - j)                   full and translation-invariant: added to the scores
    mlp_1.norm, mlp_1.up (d, r d), mlp_1.down (r d, d)
    head.norm, head.real, head.real_norm              for a complex amplitude also head.imaginary, head.imaginary_norm

i - j is the displacement on the periodic grid of tokens, counted row by row. Of the RBM (N sites, M hidden units; real beside
imaginary parts): ``hidden.weight`` (N, 2 M), ``hidden.bias`` (2 M,), ``visible.real`` (N,), ``visible.imaginary`` (N,).

**NetKet's layout.** The tree of flax parameters flattened with "/", with or without "params/" in front; a kernel is our weight,
a scale our gain. Three trees are known, by their names:

    NetKet's RBM        Dense/kernel (N, M), Dense/bias, visible_bias, complex or real; a bias that is not there is zero
    tutorial ViT        Embed_0/embed, Encoder_0/layers_0/{layer_norm_1, attn/v, attn/alpha, attn/W, layer_norm_2,
                        ff/layers_0, ff/layers_2}, OuputHead_0/{out_layer_norm, output_layer0, norm2, output_layer1,
                        norm3} (the tutorial spells it so); J also for alpha, (h, i, j) or, translation-invariant, (h, j - i)
    one compact ViT     Dense_0, LayerNorm_0, ... counted in the order in which flax meets the calls of a one-piece module:
                        value, (query, key,) out, down, up of each block; J0, J1, ... (h, i, j), or pos (tokens, d); the
                        head: its LayerNorm, then LayerNorm and Dense of the real part, and of the imaginary part

Both transformers have an mlp_ratio of 4 and complex amplitudes. Numbers are converted to the ``precision`` of the network.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import UserError
from .primitives import Mix
from .state import State

_MOST_NAMES = 4  # in one line
_ROLES = {"kernel": "weight", "scale": "gain", "bias": "bias"}
_TUTORIAL_BLOCK = {
    "layer_norm_1": "attention_{}.norm",
    "attn/v": "attention_{}.value",
    "attn/W": "attention_{}.out",
    "layer_norm_2": "mlp_{}.norm",
    "ff/layers_0": "mlp_{}.up",
    "ff/layers_2": "mlp_{}.down",
}
_TUTORIAL_HEAD = {
    "out_layer_norm": "head.norm",
    "output_layer0": "head.real",
    "norm2": "head.real_norm",
    "output_layer1": "head.imaginary",
    "norm3": "head.imaginary_norm",
}

Arrays = Mapping[str, np.ndarray]


class Misfit(UserError):
    """Parameters that do not fit a network; the text says which, and why."""


def load_parameters(path: str | Path, state: State) -> np.ndarray:
    """Parameters (n_parameters,) of a network from an NPZ file, in the precision of the network.

    Raises Misfit, in one line that names the file, when the file cannot be read or what is in it does not fit.
    """
    try:
        return arranged(named(read_arrays(path), state), state)
    except Misfit as problem:
        raise Misfit(f"{path}: {problem}") from None


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an NPZ file by name. Raises Misfit."""
    if not Path(path).is_file():
        raise Misfit("no such file" if not Path(path).exists() else "not a file")
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise Misfit("a single array; save all parameters by name with numpy.savez")
        with stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as problem:
        if isinstance(problem, ValueError) and "Object arrays" in str(problem):
            raise Misfit("holds Python objects; save plain arrays by name with numpy.savez") from None
        raise Misfit(f"not a readable .npz file ({' '.join(str(problem).split())})") from None


def named(arrays: Arrays, state: State) -> dict[str, np.ndarray]:
    """The arrays by our names, NetKet's translated. Raises Misfit where NetKet's names are those of another network."""
    arrays = {name.removeprefix("params/"): array for name, array in arrays.items()}
    if "Dense/kernel" in arrays:
        return _from_rbm(arrays, state)
    if "Embed_0/embed/kernel" in arrays:
        return _renamed(arrays, _tutorial_names(state), state)
    if "Dense_0/kernel" in arrays:
        return _renamed(arrays, _compact_names(state), state)
    return dict(arrays)


def arranged(arrays: Arrays, state: State) -> np.ndarray:
    """The flat vector (n_parameters,) from arrays by our names. Raises Misfit naming what is missing, unknown or wrong."""
    unknown = [name for name in arrays if name not in state.layout]
    missing = [name for name in state.layout if name not in arrays]
    if unknown:
        near = get_close_matches(unknown[0], missing or state.layout, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise Misfit(
            f"the network of [state] has no parameter {_listed(unknown)}{hint}; it has {_listed(list(state.layout))}"
        )
    if missing:
        raise Misfit(f"parameters of the network of [state] are missing: {_listed(missing)}")
    differing = [
        f"{name} {arrays[name].shape}, needed {shape}"
        for name, (_, shape) in state.layout.items()
        if arrays[name].shape != shape
    ]
    if differing:
        raise Misfit(f"shapes do not fit the network of [state]: {_listed(differing, '; ')}")
    for name, array in arrays.items():
        _check_numbers(name, array, state.dtype)
    vector = np.empty(state.n_parameters, state.dtype)
    for name, (place, _) in state.layout.items():
        vector[place] = arrays[name].ravel()
    return vector


def _check_numbers(name: str, array: np.ndarray, dtype: np.dtype) -> None:
    if array.dtype not in (np.float32, np.float64):
        raise Misfit(f"{name} holds {array.dtype}, not float32 or float64 numbers")
    if not np.isfinite(array).all():
        raise Misfit(f"{name} holds numbers that are not finite")
    if np.abs(array).max(initial=0) > np.finfo(dtype).max:
        raise Misfit(f'{name} holds numbers beyond {dtype}; set state.precision = "float64"')


def _listed(names: Sequence[str], separator: str = ", ") -> str:
    more = len(names) - _MOST_NAMES
    return separator.join(names[:_MOST_NAMES]) + (f"{separator}and {more} more" if more > 0 else "")


def _from_rbm(arrays: Arrays, state: State) -> dict[str, np.ndarray]:
    if "hidden.weight" not in state.layout or "visible.real" not in state.layout:
        raise Misfit('these are the parameters of a restricted Boltzmann machine: set state.kind = "rbm"')
    if state.n_tokens > 1:
        raise Misfit(
            "these are the parameters of a machine without shared filters: set state.symmetric = false"
        )
    n_sites, hidden = state.n_sites, state.width // 2
    known = {"Dense/kernel": (n_sites, hidden), "Dense/bias": (hidden,), "visible_bias": (n_sites,)}
    for name, array in arrays.items():
        if name not in known:
            raise Misfit(f"unknown parameter {name}; NetKet's RBM has {', '.join(known)}")
        if array.shape != known[name]:
            raise Misfit(
                f"{name} has the shape {array.shape}, needed {known[name]}: see state.alpha and [lattice]"
            )
        if array.dtype.kind not in "fc":
            raise Misfit(f"{name} holds {array.dtype}, not floating-point numbers")
    kernel, bias, visible = (arrays.get(name, np.zeros(shape)) for name, shape in known.items())

    def parts(array: np.ndarray) -> np.ndarray:
        wide = array.astype(np.complex128)
        return np.concatenate([wide.real, wide.imag], axis=-1)

    real, imaginary = np.split(parts(visible), 2)
    return {
        "hidden.weight": parts(kernel),
        "hidden.bias": parts(bias),
        "visible.real": real,
        "visible.imaginary": imaginary,
    }


def _blocks(state: State) -> range:
    """Numbers of the blocks of a transformer that NetKet's have a counterpart of. Raises Misfit for another network."""
    layout = state.layout
    if "attention_1.value.weight" not in layout:
        raise Misfit('these are the parameters of a transformer: set state.kind = "transformer"')
    if "head.imaginary.weight" not in layout:
        raise Misfit('this transformer has complex amplitudes: set state.amplitude = "complex"')
    number = 1
    while f"attention_{number + 1}.value.weight" in layout:
        number += 1
    return range(1, number + 1)


def _tutorial_names(state: State) -> dict[str, str]:
    """Module by module: NetKet's name -> ours, and single arrays."""
    names = {"Embed_0/embed": "embedding"}
    for block in _blocks(state):
        above = f"Encoder_0/layers_{block - 1}"
        names |= {f"{above}/{theirs}": ours.format(block) for theirs, ours in _TUTORIAL_BLOCK.items()}
        names |= {f"{above}/attn/{theirs}": f"attention_{block}.mix.weight" for theirs in ("alpha", "J")}
    return names | {f"OuputHead_0/{theirs}": ours for theirs, ours in _TUTORIAL_HEAD.items()}


def _compact_names(state: State) -> dict[str, str]:
    """The same for a module in one piece: flax counts the modules of a class as their calls are written."""
    dense, norms = ["embedding"], []
    names = {"pos": "position.code"}
    for block in _blocks(state):
        a, m = f"attention_{block}", f"mlp_{block}"
        full = f"{a}.query.weight" in state.layout
        dense += [f"{a}.value", *([f"{a}.query", f"{a}.key"] if full else []), f"{a}.out"]
        dense += [f"{m}.down", f"{m}.up"]  # ``Dense(d)(gelu(Dense(4 d)(y)))`` makes the outer one first
        norms += [f"{a}.norm", f"{m}.norm"]
        names[f"J{block - 1}"] = f"{a}.mix.weight"
    dense += ["head.real", "head.imaginary"]
    norms += ["head.norm", "head.real_norm", "head.imaginary_norm"]
    names |= {f"Dense_{number}": ours for number, ours in enumerate(dense)}
    return names | {f"LayerNorm_{number}": ours for number, ours in enumerate(norms)}


def _renamed(arrays: Arrays, names: Mapping[str, str], state: State) -> dict[str, np.ndarray]:
    turn = _displacements(state)
    ours: dict[str, np.ndarray] = {}
    for theirs, array in arrays.items():
        module, _, role = theirs.rpartition("/")
        if theirs in names:
            name = names[theirs]
        elif module in names and role in _ROLES:
            name = f"{names[module]}.{_ROLES[role]}"
        else:
            raise Misfit(
                f"unknown parameter {theirs}: the network of [state] has no place for it; see state.layers and state.attention"
            )
        ours[name] = turn[name](array) if name in turn else array
    return ours


def _displacements(state: State) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """For translation-invariant mixes: weights by j - i, as NetKet has them, to weights by i - j."""
    mixes = [brick for brick in state.bricks if isinstance(brick, Mix) and brick.grid]
    return {f"{mix.name}.weight": partial(_reversed, grid=mix.grid) for mix in mixes}


def _reversed(array: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Weights (head, displacement) on a periodic grid with the displacement r read at -r."""
    if array.ndim != 2 or array.shape[1] != int(np.prod(grid)):
        return array  # its shape will be refused
    on_grid = array.reshape(-1, *grid)
    axes = tuple(range(1, on_grid.ndim))
    return np.roll(np.flip(on_grid, axes), 1, axes).reshape(array.shape)
