"""The base of every typed record of a TOML section.

A record is strict (no silent conversions), closed (an unknown key is an error), frozen, and finite (no nan,
no inf). Records of things that come in kinds (a lattice, a Hamiltonian, a state, a dictionary) live beside the
thing itself, so that a new kind is one file; the others live in ``spec/sections.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field


@dataclass(frozen=True)
class Finding:
    """Something wrong with a section: the ``key`` in it (``"patch"``, ``"names[2]"``), what, and names it may mean."""

    key: str
    what: str
    candidates: tuple[str, ...] = ()


class Section(BaseModel):
    """One TOML section. Subclasses describe every field with its unit; defaults live there and nowhere else."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True
    )

    def seeded(self, seed: int) -> Section:
        """This record with the ``seed`` of the spec, where it draws random numbers and sets none of its own."""
        own = "seed" not in type(self).model_fields or "seed" in self.model_fields_set
        return self if own else self.model_copy(update={"seed": seed})

    def resolved(self, sections: Mapping[str, Section]) -> Section:
        """This record with its defaults that depend on other sections filled in, or itself when there are none.

        ``sections`` holds those that validated, resolved as far as they come earlier; one may be missing.
        """
        return self

    @classmethod
    def tables(cls) -> dict[str, type[Section]]:
        """The fields that are records themselves: the tables inside this section, ``[engine.slurm]``."""
        records = {name: field.annotation for name, field in cls.model_fields.items()}
        return {
            name: record
            for name, record in records.items()
            if isinstance(record, type) and issubclass(record, Section)
        }

    @classmethod
    def arrays_of_tables(cls) -> dict[str, type[Section]]:
        """The fields that are arrays of records: ``terms = [{...}, {...}]``."""
        return {
            name: part
            for name, field in cls.model_fields.items()
            for part in get_args(field.annotation)
            if isinstance(part, type) and issubclass(part, Section)
        }

    @classmethod
    def tables_of_kinds(cls) -> dict[str, dict[str, type[Section]]]:
        """The fields that are records of one of several kinds, ``[dynamics.hamiltonian]``: the record of every kind."""
        found: dict[str, dict[str, type[Section]]] = {}
        for name, field in cls.model_fields.items():
            for part in get_args(field.annotation):
                records = get_args(get_args(part)[0]) if get_origin(part) is Annotated else ()
                if records and all(isinstance(r, type) and issubclass(r, Section) for r in records):
                    found[name] = {get_args(r.model_fields["kind"].annotation)[0]: r for r in records}
        return found

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        """Check this section against the others. ``sections`` holds those that validated; one may be missing."""
        return iter(())


def one_of(registry: Mapping[str, type[Section]]) -> Any:
    """Type of a table that comes in kinds. (A tagged union needs two members.)"""
    records = tuple(registry.values())
    return Annotated[Union[records], Field(discriminator="kind")] if len(records) > 1 else records[0]  # noqa: UP007
