"""What every record of ``[state]`` has, whatever its kind."""

from __future__ import annotations

from pydantic import Field

from ..spec.section import Section


class Ansatz(Section):
    """Base of the records of ``[state]``. ``load`` counts by what is in the file, not by its name (``service/sources.py``)."""

    load: str | None = Field(
        None,
        description="start from the parameters in this .npz file, relative to the spec; NetKet's are understood for rbm and "
        "transformer; with ground_state.steps = 0 they stay as they are",
        json_schema_extra={"neutral": True},
    )
