"""The transformer wave function (Viteritti, Rende, Becca, PRL 130, 236401; Rende et al., arXiv:2405.18874), as bricks.

    sigma -> patches of b spins -> embedding -> L pre-LayerNorm blocks -> sum over tokens -> LayerNorm -> head -> log psi

A block adds attention(LayerNorm(x)) and then mlp(LayerNorm(x)) to the residual stream. Heads of attention come in four
kinds: ``full`` (softmax), ``positional``, and ``kernel`` and ``delta`` (linear in the tokens: ``linear_attention.py``), one for
all heads or one for each; or a *choice* of heads is full, and the others are of the cheaper kind ``linear``. The head of the
network is a dense map and LayerNorm (for a complex amplitude two of them, a and b) followed by the sum over channels of
log cosh(a), or log cosh(a + i b). The fused twins are ``transformer_cpu.py``, for all but ``delta``, and
``transformer_gpu.py``, for networks of one of the first two kinds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args

import numpy as np
from pydantic import Field

from ..spec.section import Finding, Section
from .ansatz import Ansatz
from .fused import Fused
from .head import head
from .linear_attention import DeltaRule, JoinHeads, KernelAttention, LocalMix, neighbourhood
from .primitives import Add, Attention, Brick, Dense, Gelu, LayerNorm, Mix, PositionCode
from .state import State

if TYPE_CHECKING:
    from ..physics.lattices import Lattice

Kind = Literal["full", "positional", "kernel", "delta"]
Choice = Literal["ranked", "random", "fixed", "layers"]
_OF_CHOICES: dict[str, tuple[str, ...]] = {
    "ranking": ("ranked",),
    "share": get_args(Choice),
    "linear": get_args(Choice),
    "choice_seed": ("random",),
}  # fields, and the choices of heads that they count for
HeadsFile = Annotated[str, Field(pattern=r"^(/|\./|\.\./|~)|\.nc$")]
PatchLength = Annotated[int, Field(ge=1, le=4096)]


class Transformer(Ansatz):
    """Transformer over patches of neighbouring spins."""

    kind: Literal["transformer"] = "transformer"
    patch: PatchLength | tuple[PatchLength, PatchLength] | None = Field(
        None,
        description="spins per token on a chain (4), b or [b, c] for patches of b x c unit cells in two dimensions (2); "
        "must divide the lengths",
    )
    width: int = Field(32, ge=1, le=4096, description="channels of the residual stream")
    heads: int = Field(4, ge=1, le=256, description="attention heads; must divide the width")
    layers: int = Field(2, ge=1, le=64, description="blocks of attention and feed-forward network")
    mlp_ratio: int = Field(
        4, ge=1, le=64, description="hidden width of the feed-forward network, in units of the width"
    )
    attention: Kind | Choice | HeadsFile | tuple[Kind, ...] = Field(
        "full",
        description="full: softmax of queries and keys; positional: learned weights that depend on the positions alone; "
        "kernel, delta: linear in the number of tokens; or a list with the kind of every head, layer by layer, or of one "
        "layer for all; or which share of the heads is full, the others being of the kind linear: ranked (the first ones of "
        "ranking; the path of its heads.nc says the same), random, fixed (evenly spaced), layers (whole layers)",
    )
    ranking: str | None = Field(
        None,
        min_length=1,
        description="ranked attention: a run whose heads.nc ranks the heads, by its name in the same results, or a path",
        json_schema_extra={"neutral": True},
    )
    share: float = Field(
        0.125,
        gt=0,
        le=1,
        description="share of full heads, at least one of them, where attention says which",
        json_schema_extra={"neutral": True},
    )
    linear: Literal["kernel", "delta", "positional"] = Field(
        "kernel",
        description="kind of the other heads, where attention says which are full",
        json_schema_extra={"neutral": True},
    )
    choice_seed: int = Field(
        1,
        ge=0,
        le=2**31 - 1,
        description="seed of random attention: which heads are full; default: the top-level seed",
        json_schema_extra={"neutral": True},
    )
    translation_invariant: bool | None = Field(
        None, description="attention depends on distances only; default: true on a periodic lattice"
    )
    amplitude: Literal["positive", "complex"] = Field("positive", description="psi > 0, or psi with a phase")
    precision: Literal["float32", "float64"] = Field(
        "float32", description="precision of the network; energies are float64"
    )

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        """Widths and patches must divide; a kind for every head; distances need a periodic lattice."""
        yield from width_findings(self.width, self.heads, self.mlp_ratio)
        if not self._kinds_fit:
            yield Finding(
                "attention",
                f"{len(self.attention)} kinds; give one for each of the {self.heads} heads, or {self.layers} x {self.heads} = "
                f"{self.layers * self.heads} of them, layer by layer",
            )
        yield from self._choice_findings()
        geometry: Any = sections.get("lattice")
        if geometry is None:
            return
        lattice = geometry.build()
        yield from patch_findings(self.patch or self.patch_extent(lattice)[0], lattice)
        if self.translation_invariant and not lattice.periodic:
            yield Finding(
                "translation_invariant",
                "an open lattice has no translations; leave it out or set it to false",
            )

    def seeded(self, seed: int) -> Section:
        """With a seed for the choice of heads, where it is random."""
        own = self.attention != "random" or "choice_seed" in self.model_fields_set
        return self if own else self.model_copy(update={"choice_seed": seed})

    def resolved(self, sections: Mapping[str, Section]) -> Section:
        """The patch of this lattice; the kinds of heads in the shortest form, so that one network has one key."""
        geometry: Any = sections.get("lattice")
        changes: dict[str, Any] = {}
        if isinstance(self.attention, str) and self.attention not in (*get_args(Kind), *get_args(Choice)):
            changes |= {"attention": "ranked", "ranking": self.attention}
        if self.patch is None and geometry is not None:
            changes["patch"] = 2 if geometry.build().dimensions == 2 else 4
        if not isinstance(self.attention, str) and self._kinds_fit:
            layers = self.head_kinds()
            if len(set(layers)) == 1:
                changes["attention"] = layers[0][0] if len(set(layers[0])) == 1 else layers[0]
        return self.model_copy(update=changes) if changes else self

    @property
    def _kinds_fit(self) -> bool:
        """Whether there is one kind for all heads, for every head of a layer, or for every head of all layers."""
        return isinstance(self.attention, str) or len(self.attention) in (
            self.heads,
            self.layers * self.heads,
        )

    @property
    def chooses(self) -> bool:
        """Whether a share of the heads is full."""
        return self.attention in get_args(Choice)

    @property
    def _full_heads(self) -> int:
        """How many of the heads are full, where a share of them is."""
        return max(1, round(self.share * self.heads * self.layers))

    def _choice_findings(self) -> Iterator[Finding]:
        said = isinstance(self.attention, str) and "attention" in self.model_fields_set
        for name, fits in _OF_CHOICES.items():  # a sweep may hold single kinds beside choices
            if getattr(self, name) != type(self).model_fields[name].default and not said:
                wanted = " or ".join(f'"{word}"' for word in fits)
                yield Finding(name, f"it counts where attention = {wanted}: set that, or leave it out")
        if self.attention == "ranked" and not self.ranking:
            what = "ranked heads need a ranking: name a run with a heads.nc in state.ranking"
            yield Finding("attention", what)
        if self.attention == "layers" and self._full_heads % self.heads:
            what = (
                f"{self.share:g} of {self.layers} layers are no whole layers: take one of "
                f"{', '.join(f'{n / self.layers:g}' for n in range(1, min(self.layers, 8) + 1))}"
            )
            yield Finding("share", what)

    def with_full(self, chosen: Iterable[int]) -> Transformer:
        """The network in which these heads, counted layer by layer, are full and the others of the kind ``linear``."""
        full = set(chosen)
        every = range(self.heads * self.layers)
        kinds: tuple[Kind, ...] = tuple("full" if h in full else self.linear for h in every)
        plain = {name: type(self).model_fields[name].default for name in _OF_CHOICES}
        return self.model_copy(update={"attention": kinds, **plain})

    def ranked(self, order: Iterable[int]) -> Transformer:
        """The same with as many heads as the ``share`` says: the first ones of ``order``."""
        return self.with_full(list(order)[: self._full_heads])

    def _chosen(self) -> Transformer:
        """The network of a choice that needs no ranking.

        Fixed heads are evenly spaced, counted layer by layer; of several layers the last one of every group is full, as in
        HydraHead's baselines (arXiv:2606.20097).
        """
        count, every = self._full_heads, self.heads * self.layers
        if self.attention == "random":
            return self.with_full(np.random.default_rng([self.choice_seed, count]).permutation(every)[:count])
        if self.attention == "fixed":
            return self.with_full(i * every // count for i in range(count))
        layers = count // self.heads
        last = [(i + 1) * self.layers // layers - 1 for i in range(layers)]
        return self.with_full(h for h in range(every) if h // self.heads in last)

    def head_kinds(self) -> tuple[tuple[Kind, ...], ...]:
        """The kind of every head, layer by layer.

        Which heads come first in a ranking is known when a run is planned, and written out then; until then, for shapes and
        costs, the first ones stand for them.
        """
        if self.attention == "ranked":
            return self.ranked(range(self.heads * self.layers)).head_kinds()
        if self.chooses:
            return self._chosen().head_kinds()
        if not self._kinds_fit:
            raise ValueError(
                f"{len(self.attention)} kinds of attention for {self.layers} layers of {self.heads} heads"
            )
        kinds: Any = (self.attention,) * self.heads if isinstance(self.attention, str) else self.attention
        layers = kinds * (self.layers * self.heads // len(kinds))
        return tuple(layers[i : i + self.heads] for i in range(0, len(layers), self.heads))

    def patch_extent(self, lattice: Lattice) -> tuple[int, ...]:
        """Unit cells of a patch along every axis; a graph without axes is cut in the order of its sites."""
        return patch_extent(self.patch or (2 if lattice.dimensions == 2 else 4), lattice)

    def layer_names(self) -> tuple[str, ...]:
        """Public names of the places in the network, from the input to the output."""
        blocks = range(1, self.layers + 1)
        return (
            "embedding",
            *(f"{kind}_{i}" for i in blocks for kind in ("heads", "attention", "hidden", "mlp", "residual")),
            "head",
        )

    def wider_layers(self) -> dict[str, int]:
        """The hidden units of the feed-forward networks."""
        return {f"hidden_{i}": self.mlp_ratio * self.width for i in range(1, self.layers + 1)}

    def residual_names(self) -> tuple[str, ...]:
        """The residual stream after each block."""
        return tuple(f"residual_{i}" for i in range(1, self.layers + 1))

    def default_layers(self) -> tuple[str, ...]:
        """What is recorded unless a spec says otherwise: the residual stream."""
        return self.residual_names()

    def network(self, lattice: Lattice) -> State:
        """The bare network on a lattice."""
        invariant = lattice.periodic if self.translation_invariant is None else self.translation_invariant
        sites = patches(lattice, self.patch_extent(lattice))
        tokens = TokenGrid.of(lattice, self.patch_extent(lattice), invariant)
        return State(
            n_sites=lattice.n_sites,
            n_tokens=len(sites),
            width=self.width,
            layers=self.layer_names(),
            wider=self.wider_layers(),
            bricks=tuple(_bricks(self, tokens, sites.shape[1])),
            dtype=np.dtype(self.precision),
            complex_amplitude=self.amplitude == "complex",
            sites=sites,
            initial=lambda name, shape, generator: initial(name, shape, generator, self.layers),
            fuse=_fuse,
            fused_layers=("embedding", *self.residual_names()),
            invariances=shifted_tokens(sites, tokens.extent) if invariant else None,
        )


class TokenGrid(NamedTuple):
    """Tokens row by row: how many along every axis, which axes are closed, whether attention depends on displacements only."""

    extent: tuple[int, ...]
    wraps: tuple[bool, ...]
    invariant: bool

    @classmethod
    def of(cls, lattice: Lattice, patch: tuple[int, ...], invariant: bool) -> TokenGrid:
        """Those of patches of so many unit cells; a graph without axes is a line of tokens."""
        lengths = lattice.extent or (lattice.n_sites,)
        extent = tuple(n // b for n, b in zip(lengths, patch, strict=True))
        return cls(extent, lattice.wraps or (False,), invariant)

    @property
    def number(self) -> int:
        """Of tokens."""
        return math.prod(self.extent)

    @property
    def grid(self) -> tuple[int, ...]:
        """The extent where attention depends on displacements only, else ()."""
        return self.extent if self.invariant else ()


def _fuse(state: State, parameters: Any) -> Fused | None:
    if isinstance(parameters, np.ndarray):
        from .transformer_cpu import FusedTransformer

        return FusedTransformer(state, parameters)
    from .hybrid_packing import of_one_kind
    from .transformer_gpu import fused_on_device

    return fused_on_device(state, parameters) if of_one_kind(state) else None


def width_findings(width: int, heads: int, mlp_ratio: int) -> Iterator[Finding]:
    """Heads must divide the width, and the hidden width has a bound."""
    if width % heads:
        yield Finding("heads", f"{heads} heads do not divide the width {width}")
    if width * mlp_ratio > 65536:
        yield Finding("mlp_ratio", f"a hidden width of {width * mlp_ratio} is more than 65536")


def patch_extent(patch: int | tuple[int, int], lattice: Lattice) -> tuple[int, ...]:
    """Unit cells of a patch along every axis of the lattice: two numbers, or the same for all."""
    return patch if isinstance(patch, tuple) else (patch,) * max(1, lattice.dimensions)


def patch_findings(patch: int | tuple[int, int], lattice: Lattice) -> Iterator[Finding]:
    """Patches must divide the lengths of the lattice."""
    extent = lattice.extent or (lattice.n_sites,)
    if isinstance(patch, tuple) and len(extent) == 1:
        yield Finding("patch", "two lengths are for lattices in two dimensions; give one number")
        return
    for axis, (length, b) in enumerate(zip(extent, patch_extent(patch, lattice), strict=True)):
        if b < 1 or length % b:
            divisors = [b for b in range(1, length + 1) if length % b == 0]
            sites = f"the {length} sites" if len(extent) == 1 else f"the {length} cells along axis {axis}"
            yield Finding("patch", f"{b} does not divide {sites}; one of {divisors} would")


def patches(lattice: Lattice, extent: tuple[int, ...]) -> np.ndarray:
    """Sites (token, spins per token) int64 of patches of ``extent`` unit cells, tokens and cells counted row by row."""
    lengths = lattice.extent or (lattice.n_sites,)
    cells = np.arange(math.prod(lengths)).reshape(lengths)
    for axis, (n, b) in enumerate(zip(lengths, extent, strict=True)):
        cells = cells.reshape(*cells.shape[: 2 * axis], n // b, b, *cells.shape[2 * axis + 1 :])
    order = (*range(0, cells.ndim, 2), *range(1, cells.ndim, 2))
    cells = cells.transpose(order).reshape(-1, math.prod(extent))
    return (cells[:, :, None] * lattice.basis + np.arange(lattice.basis)).reshape(len(cells), -1)


def shifted_tokens(sites: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Permutations (token, n_sites) int32 that move tokens, with sites (token, spins), around their periodic grid."""
    shifts, axes = np.indices(grid).reshape(len(grid), -1).T, tuple(range(len(grid)))
    permutations = np.empty((len(sites), sites.size), np.int32)
    for permutation, shift in zip(permutations, shifts, strict=True):
        permutation[sites] = np.roll(sites.reshape(*grid, -1), tuple(shift), axes).reshape(sites.shape)
    return permutations


