"""Stages after a quench: what a stage finds at every time, joined along a leading dimension ``time``.

A stage is written for one state. With ``dynamics`` upstream there is one at every recorded time, and the stage runs at each of
them in turn: ``At`` is its context there, in which all upstream datasets are those of that time. Its checkpoints hold what was
found at the times before besides what the stage itself needs to go on, so that a run goes on in the time where it was stopped.

What is learned or chosen once for all times comes from the training times alone; the others, ``held_out``, tell whether it
still holds where nobody looked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps

import numpy as np
import xarray as xr

from ..datasets.netcdf import Streamed
from .stage import Context

_NOW = "now."  # before the names of what a checkpoint holds of the stage at the time it was in
_SWEEPS_OF_A_TIME = 1 << 32  # the random numbers of different times never overlap

State = Callable[[], dict[str, np.ndarray]]


def over_time(context: Context) -> bool:
    """Whether there is a state at every time, and not just one."""
    return "dynamics" in context.upstream


def held_out(n_times: int) -> np.ndarray:
    """1 at the times (time,) int8 that nothing is trained or chosen on: every other one, the second first."""
    return (np.arange(n_times) % 2).astype(np.int8)


class At:
    """The context of a stage at time ``number`` of the dynamics; ``before`` are its datasets at the times before.

    ``saved`` are the arrays that it last gave to ``tick`` in an interrupted attempt at this time, which is one of ``n_times``,
    by default all.
    """

    def __init__(
        self,
        whole: Context,
        number: int,
        before: Sequence[xr.Dataset] = (),
        saved: Mapping[str, np.ndarray] | None = None,
        n_times: int | None = None,
    ) -> None:
        self.whole, self.number, self.before = whole, number, before
        self._done = number if n_times is None else len(before)
        self._n_times = whole.upstream["dynamics"].sizes["time"] if n_times is None else n_times
        self.spec, self.device, self.ranks = whole.spec, whole.device, whole.ranks
        self.upstream: Mapping[str, xr.Dataset] = {
            name: dataset.isel(time=number) if "time" in dataset.dims else dataset
            for name, dataset in whole.upstream.items()
        }
        self._saved, self._has_state = saved, saved is not None
        self._label = f"t = {float(self.upstream['dynamics']['time']):g}"

    def tick(self, done: int, total: int, message: str = "", state: State | None = None) -> None:
        """See ``Context``; a stage without a state of its own starts anew at its time, not before."""
        self._has_state |= state is not None
        offers = state is not None or (bool(self.before) and not self._has_state)
        self.whole.tick(
            self._done * total + done,
            self._n_times * total,
            f"{self._label}: {message}",
            partial(self._state, state) if offers else None,
        )

    def restore(self) -> dict[str, np.ndarray] | None:
        """See ``Context``."""
        return None if self._saved is None else dict(self._saved)

    def _state(self, own: State | None) -> dict[str, np.ndarray]:
        arrays = {_NOW + name: array for name, array in own().items()} if own else {}
        for number, dataset in enumerate(self.before[: self._done]):
            arrays |= _packed(dataset, str(number))
        return arrays


def contexts(context: Context) -> list[Context]:
    """The context of every time; the one that there is without a dynamics."""
    if not over_time(context):
        return [context]
    return [At(context, number) for number in range(context.upstream["dynamics"].sizes["time"])]


def training(contexts: Sequence[Context]) -> list[Context]:
    """Those of the training times."""
    return [at for at, held in zip(contexts, held_out(len(contexts)), strict=True) if not held]


def place(context: Context) -> tuple[int, ...]:
    """Where a result belongs along a leading dimension ``time``: (number,), and () without one."""
    return (context.number,) if isinstance(context, At) else ()


def first_sweep(context: Context) -> int:
    """The number that sweeps are counted from: chains of the same number take other random numbers at every time."""
    return sum(place(context)) * _SWEEPS_OF_A_TIME


def all_times(context: Context) -> Sequence[int]:
    """The numbers of all recorded times."""
    return range(context.upstream["dynamics"].sizes["time"])


def everywhere(
    run: Callable[[Context], xr.Dataset], times: Callable[[Context], Sequence[int]] = all_times
) -> Callable[[Context], xr.Dataset]:
    """The stage function ``run`` at every one of the ``times``; without a dynamics it stays what it is."""

    @wraps(run)
    def at_all_times(context: Context) -> xr.Dataset:
        if not over_time(context):
            return run(context)
        saved = context.restore() or {}
        now = {name.removeprefix(_NOW): array for name, array in saved.items() if name.startswith(_NOW)}
        done = _unpacked({name: array for name, array in saved.items() if not name.startswith(_NOW)})
        numbers = times(context)
        for number in numbers[len(done) :]:
            done.append(run(At(context, number, done, now or None, len(numbers))))
            now = {}
        return _joined(done, context, numbers)

    return at_all_times


def everywhere_in_pieces(run: Callable[[Context], Streamed]) -> Callable[[Context], Streamed]:
    """The same for a stage that is written piece by piece: one time after the other is computed when it is written."""

    @wraps(run)
    def at_all_times(context: Context) -> Streamed:
        if not over_time(context):
            return run(context)
        parts = [run(at) for at in contexts(context)]
        return Streamed(
            _joined([part.dataset for part in parts], context, all_times(context)),
            {name: ((len(parts), *shape), kind) for name, (shape, kind) in parts[0].large.items()},
            (
                (name, (number, *where), values)
                for number, part in enumerate(parts)
                for name, where, values in part.pieces
            ),
        )

    return at_all_times


def _joined(datasets: Sequence[xr.Dataset], context: Context, numbers: Sequence[int]) -> xr.Dataset:
    """Datasets of several times as one: coordinates and attributes are those of the first."""
    return xr.concat(
        datasets,
        context.upstream["dynamics"]["time"].isel(time=list(numbers)),
        data_vars="all",
        coords="minimal",
        compat="override",
        join="exact",
        combine_attrs="override",
    )


def _packed(dataset: xr.Dataset, prefix: str) -> dict[str, np.ndarray]:
    """A dataset as plain arrays: the values by name and, as one text, all the rest."""
    arrays = {f"{prefix}.{name}": variable.values for name, variable in dataset.variables.items()}
    arrays = {name: a.astype(str) if a.dtype.hasobject else a for name, a in arrays.items()}
    return {prefix: np.asarray(json.dumps(dataset.to_dict(data=False))), **arrays}


def _unpacked(arrays: Mapping[str, np.ndarray]) -> list[xr.Dataset]:
    """Inverse of ``_packed`` for the prefixes 0, 1, ..."""
    datasets: list[xr.Dataset] = []
    while (prefix := str(len(datasets))) in arrays:
        described = json.loads(str(arrays[prefix]))
        for group in ("coords", "data_vars"):
            for name, variable in described[group].items():
                variable["data"] = arrays[f"{prefix}.{name}"].astype(variable["dtype"], copy=False)
        datasets.append(xr.Dataset.from_dict(described))
    return datasets
