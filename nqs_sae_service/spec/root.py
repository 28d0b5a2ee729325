"""The whole spec: one frozen record that holds the record of every section.

Lattices, Hamiltonians, states and dictionaries come in kinds; the rooms that own them register a record for
each kind, and ``kind`` in the TOML section chooses among them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import Field, field_validator

from ..physics.hamiltonians import HAMILTONIANS
from ..physics.lattices import LATTICES
from ..sae import KINDS
from ..states import STATES
from .completeness import Completeness
from .crosscoder import Crosscoder
from .dynamics import Dynamics
from .heads import Heads
from .sampling import Sampling
from .section import Section, one_of
from .sections import (
    DEFAULT_SEED,
    Activations,
    Attribution,
    Engine,
    Features,
    GroundState,
    Observables,
    Output,
    Samples,
    Steering,
)
from .transfer import Transfer

REGISTRIES: Mapping[str, Mapping[str, type[Section]]] = {
    "lattice": LATTICES,
    "hamiltonian": HAMILTONIANS,
    "state": STATES,
    "sae": KINDS,
}
DEFAULT_KINDS = {"state": "transformer", "sae": "topk"}

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_LONGEST_NAME = 100


if TYPE_CHECKING:
    Lattice: TypeAlias = Any
    Hamiltonian: TypeAlias = Any
    State: TypeAlias = Any
    Dictionary: TypeAlias = Any
else:
    Lattice, Hamiltonian, State, Dictionary = map(one_of, REGISTRIES.values())


class Heading(Section):
    """What stands above the first section."""

    name: str = Field(description="name of the run and of its directory: letters, digits, '.', '_', '-'")
    seed: int = Field(
        DEFAULT_SEED, ge=0, le=2**31 - 1, description="seed of every stage that does not set its own"
    )

    @field_validator("name")
    @classmethod
    def _is_one_directory(cls, name: str) -> str:
        if len(name) > _LONGEST_NAME:
            raise ValueError(f"a name has at most {_LONGEST_NAME} characters, this one {len(name)}")
        if not _NAME.fullmatch(name):
            raise ValueError(
                "a name is made of letters, digits, '.', '_' and '-', does not start with '.' or '-', and is no path"
                f" (results go to results/<name>); got {name!r}"
            )
        return name


class Spec(Heading):
    """One experiment: from a Hamiltonian to a steered wave function."""

    lattice: Lattice = Field(description="the sites and who neighbours whom")
    hamiltonian: Hamiltonian = Field(description="the Hamiltonian whose ground state is sought")
    state: State = Field(default_factory=lambda: default_record("state"), description="the wave function")
    sampling: Sampling = Field(default_factory=Sampling)
    transfer: Transfer = Field(default_factory=Transfer)
    ground_state: GroundState = Field(default_factory=GroundState)
    dynamics: Dynamics = Field(default_factory=Dynamics)
    samples: Samples = Field(default_factory=Samples)
    observables: Observables = Field(default_factory=Observables)
    activations: Activations = Field(default_factory=Activations)
    sae: Dictionary = Field(default_factory=lambda: default_record("sae"), description="the dictionary")
    features: Features = Field(default_factory=Features)
    steering: Steering = Field(default_factory=Steering)
    attribution: Attribution = Field(default_factory=Attribution)
    crosscoder: Crosscoder = Field(default_factory=Crosscoder)
    completeness: Completeness = Field(default_factory=Completeness)
    heads: Heads = Field(default_factory=Heads)
    engine: Engine = Field(default_factory=Engine)
    output: Output = Field(default_factory=Output)

    def sections(self) -> dict[str, Section]:
        """The record of every section, in the order of the spec."""
        return {name: getattr(self, name) for name in SECTIONS}

    @property
    def final_hamiltonian(self) -> Hamiltonian:
        """The Hamiltonian that the last state of the run belongs to: the one after a quench, if there is one."""
        return self.dynamics.after(self.hamiltonian) if self.dynamics.wanted else self.hamiltonian

    def completed(self) -> Spec:
        """The same experiment with every default filled in that depends on another section or on ``seed``."""
        return self.model_copy(update=resolve(self.seed, self.sections()))


SECTIONS = tuple(name for name in Spec.model_fields if name not in Heading.model_fields)
REQUIRED_SECTIONS = tuple(name for name in SECTIONS if Spec.model_fields[name].is_required())


def default_record(section: str) -> Section:
    """The record of a section that comes in kinds when the spec says nothing about it."""
    kind = DEFAULT_KINDS[section]
    return REGISTRIES[section][kind].model_validate({"kind": kind})


def records_of(section: str) -> tuple[type[Section], ...]:
    """Every record class that a section may turn out to be."""
    if section in REGISTRIES:
        return tuple(REGISTRIES[section].values())
    return (Spec.model_fields[section].annotation,)  # type: ignore[return-value]


def resolve(seed: int, sections: Mapping[str, Section]) -> dict[str, Section]:
    """Fill in what depends on other sections, in the order of the spec. Some sections may be missing."""
    resolved = dict(sections)
    for name in SECTIONS:
        if name not in resolved:
            continue
        resolved[name] = resolved[name].seeded(seed).resolved(resolved)
    return resolved
