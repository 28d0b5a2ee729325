"""``starter``: a commented spec to begin with, written from the records themselves so that it cannot go stale.

What defines the experiment is spelled out; every other key stands there at its default, commented out, with its meaning.
"""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

import tomli_w

from .problems import Origin, Problem, SpecError
from .root import REGISTRIES, SECTIONS, Heading, records_of
from .section import Section

_EXPERIMENT: dict[str, dict[str, Any]] = {
    "lattice": {"kind": "chain", "length": 16},
    "hamiltonian": {"kind": "tfim", "h": 1.0},
    "state": {"kind": "transformer"},
    "sae": {"kind": "topk"},
}
_WIDTH = 110
_COMMENT_COLUMN = 36
_HEAD = """\
# Check it with `nqs-sae validate FILE`, run it with `nqs-sae run FILE`.
# A commented key shows its default: remove the '#' to change it. Energies are in units of J.
"""
_TAIL = """\
# Several runs from one spec: quoted keys, each value a point.
# [sweep.grid]
# "hamiltonian.h" = [0.5, 1.0, 1.5]
"""


def starter(name: str) -> str:
    """The text of a commented spec called ``name`` that validates as it is. Raises SpecError for a bad name."""
    try:
        Heading(name=name)
    except ValueError as error:
        what = str(error.errors()[0]["ctx"]["error"])  # type: ignore[attr-defined]
        raise SpecError([Problem(Origin(f"init {name}"), "name", what)]) from None
    blocks = [_HEAD + _keys(Heading, {"name": name})]
    blocks += [_section(section, _EXPERIMENT.get(section, {})) for section in SECTIONS]
    return "\n".join([*blocks, _TAIL])


def _section(section: str, chosen: dict[str, Any]) -> str:
    record = records_of(section)[0]
    if section in REGISTRIES:
        record = REGISTRIES[section][chosen["kind"]]
    others = [kind for kind in REGISTRIES.get(section, {}) if kind != chosen["kind"]]
    return _table(section, record, chosen, f" Other kinds: {', '.join(others)}." if others else "")


def _table(name: str, record: type[Section], chosen: dict[str, Any], more: str = "") -> str:
    """A section, or a table inside one, with its keys; then the tables inside it."""
    about = inspect.cleandoc(record.__doc__ or "").split("\n\n")[0].replace("\n", " ").replace("`", "")
    header = "\n".join(textwrap.wrap(about + more, _WIDTH, initial_indent="# ", subsequent_indent="# "))
    inner = [_table(f"{name}.{key}", table, {}) for key, table in record.tables().items()]
    return "\n".join([f"{header}\n[{name}]\n{_keys(record, chosen)}", *inner])


def _keys(record: type[Section], chosen: dict[str, Any]) -> str:
    """Every key of a record: the chosen ones set, the others commented out at their defaults."""
    lines = []
    names = [name for name in record.model_fields if name not in record.tables()]
    for name in sorted(names, key=lambda name: name != "kind"):
        field = record.model_fields[name]
        default = field.get_default(call_default_factory=True)
        if name in chosen:
            line = _assignment(name, chosen[name])
        elif default is None:
            line = f"# {name} = ..."
        else:
            line = f"# {_assignment(name, default)}"
        lines += _commented(line, field.description or "")
    return "\n".join(lines) + "\n"


def _assignment(name: str, value: Any) -> str:
    text = tomli_w.dumps({name: value}).strip()
    return " ".join(text.split()).replace("[ ", "[").replace(", ]", "]").replace(",]", "]")


def _commented(line: str, comment: str) -> list[str]:
    """The line with its comment beside it, and below it as far as one line is too short."""
    if not comment:
        return [line]
    column = max(_COMMENT_COLUMN, len(line) + 2)
    if column > _WIDTH // 2:
        return [*(f"# {part}" for part in textwrap.wrap(comment, _WIDTH - 2)), line]
    first, *rest = textwrap.wrap(comment, _WIDTH - column - 2)
    return [f"{line:<{column}}# {first}", *(" " * column + f"# {part}" for part in rest)]