def _bricks(record: Transformer, tokens: TokenGrid, patch: int) -> Iterator[Brick]:
    d, layers = record.width, record.head_kinds()
    if tokens.invariant or all(kind == "positional" for kinds in layers for kind in kinds):
        yield Dense("embedding", ("tokens",), "embedding", patch, d)
    else:
        yield Dense("embedding", ("tokens",), ".patches", patch, d)
        yield PositionCode("position", (".patches",), "embedding", tokens.number, d)
    stream = "embedding"
    for i, kinds in enumerate(layers, start=1):
        yield from block(i, stream, _attention(i, kinds, d, tokens), d, record.mlp_ratio)
        stream = f"residual_{i}"
    yield from head(stream, d, record.amplitude == "complex")


def _attention(i: int, kinds: tuple[Kind, ...], d: int, tokens: TokenGrid) -> Iterator[Brick]:
    """The heads of block ``i``, from ``attention_i.x`` to ``heads_i``: of one kind, or every kind by itself and then joined."""
    a, output = f"attention_{i}", f"heads_{i}"
    if len(set(kinds)) == 1:
        yield from _heads(kinds[0], a, f"{a}.x", output, d, d, len(kinds), tokens)
        return
    places: dict[Kind, tuple[int, ...]] = dict.fromkeys(kinds, ())
    for place, kind in enumerate(kinds):
        places[kind] += (place,)
    channels = d // len(kinds)
    for kind, own in places.items():
        name = f"{a}.{kind}"
        yield from _heads(kind, name, f"{a}.x", f"{name}.heads", d, channels * len(own), len(own), tokens)
    yield JoinHeads(
        f"{a}.join", tuple(f"{a}.{kind}.heads" for kind in places), output, tuple(places.values()), channels
    )


