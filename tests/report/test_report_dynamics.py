"""Runs that follow their state after a quench: sections on the page and in the terminal, figures through time, single times."""

import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from rich.console import Console

from nqs_sae_service.report import show, write_report
from nqs_sae_service.report.figures import draw
from nqs_sae_service.report.reading import Run, read
from nqs_sae_service.report.records import Section, Table
from nqs_sae_service.report.summary import summarise

Factory = Callable[..., Path]
STEERED = [
    name
    for target in ("abs_magnetization", "half_chain_correlation")
    for name in (f"steering_{target}_t0.5", f"steering_{target}_t1.5", f"later_{target}")
]
NAMES = [
    "energy",
    "evolution",
    "drift",
    "sae",
    "correlations",
    "configurations",
    *STEERED,
    "followed",
    "atlas",
    "attribution",
]
ENDED = "t = 0.7: the step has collapsed to 1.0e-06"


def early(dataset: xr.Dataset) -> xr.Dataset:
    """The same run, collapsed at t = 0.7."""
    if "time" not in dataset.dims or "later" in dataset.dims:
        return dataset
    dataset = dataset.isel(time=slice(0, 8))
    return dataset.assign_attrs(ended=ENDED) if "tdvp_error" in dataset else dataset


def inexact(dataset: xr.Dataset) -> xr.Dataset:
    lost = {name: dataset[name] * np.nan for name in ("observable_exact", "infidelity") if name in dataset}
    return dataset.assign(lost) if "tdvp_error" in dataset else dataset


def relaxing(dataset: xr.Dataset) -> xr.Dataset:
    """Imaginary time by projected t-VMC from a product state."""
    if "tdvp_error" not in dataset:
        return dataset
    energy = -20 - 10 * (1 - np.exp(-3 * dataset.time))
    attributes = {"imaginary": 1, "method": "ptvmc", "start_state": "neel", "start_infidelity": 3e-8}
    return dataset.assign(energy=energy).assign_attrs(attributes)


def section(directory: Path, title: str) -> Section:
    return next(found for found in summarise(read(directory)).sections if found.title == title)


def rows(table: Table) -> dict[str, dict[str, str]]:
    """Rows by their first cell, the heading left out, each as cells by column."""
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def said(found: Section) -> dict[str, str]:
    return {verdict.text: verdict.kind for verdict in found.verdicts}


def text_of(page: str) -> str:
    return re.sub(r"<[^>]+>", "", page).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


@pytest.fixture(scope="module")
def drawn(quenched_run: Path) -> dict[str, Figure]:
    return draw(read(quenched_run))


def test_dynamics_says_how_far_and_how_well(quenched_run: Path) -> None:
    found = said(section(quenched_run, "Dynamics"))
    reached, energy, distance = found
    assert reached.startswith(
        "Dynamics: TDVP in real time from the ground state to t = 2 in 180 steps; TDVP error"
    )
    assert "steps as short as 0.0027" in reached
    assert energy == "Energy drift: at most (1.333 ± 0.094)e-4 of |E(0)| at t = 2."
    assert distance == (
        "Exact evolution: observables differ from it by at most 0.00320 ± 0.00040 (half_chain_correlation) at t = 2, "
        "infidelity at most 1.6e-4 at t = 2."
    )
    assert list(found.values()) == ["note", "good", "good"]


def test_table_of_dynamics_holds_the_numbers_of_the_file(quenched_run: Path) -> None:
    quantities, observables = section(quenched_run, "Dynamics").tables
    values = rows(quantities)
    with xr.open_dataset(quenched_run / "dynamics.nc") as stored:
        integrated = float((stored.tdvp_error * 0.1).sum())
        largest = float(stored.tdvp_error.max())
    assert values["Hamiltonian after"]["value"] == "tfim, h = 0.5 (before: 1.0)"
    assert float(values["TDVP error"]["value"]) == pytest.approx(largest, rel=1e-2)
    assert float(values["TDVP error, integrated"]["value"]) == pytest.approx(integrated, rel=1e-2)
    assert (values["steps"]["value"], values["recorded times"]["value"]) == ("180", "21")
    row = rows(observables)["half_chain_correlation"]
    assert (row["distance"], row["at t"]) == ("-0.00320 ± 0.00040", "2")
    assert row["first"] == "0.40000 ± 0.00040"


