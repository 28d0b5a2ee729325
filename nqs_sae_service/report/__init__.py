"""Seeing a run: tables in the terminal, figures, and one self-contained HTML page.

The numbers are gathered once, as plain records (``summary``), and rendered twice (``tables`` for the terminal,
``html`` for the page). Drawing needs matplotlib, so nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .figures import Images, write_figures
    from .html import write_report
    from .reading import read
    from .tables import show

__all__ = ["Images", "read", "show", "write_figures", "write_report"]

_HOMES = {
    "show": ".tables",
    "Images": ".figures",
    "read": ".reading",
    "write_figures": ".figures",
    "write_report": ".html",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
