"""The JSON Schema of a spec, for completion and descriptions in editors (https://json-schema.org, draft 2020-12).

The schema is a little wider than ``nqs-sae validate``: keys of a section may come from a base or a sweep, so none is
required, and what depends on two sections is not expressed.
"""

from __future__ import annotations

from typing import Any

from .root import Heading, Spec
from .sections import Sweep


def json_schema() -> dict[str, Any]:
    """JSON Schema of a spec file, with ``extends`` and ``sweep``."""
    schema, sweep = Spec.model_json_schema(), Sweep.model_json_schema()
    required, properties = schema.pop("required"), schema["properties"]
    heading = {name: properties.pop(name) for name in Heading.model_fields}
    extends = {
        "type": "string",
        "description": "a spec that this one builds on; its path relative to this file",
    }
    schema["properties"] = {"extends": extends, **heading, **properties, "sweep": sweep}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:nqs-sae:spec",
        **_for_editors(schema),
        "title": "nqs-sae spec",
        "anyOf": [{"required": required}, {"required": ["extends"]}],
    }


def _for_editors(schema: Any) -> Any:
    """The schema without what TOML cannot say (null), without required keys and generated titles."""
    if isinstance(schema, list):
        return [_for_editors(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    plain: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            plain[key] = {name: _for_editors(field) for name, field in value.items()}
        elif key == "oneOf":
            plain["anyOf"] = _for_editors(value)
        elif key not in ("title", "required", "discriminator", "neutral") and not (
            key == "default" and value is None
        ):
            plain[key] = _for_editors(value)
    choices = [choice for choice in plain.get("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) == 1:
        del plain["anyOf"]
        plain |= choices[0]
    elif choices:
        plain["anyOf"] = choices
    return plain