def test_followed_features_lead_with_their_verdicts(quenched_run: Path) -> None:
    found = section(quenched_run, "Features through time")
    sentences = said(found)
    assert sentences["residual_1, sigma_x: followed: <feature> 5 & sigma_x through time"] == "good"
    assert list(sentences.values()) == ["good"] * 3 + ["open"] * 3
    (table,) = found.tables
    assert table.title == "Followed features at 5 held-out times of 21 (95% intervals)"
    with xr.open_dataset(quenched_run / "features.nc") as stored:
        at = {"layer": "residual_2", "observable": "half_chain_correlation"}
        held = stored.isel(time=np.flatnonzero(stored.held_out.values)).sel(at)
        lowest = np.abs(held.followed_pearson).min().item()
        control = np.abs(held.followed_control_pearson).min("time").max().item()
    row = next(row for row in table.rows if row[:2] == ("half_chain_correlation", "residual_2"))
    cells = dict(zip(table.columns, row, strict=True))
    assert cells["feature"] == "4"
    assert cells["lowest |r|"].startswith(f"{lowest:.3f} [")
    assert cells["its lowest |r|"] == f"{control:.3f}"
    assert cells["at t"] == "1.8"


def test_without_sentences_the_intervals_decide(make_quenched: Factory) -> None:
    def wordless(dataset: xr.Dataset) -> xr.Dataset:
        if "followed_verdict" not in dataset:
            return dataset
        beaten = dataset.followed_control_pearson.where(dataset.layer != "residual_2", 0.99)
        return dataset.drop_vars("followed_verdict").assign(followed_control_pearson=beaten)

    directory = make_quenched(stages=("features",), change=wordless)
    found = said(section(directory, "Features through time"))
    assert list(found.values()) == ["good"] * 3 + ["bad"] * 3
    assert next(iter(found)).startswith(
        "residual_1, abs_magnetization: feature 3, |r| on held-out times at least 0.9"
    )


def test_a_sentence_that_judges_nothing_is_a_note_and_one_without_evidence_is_open(
    make_quenched: Factory,
) -> None:
    def weak(dataset: xr.Dataset) -> xr.Dataset:
        if "followed_verdict" not in dataset:
            return dataset
        words = [["followed: 3", "not followed throughout: 17", "undefined: 5"]] * 2
        low = dataset.followed_low.where(dataset.observable != "abs_magnetization", 0.1)
        return dataset.assign(followed_verdict=(("layer", "observable"), words), followed_low=low)

    found = said(section(make_quenched(stages=("features",), change=weak), "Features through time"))
    kinds = [kind for text, kind in found.items() if text.startswith("residual_1")]
    assert kinds == ["open", "open", "note"]


def test_what_knows_no_time_shows_the_last_training_time(quenched_run: Path, make_quenched: Factory) -> None:
    def later_held_out(dataset: xr.Dataset) -> xr.Dataset:
        held_out = (
            ("time", (dataset.time.values > 1.25).astype(np.int8)) if "held_out" in dataset.coords else None
        )
        return dataset.assign_coords(held_out=held_out) if held_out else dataset

    titles = [table.title for table in summarise(read(quenched_run)).tables]
    assert "Observables at t = 2" in titles
    directory = make_quenched(change=later_held_out)
    summary = summarise(read(directory))
    titles = [table.title for table in summary.tables]
    assert "Observables at t = 1.2" in titles
    assert "Features at t = 1.2 (95% intervals)" in titles
    assert not any("at t = " in verdict.text for verdict in summary.verdicts)
    observables = next(table for table in summary.tables if table.title.startswith("Observables"))
    assert observables.definitions["exact"].startswith("that of the exactly evolved state")
    features = next(table for table in summary.tables if table.title.startswith("Features and controls"))
    with xr.open_dataset(directory / "features.nc") as stored:
        here = stored.sel(time=1.2, layer="residual_1", control="pca", observable="sigma_x")
        wanted = f"{here.control_pearson.item():.3f} ["
    row = next(row for row in features.rows if row[:2] == ("residual_1", "pca"))
    assert row[-1].startswith(wanted)


