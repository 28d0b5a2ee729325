"""The report on a crosscoder: what is said on top, in tables and in a figure, also of numbers that are lost."""

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from nqs_sae_service.datasets.schema import labelled
from nqs_sae_service.report import read, show, write_figures, write_report
from nqs_sae_service.report.crosscoder import crosscoder_section
from nqs_sae_service.report.figures import draw
from nqs_sae_service.report.records import Section
from nqs_sae_service.report.summary import summarise

Factory = Callable[..., Path]
VIEWS = ["step 0", "final"]
OBSERVABLES = ["abs_magnetization", "sigma_x"]
SPEC = 'name = "x"\n[crosscoder]\ncheckpoints = [0]\n'


def dataset(shared: int = 3, untrained: bool = True) -> xr.Dataset:
    """Of 10 features one is dead, ``shared`` are shared, and two are specific to the final network."""
    classes = np.full((2, 10), -2)
    classes[:, :shared], classes[:, 7:9], classes[:, 9] = -1, 1, -3
    norms = np.ones((2, 2, 10))
    norms[:, 0, 3:7], norms[:, 0, 7:9] = 0.35, 0.05
    specific = np.stack([(classes == view).sum(axis=1) for view in range(2)], axis=1)
    variables = {
        "decoder_norm": norms,
        "norm_share": norms / norms.sum(axis=1, keepdims=True),
        "specific_view": classes,
        "live_features": [9, 9],
        "shared_features": [shared, shared],
        "specific_features": specific,
        "explained_variance": [[0.91, 0.952], [0.93, 0.954]],
        "separate_explained_variance": [[0.96, 0.961], [0.96, 0.963]],
        "best_feature": [8, -1],
        "best_pearson": [0.83, np.nan],
        "best_low": [0.8, np.nan],
        "best_high": [0.86, np.nan],
        "control_pearson": [[0.6, np.nan], [-0.7, np.nan], [0.65, np.nan]],
        "gain": [0.13, np.nan],
        "gain_low": [0.1, np.nan],
        "gain_high": [0.16, np.nan],
    }
    coords = {
        "view": VIEWS,
        "other_view": VIEWS,
        "sae_seed": [1, 2],
        "observable": OBSERVABLES,
        "control": ["untrained", "neuron", "separate"],
    }
    if untrained:
        variables |= {
            "untrained_explained_variance": [[0.9, 0.91]],
            "untrained_live_features": [8],
            "untrained_shared_features": [8],
            "untrained_specific_features": [[0, 0]],
        }
        coords["initialisation"] = [1_000_000]
    return labelled("crosscoder", variables, coords, {"confidence": 0.95})


@pytest.fixture
def crossed(make_run: Factory) -> Callable[..., Path]:
    """A run with a crosscoder."""

    def make(found: xr.Dataset | None = None, name: str = "crossed") -> Path:
        directory = make_run(name, ("ground_state",), spec=SPEC)
        (dataset() if found is None else found).to_netcdf(directory / "crosscoder.nc")
        return directory

    return make


def section(directory: Path) -> Section:
    return next(s for s in summarise(read(directory)).sections if s.title == "Crosscoder")


def test_one_sentence_says_what_was_found(crossed: Callable[..., Path]) -> None:
    first, cost, following = section(crossed()).verdicts
    assert first.kind == "good"
    assert first.text == (
        "Of the features of 2 views 33 % are shared by all and 22 % specific to one; in crosscoders of untrained networks "
        "100 % and 0 %: training changes that."
    )
    assert "at most 4.0 points of explained variance (step 0: 0.9200 instead of 0.9600 alone)" in cost.text
    assert following.kind == "good"
    assert following.text == (
        "A feature of the crosscoder follows abs magnetization better than any control does; not so sigma x."
    )


def test_negative_findings_are_said(crossed: Callable[..., Path]) -> None:
    same = dataset()
    same["untrained_live_features"][:], same["untrained_shared_features"][:] = 9, 3
    same["untrained_specific_features"][:] = [[1, 1]]
    same["gain_low"][:], same["gain_high"][:], same["gain"][:] = -0.3, -0.1, -0.2
    first, _, following = section(crossed(same)).verdicts
    assert (first.kind, following.kind) == ("bad", "bad")
    assert first.text.endswith("no difference to training that shows.")
    assert (
        following.text
        == "No feature of the crosscoder follows an observable better than the best control does."
    )
    (alone, *_) = section(crossed(dataset(untrained=False), "alone")).verdicts
    assert alone.kind == "note"


def test_tables(crossed: Callable[..., Path]) -> None:
    views, best = section(crossed()).tables
    assert views.rows[1] == ("final", "0.74", "2.00", "0.9530", "0.9620", "0.9100")
    assert best.rows[0] == (
        "abs magnetization", "8, final", "0.830 [0.800, 0.860]", "neuron -0.700", "+0.130 [+0.100, +0.160]",
    )  # fmt: skip
    assert best.rows[1][1:] == ("–", "–", "–", "–")


def test_shown_written_and_drawn(crossed: Callable[..., Path]) -> None:
    directory = crossed()
    out = StringIO()
    show(directory, Console(file=out, width=140, color_system=None))
    assert "Views of the crosscoder (10 features)" in out.getvalue()
    assert "Crosscoder" in write_report(directory).read_text()
    assert directory / "figures" / "crosscoder.png" in write_figures(directory)
    heat, explained, *_ = draw(read(directory))["crosscoder"].axes
    (image,) = heat.images
    assert image.get_array().shape == (2, 9)  # the dead feature is left out
    assert len(explained.lines) == 2 + 2 + 1


def test_lost_numbers_are_dashes(crossed: Callable[..., Path]) -> None:
    found = dataset()
    blank = found.assign({name: v * np.nan for name, v in found.data_vars.items()})
    directory = crossed(blank)
    write_report(directory)
    assert "crosscoder" not in draw(read(directory))
    assert crosscoder_section(xr.Dataset()) is None
    bare = found.drop_vars([name for name in found.data_vars if name != "explained_variance"])
    write_report(crossed(bare, "bare"))


def test_it_is_missing_only_where_it_is_asked_for(make_run: Factory) -> None:
    others = tuple(stage for stage in read(make_run()).stages if stage != "crosscoder")
    assert read(make_run("without", others)).missing == []
    assert read(make_run("asked", others, spec=SPEC)).missing == ["crosscoder"]
