"""What a stage is: a function of spec sections and upstream datasets that returns one labelled dataset, or its pieces.

One name, three places: the TOML section ``[sae]``, the module ``stages/sae.py``, the file ``sae.nc``. A stage module defines

    STAGE = Stage(name=..., reads=(sections...), upstream=(stages...), version=1, run=run, estimate=estimate)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .cost import Cost

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import xarray as xr

    from ..datasets.netcdf import Streamed
    from ..engine.devices import Device
    from ..engine.ranks import Ranks
    from ..spec import Spec


class Context(Protocol):
    """What the runner hands to a stage. Upstream arrays are on the host; what is to be computed on is put on the device.

    ``ranks`` are the processes that compute a distributed stage together. All of them call ``tick`` and ``restore`` alike, and
    all return the whole dataset, of which the runner takes that of rank 0.
    """

    spec: Spec
    upstream: Mapping[str, xr.Dataset]
    device: Device
    ranks: Ranks

    def tick(
        self,
        done: int,
        total: int,
        message: str = "",
        state: Callable[[], dict[str, np.ndarray]] | None = None,
    ) -> None:
        """Report progress, and give the runner a chance to checkpoint and to stop. Call it at least once a second.

        ``state()`` returns everything needed to continue from here with the same bits; it is called only when a
        checkpoint is due or a stop was asked for (by all ranks then: it may gather). Without ``state`` the last checkpoint,
        or none, stands. Raises ``Stopped`` when a stop was asked for.
        """

    def restore(self) -> dict[str, np.ndarray] | None:
        """The arrays last given to ``tick`` by an earlier, interrupted attempt at this very stage, or None."""


def always(spec: Spec) -> bool:
    """What every run wants."""
    return True


@dataclass(frozen=True)
class Stage:
    """A link of the chain. ``version`` is bumped whenever the stage's numbers change: it is part of the key.

    A stage that is not ``wanted`` by a spec is no part of its chain, nor upstream of anything.

    A ``distributed`` stage is run by all processes of a run at once; rank 0 runs the others alone. ``sources`` are the keys
    of the spec that name files it starts from: what is in these files enters its key, and ``check`` raises UserError, before
    anything runs, where they do not fit the spec. A stage file among them is upstream by the key that names it; in an array
    every run is a source for each stage that is read of it, ``crosscoder.runs[0].samples``.
    """

    name: str
    reads: tuple[str, ...]
    upstream: tuple[str, ...]
    version: int
    run: Callable[[Context], xr.Dataset | Streamed]
    estimate: Callable[[Spec], Cost]
    distributed: bool = False
    sources: tuple[str, ...] = ()
    check: Callable[[Spec, Mapping[str, Path]], None] | None = None
    wanted: Callable[[Spec], bool] = always


__all__ = ["Context", "Cost", "Stage"]