def test_recovered_energy_is_a_mean_over_time(quenched_run: Path) -> None:
    table = next(t for t in summarise(read(quenched_run)).tables if t.title.startswith("Dictionaries"))
    with xr.open_dataset(quenched_run / "sae.nc") as stored:
        wanted = stored.energy_recovered.sel(layer="residual_1", sae_seed=1).mean().item()
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert float(cells["energy recovered"]) == pytest.approx(wanted, abs=1e-4)
    assert table.definitions["energy recovered"].endswith("mean over 21 times")


def test_chains_that_disagree_at_any_time_are_a_fault(make_quenched: Factory) -> None:
    def apart(dataset: xr.Dataset) -> xr.Dataset:
        if "r_hat" not in dataset:
            return dataset
        return dataset.assign(r_hat=dataset.r_hat.where(dataset.time != 0.5, 1.4))

    (fault,) = (
        verdict.text
        for verdict in summarise(read(make_quenched(stages=("observables",), change=apart))).verdicts
        if verdict.kind == "fault"
    )
    assert "The chains disagree on abs_magnetization" in fault


def test_steering_says_at_which_time(quenched_run: Path, make_quenched: Factory) -> None:
    found = section(quenched_run, "Steering")
    assert [table.title.partition(" (")[0] for table in found.tables] == [
        "Steering at t = 0.5",
        "Steering at t = 1.5",
    ]
    begins = tuple(
        f"t = {time}: {what}" for time in (0.5, 1.5) for what in ("residual", "Steering: no feature")
    )
    assert all(text.startswith(begins) for text in said(found))

    def often(dataset: xr.Dataset) -> xr.Dataset:
        if "scale" not in dataset.dims:
            return dataset
        repeated = [dataset.isel(time=0)] * 5
        return xr.concat(repeated, xr.DataArray([0.0, 0.5, 1.0, 1.5, 2.0], dims="time", name="time"))

    directory = make_quenched(change=often)
    titles = [table.title.partition(" (")[0] for table in section(directory, "Steering").tables]
    assert titles == ["Steering at t = 0", "Steering at t = 2"]
    assert "steering_abs_magnetization_t0" in draw(read(directory))


def test_a_run_that_ended_early_warns(make_quenched: Factory) -> None:
    directory = make_quenched(change=early)
    found = section(directory, "Dynamics")
    assert found.verdicts[0].kind == "fault"
    assert found.verdicts[0].text.startswith(f"The evolution ended before t = 2, at {ENDED}.")
    assert rows(found.tables[0])["duration"]["value"] == "0.7 of 2"
    page = write_report(directory).read_text(encoding="utf-8")
    assert f'class="verdict fault"><b>Fault.</b>The evolution ended before t = 2, at {ENDED}.' in page
    figures = draw(read(directory))
    assert {text.get_text() for text in figures["drift"].legends[0].get_texts()} >= {"the step collapsed"}


def test_a_run_without_exact_values(make_quenched: Factory) -> None:
    directory = make_quenched(change=inexact)
    found = said(section(directory, "Dynamics"))
    assert found["Exact evolution: not known, nothing to compare with."] == "open"
    (names,) = ([text.get_text() for text in draw(read(directory))["evolution"].legends[0].get_texts()],)
    assert names == ["network (band: standard error)"]
    out = StringIO()
    show(directory, Console(file=out, width=140, color_system=None))
    assert "nan" not in out.getvalue()


