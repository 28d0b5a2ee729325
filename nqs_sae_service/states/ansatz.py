"""What every record of ``[state]`` has, whatever its kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ..spec.section import Section
from .projection import Symmetry

if TYPE_CHECKING:
    from ..physics.lattices import Lattice
    from .state import State


class Ansatz(Section):
    """Base of the records of ``[state]``: the bare ``network``, and the table ``[state.symmetry]`` that projects it.

    ``load`` counts by what is in the file, not by its name (``service/sources.py``).
    """

    load: str | None = Field(
        None,
        description="start from the parameters in this .npz file, relative to the spec; NetKet's are understood for rbm and "
        "transformer; with ground_state.steps = 0 they stay as they are",
        json_schema_extra={"neutral": True},
    )
    symmetry: Symmetry = Field(
        default_factory=Symmetry,
        description="projection on a representation of the symmetry group",
        json_schema_extra={"neutral": True},
    )

    def wider_layers(self) -> dict[str, int]:
        """Layers whose activations are wider than the network, with their width."""
        return {}

    def network(self, lattice: Lattice) -> State:
        """The bare network on a lattice."""
        raise NotImplementedError

    def build(self, lattice: Lattice) -> State:
        """The wave function on a lattice: the network, projected where the record says so. Raises NoRepresentation."""
        return self.symmetry.projected(self.network(lattice), lattice)