def _heads(
    kind: Kind, name: str, x: str, output: str, fan_in: int, width: int, heads: int, tokens: TokenGrid
) -> Iterator[Brick]:
    """``heads`` heads of one kind with ``width`` channels together, from the edge ``x`` to ``output``."""
    number, grid = tokens.number, tokens.grid
    if kind == "positional":
        yield from projections(name, ("value",), x, fan_in, width)
        yield Mix(*attention_edges(name, "v", output), number, width, heads, grid)
        return
    yield from projections(name, ("value", "query", "key"), x, fan_in, width)
    if kind == "full":
        yield Attention(*attention_edges(name, "qkv", output), number, width, heads, grid)
    elif kind == "kernel":
        windows, reach = neighbourhood(tokens.extent, tokens.wraps)
        yield KernelAttention(*attention_edges(name, "qkv", f"{name}.far"), number, width, heads, grid)
        yield LocalMix(f"{name}.local", (f"{name}.v",), f"{name}.near", windows, width, reach)
        yield Add(f"{name}.sum", (f"{name}.far", f"{name}.near"), output)
    else:
        scans = 2 * len(tokens.extent)
        yield Dense(f"{name}.gates", (x,), f"{name}.g", fan_in, scans * 2 * heads)
        yield DeltaRule(
            *attention_edges(name, "qkvg", output), number, width, heads, grid, tokens.extent, tokens.wraps
        )