def test_imaginary_time_has_no_drift(make_quenched: Factory) -> None:
    spec = '[dynamics]\nduration = 2.0\nstart = "neel"\n'
    directory = make_quenched(stages=("dynamics",), change=relaxing, spec=spec)
    reached, energy, _ = said(section(directory, "Dynamics"))
    assert reached.startswith("Dynamics: projected t-VMC in imaginary time from the Neel state to t = 2")
    assert "step infidelity at most" in reached
    assert energy.startswith("Energy in imaginary time: from -20.0000 to -29.97521 ± 0.00020 J")
    quantities = rows(section(directory, "Dynamics").tables[0])
    assert "energy drift" not in quantities
    assert quantities["start"]["value"] == "the Neel state (infidelity 3.0e-8)"
    top = draw(read(directory))["drift"].axes[0]
    assert top.get_ylabel() == "energy (total, J)"


@pytest.mark.parametrize(("error", "kind"), [(1e-5, "bad"), (3e-3, "open"), (np.nan, "bad")])
def test_a_drift_is_judged_by_its_error(make_quenched: Factory, error: float, kind: str) -> None:
    def drifting(dataset: xr.Dataset) -> xr.Dataset:
        if "tdvp_error" not in dataset:
            return dataset
        energy = -30 + 0.06 * dataset.time
        return dataset.assign(energy=energy, energy_error=("time", np.full(21, 30 * error)))

    found = said(section(make_quenched(stages=("dynamics",), change=drifting), "Dynamics"))
    assert next(k for text, k in found.items() if text.startswith("Energy drift: at most 0.00")) == kind


def test_terminal_shows_sections_after_the_verdicts(quenched_run: Path) -> None:
    out = StringIO()
    show(quenched_run, Console(file=out, width=160, color_system=None))
    text = " ".join(out.getvalue().split())
    order = (
        "Ground state: E =",
        "Dynamics: TDVP",
        "Energy drift: at most",
        "Exact evolution:",
        "followed:",
    )
    places = [
        text.index(part) for part in (*order, "Followed features at 5", "turning feature", "exact energy")
    ]
    assert places == sorted(places)


def test_page_has_the_sections(quenched_run: Path) -> None:
    page = write_report(quenched_run).read_text(encoding="utf-8")
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == [
        *(
            "Verdicts",
            "Dynamics",
            "Features through time",
            "Steering",
            "What the best features are like",
            "Attribution",
            "Numbers",
            "Figures",
            "Provenance",
            "Spec",
        )
    ]
    assert page.count("<figure>") == len(NAMES)
    text = text_of(page)
    for found in summarise(read(quenched_run)).sections:
        assert all(verdict.text in text for verdict in found.verdicts)
        assert all(
            cell in text for table in found.tables for row in table.rows for cell in row[table.group :]
        )
    through_time = page[page.index("<h2>Features through time") : page.index("<h2>Steering")]
    parts = ("verdict good", "verdict open", 'alt="followed"', "Followed features at")
    assert [through_time.index(part) for part in parts] == sorted(through_time.index(part) for part in parts)


def test_figures_of_a_run_with_dynamics(drawn: dict[str, Figure]) -> None:
    assert list(drawn) == NAMES
    correlation, evolution, drift, later = (
        drawn[name] for name in ("correlations", "evolution", "drift", "later_abs_magnetization")
    )
    assert correlation.axes[0].get_title(loc="left") == "residual 1, t = 2"
    assert [axes.get_title() for axes in evolution.axes] == [
        "abs magnetization",
        "half chain correlation",
        "sigma x",
    ]
    assert [axes.get_yscale() for axes in drift.axes] == ["linear", "log", "log"]
    assert [axes.get_title() for axes in later.axes][2] == "residual 1, turned at t = 1.5"
    assert drawn["steering_abs_magnetization_t0.5"].axes[0].get_title().endswith("t = 0.5")


