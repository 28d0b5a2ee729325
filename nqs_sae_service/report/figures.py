"""The figures of a run as files: drawn on matplotlib ``Figure`` objects (no pyplot, no global state), PNG and SVG."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import xarray as xr
from matplotlib.figure import Figure

from ..datasets.files import replace_atomically
from .hybrid import networks
from .moments import moment, settled, shown_times
from .plots.attribution import agreement_figure, atlas_figure
from .plots.compared import comparison_figure
from .plots.completeness import completeness_figure
from .plots.configurations import configurations_figure
from .plots.correlations import correlation_figure
from .plots.crosscoder import crosscoder_figure
from .plots.evolution import drift_figure, observables_figure
from .plots.followed import followed_figure
from .plots.heads import heads_figure
from .plots.hybrid import hybrid_figure
from .plots.later import later_figure
from .plots.scaling import scaling_figure
from .plots.steering import steering_figure
from .plots.style import STYLE
from .plots.sweep import sweep_figures
from .plots.training import dictionary_figure, energy_figure
from .reading import Run, Sweep, read
from .values import labels

DPI = 150
Format = Literal["png", "svg"]
FORMATS: tuple[Format, ...] = ("png", "svg")


class Images:
    """The figures of a run or sweep, drawn once and rendered at most once in each format."""

    def __init__(self, found: Run | Sweep) -> None:
        self.figures = draw(found)
        self._rendered: dict[tuple[str, Format], bytes] = {}

    def bytes(self, name: str, kind: Format) -> bytes:
        """One figure as the bytes of a file."""
        if (name, kind) not in self._rendered:
            self._rendered[name, kind] = render(self.figures[name], kind)
        return self._rendered[name, kind]


def write_figures(run_dir: Path | str, images: Images | None = None) -> list[Path]:
    """Write every figure the run or sweep has data for to ``<run>/figures/``; returns the paths.

    ``images`` of the same directory, if it has been drawn already. Raises ``UserError`` when the directory is neither a run
    nor a sweep, OSError when it cannot be written.
    """
    directory = Path(run_dir) / "figures"
    images = images or Images(read(run_dir))
    directory.mkdir(exist_ok=True)
    return [_write(directory, name, images, kind) for name in images.figures for kind in FORMATS]


def draw(found: Run | Sweep) -> dict[str, Figure]:
    """Name to figure, in the order of the report; a figure without a single finite number is left out."""
    with mpl.rc_context(STYLE):
        if isinstance(found, Sweep):
            others = {
                "comparison": comparison_figure(found.comparison),
                "scaling": scaling_figure(found.scaling),
                "hybrid": hybrid_figure(networks(found.points)),
            }
            return sweep_figures(found) | {name: figure for name, figure in others.items() if figure}
        stages = settled(found.stages)
        followed = {"followed": followed_figure(found.stages["features"])} if "features" in stages else {}
        drawn = {name: figure for stage, data in stages.items() for name, figure in _of(stage, data).items()}
        drawn |= followed
        if attributed := stages.get("attribution"):
            drawn |= {
                "atlas": atlas_figure(attributed, stages.get("features", xr.Dataset())),
                "attribution": agreement_figure(attributed),
            }
        if complete := stages.get("completeness"):
            drawn["completeness"] = completeness_figure(complete)
        if ranked := stages.get("heads"):
            drawn["heads"] = heads_figure(ranked)
        if crossed := stages.get("crosscoder"):
            drawn["crosscoder"] = crosscoder_figure(crossed)
        return {name: figure for name, figure in drawn.items() if figure is not None}


def render(figure: Figure, kind: Format) -> bytes:
    """The figure as the bytes of a file, without a date: equal data give equal bytes."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
    figure.set_layout_engine("none")  # the places found now serve every other format too
    return buffer.getvalue()


def _of(stage: str, dataset: xr.Dataset) -> dict[str, Figure | None]:
    if stage == "ground_state":
        return {"energy": energy_figure(dataset)}
    if stage == "dynamics":
        return {"evolution": observables_figure(dataset), "drift": drift_figure(dataset)}
    if stage == "sae":
        return {"sae": dictionary_figure(dataset)}
    if stage == "features":
        return {
            "correlations": correlation_figure(dataset),
            "configurations": configurations_figure(dataset),
        }
    if stage == "steering":
        return _steering(dataset)
    return {}


def _steering(dataset: xr.Dataset) -> dict[str, Figure | None]:
    """A figure for every target and steered time that is shown, and one for what happens later."""
    drawn: dict[str, Figure | None] = {}
    for target in labels(dataset, "target"):
        name = re.sub(r"[^\w.-]", "_", str(target))
        for shown in shown_times(dataset):
            time = "" if math.isnan(moment(shown)) else f"_t{moment(shown):g}"
            drawn[f"steering_{name}{time}"] = steering_figure(shown, target)
        drawn[f"later_{name}"] = later_figure(dataset, target)
    return drawn


def _write(directory: Path, name: str, images: Images, kind: Format) -> Path:
    path = directory / f"{name}.{kind}"
    content = images.bytes(name, kind)
    replace_atomically(path, lambda temporary: temporary.write_bytes(content))
    return path
