"""Fast twins: what a network may do better than its bricks for one set of parameters, each an equal of the plain formula.

A twin is any object with ``log_psi``. It may be more: a class below for each further ability. Whoever needs one asks
``psi.twin(Ability)`` and falls back on the plain formula when the answer is None.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..engine.ranks import ALONE, Ranks

if TYPE_CHECKING:  # the records of states stand beside them, and reading a spec needs no compiler
    from ..engine.panels import Panels

Array = Any

# Configurations. Every block of a twin divides it: calls cut at multiples of it give a configuration the same bits,
# however many there are in a call.
ALIGNMENT = 64


class Fused(Protocol):
    """A fast twin of the bricks."""

    def log_psi(self, sigma: Array) -> Array:
        """log psi (n,) of configurations (n, n_sites) int8."""


@runtime_checkable
class Streams(Fused, Protocol):
    """A twin that can stop at a layer of the residual stream and go on from it."""

    def stream_at(self, sigma: Array, layer: str) -> Array:
        """Activations (n, token, width) of ``layer``."""

    def log_psi_from(self, layer: str, stream: Array) -> Array:
        """log psi (n,) when the activations of ``layer`` are ``stream`` (n, token, width)."""


@runtime_checkable
class Walks(Fused, Protocol):
    """A twin that makes many Metropolis proposals in one go: the decisions of the plain loop, up to rounding of log psi."""

    def walk(
        self, sigma: Array, log_psi: Array, first: Array, length: Array, threshold: Array, ahead: bool = True
    ) -> int:
        """Make the proposals in order, in place on sigma (chains, n_sites) int8 and log_psi (chains,); number accepted.

        Proposal r of chain c flips the ``length[r, c]`` sites from ``first[r, c]`` on (periodic) or, where that is negative,
        exchanges the spins of the sites first and -length - 1: a null move, never evaluated, where they are equal. It is
        accepted if ``threshold[r, c]`` < 2 (log|psi'| - log|psi|). first, length (rows, chains) int64, threshold (rows, chains)
        float64. A chain whose log psi' is NaN stays, and its log_psi becomes NaN. ``ahead``: a twin may evaluate a proposal
        before it is known that it will be made.
        """


@runtime_checkable
class Draws(Fused, Protocol):
    """A twin that draws independent configurations from |psi|^2."""

    def draw(self, uniforms: Array) -> tuple[Array, Array]:
        """Configurations (n, n_sites) int8 and their log psi (n,), from numbers (token, n) in (0, 1], a column for each."""


@runtime_checkable
class FlipRatios(Fused, Protocol):
    """A twin that knows how psi changes when some spins flip."""

    def ratios(self, sigma: Array, log_psi: Array, signs: Array, wanted: Array) -> Array:
        """psi(sigma signs_f) / psi(sigma), (n, flips), for sign patterns (flips, n_sites) int8; 0 if not ``wanted``."""


@runtime_checkable
class Flips(Fused, Protocol):
    """A twin that evaluates configurations next to known ones for less than from scratch."""

    def log_psi_flipped(self, sigma: Array, signs: Array, pairs: Array) -> Array:
        """log psi of sigma[pairs[p, 0]] * signs[pairs[p, 1]], (pairs,); pairs (pairs, 2) int64, best grouped by sample."""


class Jacobian(Protocol):
    """O-bar = (O - mean O) / sqrt(n) of n samples, as a matrix (rows, n_parameters) that is never held whole.

    A real log psi has one real row per sample. With a phase the rows are either those of Re O-bar above those of Im O-bar
    (2n real ones), or, where psi is holomorphic in complex parameters, n complex ones: ``rows`` says which.

    Several ranks share the samples: each has the rows of its own. Means and products over rows are those of all samples.
    """

    def rows(self, values: Array) -> Array:
        """One number per sample (n,), laid out as the rows are."""

    def gram_and_product(self, vector: Array) -> tuple[Array, Array]:
        """T = O-bar O-bar^T (rows, rows), float64 or Hermitian complex128, and O-bar vector (rows,).

        T may be overwritten.
        """

    def gram_panels(self, panels: Panels) -> dict[int, Array]:
        """T of the samples of all ranks, this one's panels of it."""

    def product(self, vector: Array) -> Array:
        """O-bar vector (rows,), vector (n_parameters,) float64."""

    def transposed_product(self, y: Array) -> Array:
        """O-bar^T y (n_parameters,) float64, y (rows,)."""


@runtime_checkable
class Factorised(Jacobian, Protocol):
    """O-bar in a form whose products cost far less than passing over its elements."""

    @property
    def direct_operations(self) -> float:
        """FLOPs of T and its Cholesky factor."""

    @property
    def product_operations(self) -> float:
        """FLOPs of one product and one transposed product together."""


@runtime_checkable
class SolvesItself(Jacobian, Protocol):
    """O-bar with so few columns that the system of minSR is solved in their space."""

    def solve(self, shift: float, rhs: Array) -> Array | None:
        """y (rows,) with (T + shift I) y = rhs, the rows of this rank; None where T is the smaller matrix."""


@runtime_checkable
class Columns(Fused, Protocol):
    """A twin that writes out per-sample derivatives, where there is memory for all of them."""

    def columns(self, sigma: Array) -> Array:
        """d log psi / d theta of configurations (n, n_sites), not centred: (part, n, n_parameters), real and imaginary part."""


@runtime_checkable
class Differentiates(Fused, Protocol):
    """A twin with its own per-sample derivatives."""

    def jacobian(self, sigma: Array, ranks: Ranks = ALONE) -> Jacobian:
        """O-bar of configurations (n, n_sites), those of this rank."""