def attention_edges(name: str, read: str, output: str) -> tuple[str, tuple[str, ...], str]:
    """Name, inputs (some of q, k, v, g) and output of the brick between tokens."""
    return f"{name}.mix", tuple(f"{name}.{edge}" for edge in read), output


def projections(name: str, roles: tuple[str, ...], x: str, fan_in: int, fan_out: int) -> Iterator[Brick]:
    """Dense maps from the edge ``x`` to values, queries and keys."""
    for role in roles:
        yield Dense(f"{name}.{role}", (x,), f"{name}.{role[0]}", fan_in, fan_out)


def block(i: int, stream: str, attention: Iterable[Brick], d: int, mlp_ratio: int) -> Iterator[Brick]:
    """Block ``i``: attention and feed-forward network, added to ``stream``.

    The bricks ``attention`` lead from the edge ``attention_i.x`` to ``heads_i``.
    """
    a, m = f"attention_{i}", f"mlp_{i}"
    yield LayerNorm(f"{a}.norm", (stream,), f"{a}.x", d)
    yield from attention
    yield Dense(f"{a}.out", (f"heads_{i}",), a, d, d)
    yield Add(f"{a}.add", (stream, a), f"{a}.stream")
    yield LayerNorm(f"{m}.norm", (f"{a}.stream",), f"{m}.x", d)
    yield Dense(f"{m}.up", (f"{m}.x",), f"{m}.u", d, d * mlp_ratio)
    yield Gelu(f"{m}.gelu", (f"{m}.u",), f"hidden_{i}")
    yield Dense(f"{m}.down", (f"hidden_{i}",), m, d * mlp_ratio, d)
    yield Add(f"{m}.add", (f"{a}.stream", m), f"residual_{i}")


