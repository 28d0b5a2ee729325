"""Content keys: a stage is computed once for the same sections, the same inputs and the same version.

The key is a hash of the validated records, not of the text: comments, order, ``extends`` and the way a
number is written do not matter. A field added later is marked ``json_schema_extra={"neutral": True}``; at its
default it is left out, so that an upgrade keeps old results.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from .section import Section

_NEVER_HASHED = ("engine", "output")  # how to run, not what
_LENGTH = 20  # hex digits: 80 bits


def stage_key(stage: str, version: int, sections: Mapping[str, Section], upstream: Mapping[str, str]) -> str:
    """Key of a stage: 20 hex digits of the sha256 of its name, version, sections and upstream keys."""
    content = {
        "stage": stage,
        "version": version,
        "sections": _hashed(sections),
        "upstream": dict(upstream),
    }
    return hashlib.sha256(_canonical(content).encode()).hexdigest()[:_LENGTH]


def canonical_json(sections: Mapping[str, Section]) -> str:
    """The hashed content of sections as JSON with sorted keys."""
    return _canonical(_hashed(sections))


def _hashed(sections: Mapping[str, Section]) -> dict[str, dict[str, Any]]:
    for name in _NEVER_HASHED:
        if name in sections:
            raise ValueError(f"[{name}] says how to run and must not enter a key")
    return {name: _content(record) for name, record in sections.items()}


def _content(record: Section) -> dict[str, Any]:
    values = record.model_dump(mode="json")
    for name, field in type(record).model_fields.items():
        extra = field.json_schema_extra
        neutral = isinstance(extra, dict) and extra.get("neutral") is True
        if neutral and getattr(record, name) == field.get_default(call_default_factory=True):
            del values[name]
    return values


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
