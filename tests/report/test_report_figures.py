"""Figures are there, hold what they must, survive missing numbers, and equal data give equal files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.image import imread

from nqs_sae_service.interpret.kinds import DIRECTIONS
from nqs_sae_service.report import write_figures
from nqs_sae_service.report.figures import draw, render
from nqs_sae_service.report.plots.configurations import configurations_figure
from nqs_sae_service.report.reading import read

Factory = Callable[..., Path]
NAMES = [
    *(
        "energy",
        "sae",
        "correlations",
        "configurations",
        "steering_abs_magnetization",
        "steering_half_chain_correlation",
    ),
    *("atlas", "attribution"),
]


def blank(dataset: xr.Dataset) -> xr.Dataset:
    """The same dataset with every number lost."""
    floats = {name: v * np.nan for name, v in dataset.data_vars.items() if v.dtype.kind == "f"}
    attributes = {key: np.nan if isinstance(value, float) else value for key, value in dataset.attrs.items()}
    return dataset.assign(floats).assign_attrs(attributes)


def sparse(dataset: xr.Dataset) -> xr.Dataset:
    """Every second number lost, and errors too."""
    lost = {}
    for name, variable in dataset.data_vars.items():
        if variable.dtype.kind == "f":
            keep = np.arange(variable.size).reshape(variable.shape) % 2 == 0
            lost[name] = variable.where(keep) if "error" not in str(name) else variable * np.nan
    return dataset.assign(lost)


def labels_of(figure: Figure) -> set[str]:
    return {text.get_text() for legend in figure.legends for text in legend.get_texts()}


@pytest.fixture(scope="module")
def drawn(whole_run: Path) -> dict[str, Figure]:
    return draw(read(whole_run))


def test_every_figure_is_written_as_png_and_svg(whole_run: Path) -> None:
    paths = write_figures(whole_run)
    assert [path.relative_to(whole_run / "figures").as_posix() for path in paths] == [
        f"{name}.{kind}" for name in NAMES for kind in ("png", "svg")
    ]
    assert sorted(paths) == sorted((whole_run / "figures").iterdir())  # no temporary file is left
    for path in paths[::2]:
        image = imread(path)
        assert image.shape[0] > 400
        assert image.shape[1] > 900
        assert 0.005 < (image[..., :3].min(axis=2) < 0.9).mean() < 0.5  # drawn on, and not filled


def test_energy_is_compared_with_the_exact_one(drawn: dict[str, Figure]) -> None:
    top, bottom = drawn["energy"].axes
    assert any(np.allclose(line.get_ydata(), -50.9426741143) for line in top.lines)
    assert bottom.get_yscale() == "log"
    assert "J" in top.get_ylabel()


def test_correlations_show_feature_and_every_control(drawn: dict[str, Figure]) -> None:
    figure = drawn["correlations"]
    controls = {"untrained", "neuron", "pca", "raw spins", "random direction", "shuffled"}
    assert labels_of(figure) == {"best feature", *controls}
    feature = figure.axes[1].lines[0].get_ydata()
    np.testing.assert_allclose(feature, [0.92, 0.83, 0.71])


def test_steering_shows_estimators_controls_budget_and_tangent(drawn: dict[str, Figure]) -> None:
    figure = drawn["steering_abs_magnetization"]
    feature = {"feature, exact", "feature, resampled", "feature, reweighted"}
    others = {"random direction", "other feature", "jastrow dial", "predicted slope", "energy budget ±2e-4"}
    assert labels_of(figure) == feature | others
    tangent = next(line for line in figure.axes[1].lines if line.get_label() == "predicted slope")
    rise = np.diff(tangent.get_ydata()) / np.diff(tangent.get_xdata())
    assert rise == pytest.approx(0.05)
    low, high = figure.axes[2].get_ylim()
    assert low < -2e-4 < 2e-4 < high


def test_all_directions_can_be_told_apart(
    drawn: dict[str, Figure],
    make_run: Factory,
    every_direction: Callable[[xr.Dataset], xr.Dataset],
    clashes: Callable[[Figure], list[tuple[str, str]]],
) -> None:
    """Each has a colour and a marker of its own, the same as where fewer directions are drawn."""
    many = draw(read(make_run("many", change=every_direction)))["steering_abs_magnetization"]
    names = {name.replace("_", " ") for name in DIRECTIONS[1:]}
    assert names < labels_of(many)
    assert clashes(many) == []

    def looks(figure: Figure) -> dict[str, tuple[str, str]]:
        bars = {bar.get_label(): bar.lines[0] for axes in figure.axes for bar in axes.containers}
        return {name: (line.get_color(), line.get_marker()) for name, line in bars.items() if name in names}

    found, fewer = looks(many), looks(drawn["steering_abs_magnetization"])
    assert len(set(found.values())) == len({colour for colour, _ in found.values()}) == len(names) == 12
    assert len(fewer) == 3
    assert fewer.items() <= found.items()


def test_the_atlas_shows_every_feature_and_the_one_that_follows_best(drawn: dict[str, Figure]) -> None:
    figure = drawn["atlas"]
    assert len(figure.axes) == 2 * 3
    assert labels_of(figure) == {"feature", "the largest |r|"}
    every, best = figure.axes[1].lines
    assert len(every.get_xdata()) == 24
    np.testing.assert_allclose(best.get_xdata(), [0.83])


def test_effects_stand_beside_the_line_of_equal_ones(drawn: dict[str, Figure]) -> None:
    figure = drawn["attribution"]
    assert labels_of(figure) == {"zero", "mean", "resample", "equal"}
    for line in figure.axes[0].lines[:3]:
        np.testing.assert_allclose(line.get_ydata(), 1.02 * line.get_xdata())


def test_text_does_not_overlap(
    drawn: dict[str, Figure], clashes: Callable[[Figure], list[tuple[str, str]]]
) -> None:
    for name, figure in drawn.items():
        assert clashes(figure) == [], name


def test_nothing_known_draws_nothing_and_little_known_draws_little(make_run: Factory) -> None:
    assert write_figures(make_run("blank", change=blank)) == []
    figures = draw(read(make_run("sparse", change=sparse)))
    assert list(figures) == NAMES
    for name in ("energy", "steering_abs_magnetization"):
        assert render(figures[name], "svg").startswith(b"<?xml")


def test_a_partial_run_has_the_figures_of_its_stages(make_run: Factory) -> None:
    assert list(draw(read(make_run(stages=("ground_state", "features"))))) == [
        "energy",
        "correlations",
        "configurations",
    ]


def test_equal_data_give_equal_files(make_run: Factory) -> None:
    directory = make_run(stages=("ground_state",))
    first, second = (render(draw(read(directory))["energy"], "svg") for _ in range(2))
    assert first == second


def test_a_sweep_is_drawn_against_its_parameter(sweep: Path) -> None:
    figures = draw(read(sweep))
    assert list(figures) == ["sweep_observables", "sweep_correlations"]
    axes = figures["sweep_correlations"].axes[1]
    assert axes.get_xlabel() == "hamiltonian.h"
    feature, control = axes.lines
    np.testing.assert_allclose(feature.get_xydata(), [[0.5, 0.83], [1.0, 0.83]])
    assert np.all(np.asarray(control.get_ydata()) < 0.83)


def test_configurations_are_drawn_with_their_token_and_value(
    drawn: dict[str, Figure], whole_run: Path
) -> None:
    figure, found = drawn["configurations"], read(whole_run)
    features = found.stages["features"]
    assert len(figure.axes) == 6
    for axes, place in zip(figure.axes, np.ndindex(2, 3), strict=True):
        sigma = features["top_configuration"].values[place]
        up, down, framed = (len(drawn.get_paths()) for drawn in axes.collections)
        assert (up, down) == ((sigma > 0).sum(), (sigma < 0).sum())
        token = features["top_token"].values[place]
        assert framed == 4 * (token >= 0).sum()
        assert len(axes.texts) == np.isfinite(features["top_value"].values[place]).sum()
    assert "abs magnetization" in figure.axes[0].get_title()
    assert "feature 3" in figure.axes[0].get_title()


def test_configurations_of_a_plane_are_squares_that_do_not_overlap(whole_run: Path) -> None:
    dataset = read(whole_run).stages["features"]
    x, y = np.divmod(np.arange(40), 8)
    plane = dataset.drop_dims("axis").assign(
        site_position=(("spin", "axis"), np.stack([x, y], axis=1).astype(float))
    )
    figure = configurations_figure(plane)
    assert figure is not None
    up, down, _ = figure.axes[0].collections
    centres = np.concatenate([path.vertices[:4].mean(axis=0) for c in (up, down) for path in c.get_paths()])
    centres = centres.reshape(-1, 2)
    apart = np.abs(centres[:, None] - centres[None]).max(axis=2) + 9 * np.eye(len(centres))
    assert len(centres) == 8 * 40
    assert apart.min() > 0.9
    assert configurations_figure(dataset.drop_vars("site_token")) is None
    assert configurations_figure(dataset.assign(top_configuration=0 * dataset["top_configuration"])) is None
