"""What a user writes: the typed records of a TOML spec, its validation, inheritance, sweeps and content keys.

The names below load on first use: the records of lattices, states and dictionaries live in their own rooms and
start from ``spec.section``, so this package must be importable before they are.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .keys import canonical_json, stage_key
    from .load import Point, frozen_point, load_spec
    from .problems import Problem, SpecError
    from .root import Spec
    from .schema import json_schema
    from .template import starter

_HOME = {
    "Point": "load",
    "Problem": "problems",
    "Spec": "root",
    "SpecError": "problems",
    "frozen_point": "load",
    "canonical_json": "keys",
    "json_schema": "schema",
    "load_spec": "load",
    "stage_key": "keys",
    "starter": "template",
}

__all__ = [
    "Point",
    "Problem",
    "Spec",
    "SpecError",
    "canonical_json",
    "frozen_point",
    "json_schema",
    "load_spec",
    "stage_key",
    "starter",
]


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