def initial(name: str, shape: tuple[int, ...], generator: np.random.Generator, layers: int) -> np.ndarray:
    """Glorot-uniform weights, unit gains and gammas, zero biases, taps that keep the size of values.

    The two maps that write into the residual stream start smaller. A block's output is scaled by 1 / sqrt(2 layers), so that
    the stream's variance does not grow with depth.

    The biases of softmax attention by displacement start at random, of variance ln(tokens): each head then begins with a few
    displacements, however many tokens there are. From zeros it would begin as the mean over all tokens, and training would sit
    on the plateau of a mean-field state.
    """
    role = name.rpartition(".")[2]
    if role in ("gain", "gamma"):
        return np.ones(shape)
    if role == "bias" and ".mix." in name:
        return generator.normal(scale=math.sqrt(math.log(shape[-1])), size=shape)
    if role == "bias":
        return np.zeros(shape)
    if role == "taps":
        return generator.uniform(-1, 1, size=shape) / math.sqrt(shape[-1])
    if role == "code":
        return generator.normal(scale=0.02, size=shape)
    fan_in, fan_out = (shape[-1], shape[-1]) if ".mix." in name else shape
    bound = math.sqrt(6 / (fan_in + fan_out))
    if name.endswith((".out.weight", ".down.weight")):
        bound /= math.sqrt(2 * layers)
    return generator.uniform(-bound, bound, size=shape)