def test_followed_figure_marks_held_out_times(drawn: dict[str, Figure]) -> None:
    figure = drawn["followed"]
    assert len(figure.axes) == 6
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["held-out time"].get_xdata(), [0.2, 0.6, 1.0, 1.4, 1.8])
    np.testing.assert_allclose(lines["|r| = 0.92"].get_ydata(), 0.92)
    assert {"untrained", "neuron", "pca", "raw spins", "random direction", "shuffled"} < set(lines)
    assert lines["pca"].get_linewidth() < lines["followed feature"].get_linewidth()
    assert (np.asarray(figure.axes[1].lines[0].get_ydata()) > 0.8).all()  # |r| of a negative correlation


def test_followed_figure_of_many_layers_and_times(make_quenched: Factory) -> None:
    def deep(dataset: xr.Dataset) -> xr.Dataset:
        if "followed_pearson" not in dataset:
            return dataset
        moments = np.linspace(0, 20, 81)
        dataset = dataset.isel(layer=[1, 0, 1, 1], time=moments.round().astype(int))
        held_out = ("time", (moments > 15).astype(np.int8))
        layers = [f"residual_{i}" for i in range(4)]
        return dataset.assign_coords(layer=layers, time=moments / 10, held_out=held_out)

    figure = draw(read(make_quenched(stages=("features",), change=deep)))["followed"]
    assert [axes.get_title().partition("\n")[2] for axes in figure.axes] == [
        f"residual 1, feature {feature}" for feature in (3, 17, 5)
    ]
    (span,) = [patch for patch in figure.axes[0].patches if patch.get_label() == "held-out times"]
    assert span.get_extents().x0 == pytest.approx(1.5125) or span.get_x() == pytest.approx(1.5125)


@pytest.mark.parametrize("change", [early, inexact, relaxing])
def test_text_of_the_figures_does_not_overlap(
    make_quenched: Factory,
    change: Callable[[xr.Dataset], xr.Dataset],
    clashes: Callable[[Figure], list[tuple[str, str]]],
) -> None:
    for name, figure in draw(read(make_quenched(change=change))).items():
        assert clashes(figure) == [], name


def test_nothing_known_after_the_quench(make_quenched: Factory) -> None:
    def lost(dataset: xr.Dataset) -> xr.Dataset:
        floats = {n: v * np.nan for n, v in dataset.data_vars.items() if v.dtype.kind == "f"}
        return dataset.assign(floats)

    directory = make_quenched(change=lost)
    assert draw(read(directory)) == {}
    out = StringIO()
    show(directory, Console(file=out, width=140, color_system=None))
    assert "nan" not in out.getvalue()
    assert "Energy after the quench: not known." in out.getvalue()


def test_dynamics_is_missing_only_where_it_is_asked_for(make_run: Factory, make_quenched: Factory) -> None:
    still, quenched = read(make_run()), read(make_quenched(stages=("ground_state",)))
    assert isinstance(still, Run)
    assert isinstance(quenched, Run)
    assert still.missing == []
    assert quenched.missing[0] == "dynamics"


def test_a_sweep_of_quenches_has_the_followed_features(tmp_path: Path, make_quenched: Factory) -> None:
    directory = tmp_path / "swept"
    for field in (0.5, 2.0):
        make_quenched(f"swept/dynamics.hamiltonian.h={field}")
    (table,) = summarise(read(directory)).tables
    course = rows(table)["0.5"]["|r| sigma_x"]
    assert re.fullmatch(r"0\.5\d\d \([+-]0\.\d{3}\)", course)
    assert "held-out" in table.definitions["|r| columns"]
    figures = draw(read(directory))
    assert figures["sweep_correlations"].axes[0].get_ylabel() == "|r| on test chains, last time"
