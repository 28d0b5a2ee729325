"""Datasets made from the points of a sweep, kept beside its report: computed once, read again while the stage files stay."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

import xarray as xr

from ..datasets.netcdf import Origin, read_attributes, write_stage
from ..datasets.schema import SCHEMA
from ..errors import UserError, plain
from .reading import read_summary
from .records import Section, Verdict


def kept(path: Path, version: int, told: Sequence[object], compute: Callable[[], xr.Dataset]) -> xr.Dataset:
    """What the file at ``path`` holds of small variables, or what ``compute`` returns, which is written there.

    ``told`` says which stage files it is made from, as JSON: with the ``version`` it is the key that the file must have. What
    cannot be computed (damaged files, networks of another version) is a dataset with nothing but the attribute ``problem``. A
    directory that cannot be written to is left as it is.
    """
    name = path.stem
    key = hashlib.sha256(json.dumps([version, told]).encode()).hexdigest()[:32]
    if read_attributes(path).get("key") == key:
        stored = read_summary(path)
        if set(SCHEMA[name]) <= set(stored.data_vars):
            return stored
    begun = datetime.now(timezone.utc).isoformat(timespec="seconds")
    try:
        found = compute()
    except Exception as problem:  # there is hardly an exception that foreign files do not bring about
        return xr.Dataset(attrs={"problem": plain(" ".join(str(problem).split())) or type(problem).__name__})
    ended = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with suppress(UserError):
        write_stage(found, path, Origin(name, key, version, "{}", 0, 1, begun, ended))
    return found


def not_computed(title: str, found: xr.Dataset) -> Section | None:
    """The section that tells why a dataset of ``kept`` could not be computed; None if it could."""
    if "problem" not in found.attrs:
        return None
    return Section(
        title, [Verdict("open", f"The points could not be compared: {found.attrs['problem']}")], []
    )
