"""What several stages read from upstream: the trained wave function, its Born samples, and activations block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import xarray as xr

from ..engine.arrays import to_host
from ..engine.economy import Economy
from ..engine.ranks import ALONE, Ranks
from ..physics.observables import WITHOUT_MEAN, Observable, make_observable
from ..states import State, Wavefunction
from ..states.fused import ALIGNMENT
from .stage import Context

if TYPE_CHECKING:
    from ..spec import Spec

_BLOCK_ELEMENTS = 2**18  # of activations that are read together


def origin(context: Context) -> xr.Dataset:
    """Where the state at hand comes from: ``dynamics`` at its time (``over_time.At``), or ``ground_state``."""
    return context.upstream["dynamics" if "dynamics" in context.upstream else "ground_state"]


def trained(context: Context) -> Wavefunction:
    """The network of the spec with the parameters that were found for it, on the device."""
    state = context.spec.state.build(context.spec.lattice.build())
    return state.bind(context.device.put(origin(context)["parameters"].values))


def initialisations(sae: xr.Dataset) -> list[int]:
    """Labels of the untrained control networks of ``sae``; none if the spec asks for none."""
    return [int(label) for label in sae["initialisation"].values] if "initialisation" in sae.dims else []


def projection_attributes(state: State) -> dict[str, int | str]:
    """What a stage file says about a projected state: which copy was looked at, and which ones an edit changes."""
    if state.symmetry is None:
        return {}
    return {
        "projection_copies": state.n_copies,
        "projection_copy": 0,
        "edit_applies_to": "all copies",
    }


def born_samples(samples: xr.Dataset, complex_amplitude: bool) -> tuple[np.ndarray, np.ndarray]:
    """Configurations (chain, draw, spin) int8 and log psi (chain, draw): float64, or complex128 with a phase."""
    log_psi = samples["log_psi"].values
    return samples["configuration"].values, log_psi if complex_amplitude else np.ascontiguousarray(
        log_psi.real
    )


def tested(samples: xr.Dataset, wanted: int, complex_amplitude: bool) -> tuple[np.ndarray, np.ndarray]:
    """About ``wanted`` samples of the test chains, evenly spaced draws of every chain: see ``born_samples``."""
    return of_chains(samples, "test", wanted, complex_amplitude)


def of_chains(
    samples: xr.Dataset, split: str, wanted: int, complex_amplitude: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The same of the chains of a ``split``: train, select or test."""
    part = samples.isel(chain=np.flatnonzero(samples["split"].values == split))
    chains, draws = part.sizes["chain"], part.sizes["draw"]
    each = max(1, min(draws, wanted // chains))
    kept = np.unique(np.linspace(0, draws - 1, each).round().astype(int))
    return born_samples(part.isel(draw=kept), complex_amplitude)


def measured(spec: Spec) -> tuple[Observable, ...]:
    """The observables of the spec that have a mean, and the energy last."""
    lattice = spec.lattice.build()
    hamiltonian = spec.final_hamiltonian.build(lattice)
    chosen = [make_observable(name, lattice, hamiltonian) for name in spec.observables.names]
    energy = make_observable("local_energy", lattice, hamiltonian)
    return (*(o for o in chosen if o.kind not in WITHOUT_MEAN), energy)


def aligned_samples(elements: int, elements_each: int) -> int:
    """How many samples of ``elements_each`` numbers make about ``elements``: a multiple of ``ALIGNMENT``."""
    return ALIGNMENT * max(1, elements // (ALIGNMENT * elements_each))


def hyperslabs(first: int, last: int, n_draws: int) -> Iterator[tuple[slice, slice, slice]]:
    """Cut the samples first:last, counted along chains of ``n_draws``, into rectangles: (chains, draws, place in them)."""
    at = first
    while at < last:
        chain, draw = divmod(at, n_draws)
        whole = (last - at) // n_draws if draw == 0 else 0
        end = at + whole * n_draws if whole else min(last, (chain + 1) * n_draws)
        draws = slice(0, n_draws) if whole else slice(draw, draw + end - at)
        yield slice(chain, chain + max(1, whole)), draws, slice(at - first, end - first)
        at = end


class Source(Protocol):
    """Activations of samples first:last of some chains, counted along the chains: (sample, token, width)."""

    def __call__(self, first: int, last: int) -> np.ndarray: ...


def recorded(activations: xr.DataArray, chains: np.ndarray) -> Source:
    """Activations (chain, draw, token, width) of a stage file, read when asked for."""
    n_draws = activations.shape[1]

    def read(first: int, last: int) -> np.ndarray:
        x = np.empty((last - first, *activations.shape[2:]), np.float32)
        for positions, draws, place in hyperslabs(first, last, n_draws):
            part = activations.isel(chain=_as_slice(chains[positions]), draw=draws).values
            x[place] = part.reshape(-1, *x.shape[1:])
        return x

    return read


def one_after_another(sources: Sequence[Source], each: int) -> Source:
    """Sources of ``each`` samples as a single one."""

    def read(first: int, last: int) -> np.ndarray:
        concerned = range(first // each, -(-last // each))
        parts = [sources[i](max(first - i * each, 0), min(last - i * each, each)) for i in concerned]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    return read


def computed(psi: Wavefunction, layer: str, sigma: np.ndarray) -> Source:
    """Activations of a network on configurations ``sigma`` (sample, spin), computed when asked for."""

    def compute(first: int, last: int) -> np.ndarray:
        return to_host(psi.activations(psi.put(sigma[first:last]), [layer])[layer])

    return compute


def _as_slice(chains: np.ndarray) -> slice | np.ndarray:
    """Neighbouring chains as a slice: they are read in one go."""
    consecutive = np.array_equal(chains, np.arange(chains[0], chains[0] + len(chains)))
    return slice(int(chains[0]), int(chains[-1]) + 1) if consecutive else chains


class Rows:
    """What a dictionary sees (``sae.inputs.Inputs``): every token of a source is a row or, when ``pooled``, every token mean.

    ``shape`` is (samples, tokens, width). The size of a block depends on it alone. ``tick`` is called before a block is read.
    Every one of the ``ranks`` reads, or computes, its share of a block; then all have it.
    """

    def __init__(
        self,
        source: Source,
        shape: tuple[int, int, int],
        pooled: bool,
        tick: Callable[[], None] = lambda: None,
        ranks: Ranks = ALONE,
    ) -> None:
        n_samples, n_tokens, self.width = shape
        self._ranks = ranks
        self._source, self._n_samples, self._pooled, self._tick = source, n_samples, pooled, tick
        self._samples = aligned_samples(_BLOCK_ELEMENTS, n_tokens * self.width)
        each = 1 if pooled else n_tokens
        self.n_rows, self.block_rows = n_samples * each, self._samples * each

    def read(self, block: int) -> np.ndarray:
        """The rows of one block, (at most block_rows, width) float32."""
        self._tick()
        first = block * self._samples
        end = min(self._n_samples, first + self._samples)
        own = self._ranks.share(-(-(end - first) // ALIGNMENT))
        start, stop = (min(end, first + ALIGNMENT * place) for place in (own.start, own.stop))
        if start == stop:
            return self._ranks.gather(np.empty((0, self.width), np.float32))
        x = self._source(start, stop)
        rows = x.mean(axis=1) if self._pooled else x.reshape(-1, self.width)
        return self._ranks.gather(np.ascontiguousarray(rows, dtype=np.float32))


def economy_of(spec: Spec) -> Economy:
    """``[engine]`` as the numerical rooms see it."""
    savings = {name: name in spec.engine.savings for name in ("duplicates", "increments", "proposals")}
    return Economy(spec.engine.chunk, **savings)
