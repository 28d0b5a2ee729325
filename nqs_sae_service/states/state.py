"""A neural quantum state: bricks with named edges between a configuration and log psi.

``State`` knows the shape of the network; ``Wavefunction`` is a state bound to parameters: something with ``log_psi(sigma)``. An
``EditedWavefunction`` is the same network with one layer changed on the way: steering and dictionary reconstruction are edits.
A *layer* is an edge with a public name: ``embedding``, ``attention_1``, ``mlp_1``, ``residual_1``, ..., ``head``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np

from ..engine.arrays import beside, namespace
from ..engine.devices import rows_that_fit
from .fused import Fused, Streams
from .primitives import Brick
from .projection import Projection, projected_twin

Array = Any
Edit = Callable[[Array], Array]
Ability = TypeVar("Ability")

# Configurations per pass of the bricks: fixed, because the number of rows in a BLAS call may change its last bits. A GPU needs
# more of them for a launch to be worth it.
PASS = 512
PASS_ON_DEVICE = 2**14


class LogPsi(Protocol):
    """Anything with the logarithm of a wave function."""

    def log_psi(self, sigma: Array) -> Array:
        """log psi of configurations (n, n_sites): (n,) float64, or complex128 with a phase."""


@dataclass(frozen=True, eq=False)
class State:
    """Shape of a network.

    ``sites`` (token, spins per token) int64 cuts configurations into the first edge ``tokens``; ``bricks`` lead from there to
    the edge ``log_psi``. ``initial`` draws one parameter array from a NumPy generator. ``fuse`` makes the fast twin, if there
    is one, for parameters of the ``fused_dtypes`` where they are; ``fused_layers`` are the layers it can stop at. For
    forecasts: ``flip_flops`` of psi'/psi after one flip if that costs less than log psi, ``gram_width`` numbers per row that
    T is made of if these are fewer than the parameters.

    ``invariances`` (m, n_sites): permutations of the sites under which the bare network does not change. With a ``symmetry``
    the wave function is the projection of what the bricks compute.
    """

    n_sites: int
    n_tokens: int
    width: int
    layers: tuple[str, ...]
    bricks: tuple[Brick, ...]
    dtype: np.dtype
    complex_amplitude: bool
    sites: np.ndarray
    initial: Callable[[str, tuple[int, ...], np.random.Generator], np.ndarray]
    fuse: Callable[[State, Array], Fused | None] | None = None
    fused_dtypes: tuple[str, ...] = ("float32",)
    fused_layers: tuple[str, ...] = ()
    wider: Mapping[str, int] = field(default_factory=dict)
    flip_flops: float | None = None
    gram_width: int | None = None
    invariances: np.ndarray | None = None
    symmetry: Projection | None = None

    @cached_property
    def bare(self) -> State:
        """The network without its projection."""
        return self if self.symmetry is None else replace(self, symmetry=None)

    @property
    def n_copies(self) -> int:
        """Evaluations of the network for one of psi."""
        return 1 if self.symmetry is None else self.symmetry.n_copies

    def width_of(self, layer: str) -> int:
        """Width of the activations of a layer: that of the network, but for ``wider`` ones."""
        return self.wider.get(layer, self.width)

    def tokens(self, sigma: Array) -> Array:
        """Configurations (n, n_sites) int8 as the first edge (n, token, spins per token)."""
        return sigma.take(beside(self.sites, sigma), axis=1)

    @cached_property
    def layout(self) -> dict[str, tuple[slice, tuple[int, ...]]]:
        """Place of every parameter array in the flat vector, in the order of the bricks."""
        layout: dict[str, tuple[slice, tuple[int, ...]]] = {}
        start = 0
        for brick in self.bricks:
            for name, shape in brick.shapes().items():
                size = int(np.prod(shape))
                layout[name] = (slice(start, start + size), shape)
                start += size
        return layout

    @cached_property
    def n_parameters(self) -> int:
        """Number of real parameters."""
        return max((place.stop for place, _ in self.layout.values()), default=0)

    @cached_property
    def tape_bytes(self) -> int:
        """Memory of a configuration while derivatives are taken: every edge, its delta and as much again for temporaries."""
        numbers = sum(
            self.n_tokens * getattr(brick, "fan_out", self.width) + brick.workspace(self.n_tokens)
            for brick in self.bricks
        )
        return 3 * numbers * self.dtype.itemsize * (2 if self.complex_amplitude else 1)

    def initial_parameters(self, seed: int) -> np.ndarray:
        """Random parameters (n_parameters,) that a training can start from."""
        generator = np.random.default_rng([seed, 0x6E7173])
        parts = [self.initial(name, shape, generator).ravel() for name, (_, shape) in self.layout.items()]
        return np.concatenate(parts).astype(self.dtype)

    def unpack(self, parameters: Array) -> dict[str, Array]:
        """Named views into the flat parameter vector."""
        return {name: parameters[place].reshape(shape) for name, (place, shape) in self.layout.items()}

    def bind(self, parameters: Array) -> Wavefunction:
        """The wave function with these parameters, evaluated by the fast twin where they have one."""
        if parameters.shape != (self.n_parameters,):
            raise ValueError(f"this network has {self.n_parameters} parameters, not {parameters.shape}")
        return Wavefunction(self, parameters)

    def log_psi(self, parameters: Array, sigma: Array) -> Array:
        """log psi (n,) of configurations (n, n_sites)."""
        return self.bind(parameters).log_psi(sigma)

    def activations(self, parameters: Array, sigma: Array, layers: Iterable[str]) -> dict[str, Array]:
        """Activations (n, token, width) of the named layers (one token for ``head``)."""
        return self.bind(parameters).activations(sigma, layers)

    def check_layer(self, layer: str) -> None:
        """Raise KeyError naming the layers there are."""
        if layer not in self.layers:
            raise KeyError(f"no layer {layer!r}; this network has {', '.join(self.layers)}")


def run_forward(
    bricks: Iterable[Brick],
    weights: Mapping[str, Array],
    edges: dict[str, Array],
    edits: Mapping[str, Edit] | None = None,
) -> None:
    """Add what the ``bricks`` make of the ``edges`` to them, changing those in ``edits`` on the way."""
    for brick in bricks:
        y = brick.forward(weights, *(edges[name] for name in brick.inputs))
        edges[brick.output] = edits[brick.output](y) if edits and brick.output in edits else y


def run_backward(
    bricks: Sequence[Brick],
    weights: Mapping[str, Array],
    edges: Mapping[str, Array],
    deltas: dict[str, Array],
    until: str | None = None,
    parts: bool = False,
) -> None:
    """Add the cotangents of the edges before those in ``deltas``, down to the edge ``until``; ``parts`` as in ``Tape``."""
    for brick in reversed(bricks):
        if brick.output == until:
            break
        if brick.output not in deltas:
            continue
        x = tuple(edges[name] for name in brick.inputs)
        found = brick.backward(weights, x, edges[brick.output], deltas[brick.output])
        for name, delta in zip(brick.inputs, found, strict=True):
            if parts and delta.ndim == 3 and namespace(delta).iscomplexobj(delta):
                delta = namespace(delta).stack([delta.real, delta.imag])
            deltas[name] = deltas[name] + delta if name in deltas else delta


@dataclass(frozen=True)
class Tape:
    """All edges of one forward pass and, after ``backward``, d log psi / d edge of each: the source of every derivative.

    Of a projected state the edges have one row for every copy of a configuration, n n_copies of them, side by side.
    """

    state: State
    weights: dict[str, Array]
    edges: dict[str, Array]

    @classmethod
    def record(
        cls, state: State, weights: dict[str, Array], sigma: Array, edits: dict[str, Edit] | None = None
    ) -> Tape:
        """Run the bricks on configurations (n, n_sites), changing the layers in ``edits`` on the way."""
        dtype = next(iter(weights.values())).dtype
        rows = sigma if state.symmetry is None else state.symmetry.copies(sigma)
        edges = {"tokens": state.tokens(rows).astype(dtype)}
        run_forward(state.bricks, weights, edges, edits)
        return cls(state, weights, edges)

    @property
    def log_psi(self) -> Array:
        """log psi (n,)."""
        symmetry, rows = self.state.symmetry, self.edges["log_psi"]
        return rows if symmetry is None else symmetry.log_mean(rows)

    def backward(self, until: str | None = None, parts: bool = False) -> dict[str, Array]:
        """d log psi / d edge for every edge (or down to the edge ``until``), from one pass with cotangent 1.

        Of a projected state the cotangent of a copy is its share.
        With ``parts`` complex deltas of edges (n, token, channel) come as real ones (2, n, token, channel), real part first:
        the bricks below then do real arithmetic on twice the rows.
        """
        rows, symmetry = self.edges["log_psi"], self.state.symmetry
        xp = namespace(rows)
        real = next(iter(self.weights.values())).dtype
        dtype = np.result_type(real, np.complex64) if self.state.complex_amplitude else real
        shares = xp.ones(len(rows)) if symmetry is None else symmetry.shares(rows)
        deltas = {"log_psi": shares.astype(dtype)}
        run_backward(self.state.bricks, self.weights, self.edges, deltas, until, parts)
        return deltas

    def pull(self, layer: str, cotangent: Array, until: str) -> Array:
        """d (sum of ``cotangent`` times the activations of ``layer``) / d x of the layer ``until`` before it.

        Arrays (rows, token, channel); samples never mix. Zero where ``layer`` does not depend on the other.
        """
        deltas = {layer: cotangent}
        run_backward(self.state.bricks, self.weights, self.edges, deltas, until)
        return deltas[until] if until in deltas else namespace(cotangent).zeros_like(self.edges[until])

    def gradients(self, deltas: dict[str, Array], total: bool = False) -> Iterator[tuple[slice, Array]]:
        """Per-sample parameter gradients, array by array: (place in the flat vector, (n, size)); (size,) when summed."""
        for brick in self.state.bricks:
            for name, g in self.gradient(brick, deltas[brick.output], total).items():
                yield self.state.layout[name][0], g.reshape(-1) if total else g.reshape(len(g), -1)

    def gradient(self, brick: Brick, delta: Array, total: bool = False) -> dict[str, Array]:
        """Parameter gradients of one brick: per sample (n, *shape), by parts (2, n, *shape), or summed (*shape).

        The copies of a configuration are summed: where a brick treats every token alike they count as so many more tokens.
        """
        if not brick.shapes():
            return {}
        x, copies = tuple(self.edges[name] for name in brick.inputs), self.state.n_copies
        if copies == 1 or total:
            return brick.gradient(self.weights, x, delta, total)
        parts = delta.shape[:-3]  # of a delta (n, token, channel) by parts
        if brick.tokenwise:
            x, delta = tuple(_more_tokens(edge, copies) for edge in x), _more_tokens(delta, copies)
            return brick.gradient(self.weights, x, delta, total)
        gradients = brick.gradient(self.weights, x, delta, total)
        return {
            name: g.reshape(*parts, -1, copies, *g.shape[len(parts) + 1 :]).sum(axis=len(parts) + 1)
            for name, g in gradients.items()
        }


def _more_tokens(x: Array, copies: int) -> Array:
    """(..., n copies, token, channel) as (..., n, copies token, channel)."""
    return x.reshape(*x.shape[:-3], -1, copies * x.shape[-2], x.shape[-1])


@dataclass(frozen=True)
class Wavefunction:
    """A state with parameters, evaluated by the fast twin where there is one, or always by the ``plain`` bricks."""

    state: State
    parameters: Array
    plain: bool = False

    @cached_property
    def weights(self) -> dict[str, Array]:
        """Parameter arrays by name."""
        return self.state.unpack(self.parameters)

    @cached_property
    def bare(self) -> Wavefunction:
        """The network without its projection."""
        return self if self.state.symmetry is None else replace(self, state=self.state.bare)

    @cached_property
    def fused(self) -> Fused | None:
        """The fast twin, if these parameters have one."""
        if self.state.symmetry is not None:
            return projected_twin(self.bare.fused, self.state.symmetry)
        if self.plain or self.state.fuse is None:
            return None
        known = self.parameters.dtype.name in self.state.fused_dtypes
        return self.state.fuse(self.state, self.parameters) if known else None

    def put(self, array: np.ndarray) -> Array:
        """The array where the parameters are."""
        return namespace(self.parameters).asarray(array)

    def twin(self, ability: type[Ability]) -> Ability | None:
        """The fast twin if it has this ability (a class of ``fused``), else None."""
        return self.fused if isinstance(self.fused, ability) else None

    @property
    def reference(self) -> Wavefunction:
        """The same wave function evaluated by the bricks in double precision: what fast paths are checked against."""
        return Wavefunction(self.state, self.parameters.astype(np.float64), plain=True)

    def tape(self, sigma: Array, edits: dict[str, Edit] | None = None) -> Tape:
        """Record one pass over configurations (n, n_sites)."""
        return Tape.record(self.state, self.weights, sigma, edits)

    def passes(self, evaluate: Callable[[Array], Array], sigma: Array) -> Array:
        """``evaluate`` on blocks of configurations, joined along the first axis."""
        size = self.pass_rows(len(sigma))
        if len(sigma) <= size:
            return evaluate(sigma)
        xp = namespace(sigma)
        return xp.concatenate([evaluate(sigma[i : i + size]) for i in range(0, len(sigma), size)])

    def pass_rows(self, rows: int) -> int:
        """Configurations in a pass of the bricks over ``rows`` of them."""
        copies = self.state.n_copies
        if isinstance(self.parameters, np.ndarray):
            return max(1, PASS // copies)
        return max(
            1, rows_that_fit(self.state.tape_bytes, self.parameters, PASS_ON_DEVICE, rows * copies) // copies
        )

    def log_psi(self, sigma: Array) -> Array:
        """log psi (n,), float64 or complex128."""
        if self.fused:
            return self.fused.log_psi(sigma)
        return self.passes(lambda s: self.tape(s).log_psi, sigma)

    def over_copies(self, evaluate: Callable[[Wavefunction, Array], Array], sigma: Array) -> Array:
        """log psi (n, ...) where ``evaluate`` gives that of the bare network, (rows, ...): its projection, if there is one."""
        if self.state.symmetry is None:
            return evaluate(self, sigma)
        return self.state.symmetry.log_psi(lambda rows: evaluate(self.bare, rows), sigma)

    def stream_at(self, sigma: Array, layer: str) -> Array:
        """Activations (n, token, width) of one layer; of a projected state those of copy 0, the configuration itself."""
        self.state.check_layer(layer)
        if self.state.symmetry is not None:
            return self.bare.stream_at(sigma, layer)
        if (streams := self._streams(layer)) is not None:
            return streams.stream_at(sigma, layer)
        return self.passes(lambda s: self.tape(s).edges[layer], sigma)

    def activations(self, sigma: Array, layers: Iterable[str]) -> dict[str, Array]:
        """Activations (n, token, width) of several layers, see ``stream_at``."""
        return {layer: self.stream_at(sigma, layer) for layer in layers}

    def edited(self, layer: str, edit: Edit) -> EditedWavefunction:
        """This wave function with the activations x (n, token, width) of ``layer`` replaced by ``edit(x)``, in every copy."""
        self.state.check_layer(layer)
        return EditedWavefunction(self, layer, edit)

    @cached_property
    def fast_bricks(self) -> Wavefunction:
        """This wave function with its bricks replaced by their twins, where there are any (``primitives_cpu.py``)."""
        from .primitives_cpu import with_fast_bricks

        return with_fast_bricks(self)

    def starts_at(self, layer: str) -> bool:
        """Whether the fast twin can start from the activations of ``layer`` alone (the residual stream)."""
        return self._streams(layer) is not None

    def _streams(self, layer: str) -> Streams | None:
        return self.twin(Streams) if layer in self.state.fused_layers else None  # type: ignore[type-abstract]

    def log_psi_from(self, layer: str, stream: Array) -> Array:
        """log psi (n,) from activations (n, token, width) of a layer that ``starts_at`` allows."""
        streams = self._streams(layer)
        assert streams is not None
        return streams.log_psi_from(layer, stream)

    def layer_gradient(self, sigma: Array, layer: str) -> Array:
        """d log psi / d x for the activations of ``layer`` of a bare network: (n, token, width)."""
        self.state.check_layer(layer)
        assert self.state.symmetry is None, (
            "a projected state has activations in every copy: see layer_tangent"
        )
        return self.passes(lambda s: self.tape(s).backward(until=layer)[layer], sigma)

    def layer_tangent(self, sigma: Array, layer: str, push: Callable[[Array], Array]) -> Array:
        """d log psi / d a for activations x + a push(x) of ``layer``, in every copy: (n,), complex if psi is."""
        symmetry, tangents = self.state.symmetry, []
        if symmetry is None:
            return _along(self, sigma, layer, push)
        for copies, log_psi in symmetry.over_copies(self.bare.log_psi, sigma):
            along = symmetry.shares(log_psi) * _along(self.bare, copies, layer, push)
            tangents.append(along.reshape(-1, symmetry.n_copies).sum(axis=1))
        return namespace(sigma).concatenate(tangents)

    def per_sample_gradients(self, sigma: Array) -> Array:
        """O (n, n_parameters) held whole: for tests and small systems."""
        tape = self.tape(sigma)
        return namespace(self.parameters).concatenate([g for _, g in tape.gradients(tape.backward())], axis=1)


def _along(psi: Wavefunction, sigma: Array, layer: str, push: Callable[[Array], Array]) -> Array:
    """d log psi / d a of a bare network for activations x + a push(x), pass by pass."""

    def evaluate(s: Array) -> Array:
        return (psi.layer_gradient(s, layer) * push(psi.stream_at(s, layer))).sum(axis=(1, 2))

    return psi.passes(evaluate, sigma)


@dataclass(frozen=True)
class EditedWavefunction:
    """psi with one layer changed on the way."""

    psi: Wavefunction
    layer: str
    edit: Edit

    def log_psi(self, sigma: Array) -> Array:
        """log psi (n,) of the edited network."""
        return self.psi.over_copies(self._of_network, sigma)

    def _of_network(self, psi: Wavefunction, sigma: Array) -> Array:
        if psi.starts_at(self.layer):
            return psi.log_psi_from(self.layer, self.edit(psi.stream_at(sigma, self.layer)))
        return psi.passes(lambda s: psi.fast_bricks.tape(s, {self.layer: self.edit}).log_psi, sigma)
