"""The summary in the terminal holds the numbers of the files, for whole, partial, broken and swept runs."""

import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from nqs_sae_service.errors import UserError
from nqs_sae_service.interpret.kinds import OF_THE_DICTIONARY
from nqs_sae_service.report import show
from nqs_sae_service.report.reading import coordinates, read
from nqs_sae_service.report.records import Table
from nqs_sae_service.report.summary import summarise

Factory = Callable[..., Path]


def shown(directory: Path, width: int = 140) -> str:
    out = StringIO()
    show(directory, Console(file=out, width=width, color_system=None))
    return out.getvalue()


def verdicts(directory: Path) -> dict[str, str]:
    """Text of every verdict of a run, to its kind."""
    return {verdict.text: verdict.kind for verdict in summarise(read(directory)).verdicts}


def table(directory: Path, title: str) -> dict[tuple[str, ...], dict[str, str]]:
    """Rows of the table whose title starts so: headings and first cell, to the cells by column."""
    found: Table = next(t for t in summarise(read(directory)).tables if t.title.startswith(title))
    keyed = {tuple(row[: found.group + 1]): dict(zip(found.columns, row, strict=True)) for row in found.rows}
    assert len(keyed) == len(found.rows)
    return keyed


def test_ground_state_shows_energy_error_and_quality(whole_run: Path) -> None:
    rows = table(whole_run, "Ground state")
    values = {name: row["value"] for (name,), row in rows.items()}
    assert values["energy"] == "-50.94207 ± 0.00031"
    assert values["exact energy"] == "-50.9426741143"
    assert values["relative error"] == "(1.18 ± 0.61)e-5"
    assert values["R-hat"] == "1.0012"
    assert values["sectors"] == "0.493 up, 0.507 down"
    assert values["bounded steps"] == "12 of 300"


def test_observables_beside_exact_values(whole_run: Path) -> None:
    row = table(whole_run, "Observables")[("half_chain_correlation",)]
    assert row == {
        "observable": "half_chain_correlation",
        "mean": "0.4032 ± 0.0021",
        "exact": "0.404020",
        "R-hat": "1.003",
        "simple R2": "0.8700",
    }


def test_dictionaries_have_a_row_per_layer_and_seed(whole_run: Path) -> None:
    rows = table(whole_run, "Dictionaries (kind = topk, k = 8, input = token)")
    with xr.open_dataset(whole_run / "sae.nc") as stored:
        wanted = float(stored.explained_variance.sel(layer="residual_1", sae_seed=2))
        last = float(stored.l0.sel(layer="residual_1", sae_seed=2)[-1])
    assert len(rows) == 6
    assert float(rows[("residual_1", "2")]["explained"]) == pytest.approx(wanted, abs=1e-4)
    assert float(rows[("residual_1", "2")]["L0"]) == pytest.approx(last, abs=0.01)
    assert rows[("residual_2", "2")]["infidelity"] == "–"


def test_features_stand_beside_every_control(whole_run: Path) -> None:
    best = table(whole_run, "Features (95% intervals)")
    row = best[("residual_2 (participation ratio 3.71)", "half_chain_correlation")]
    assert (row["feature"], row["r"], row["q"]) == ("4", "-0.830 [-0.860, -0.800]", "0.012")
    beside = table(whole_run, "Features and controls")
    assert beside[("residual_2", "best feature")]["half_chain_correlation"] == row["r"]
    with xr.open_dataset(whole_run / "features.nc") as stored:
        names = [str(name).replace("_", " ") for name in stored.control.values]
        pca = float(stored.control_pearson.sel(layer="residual_2", control="pca", observable="sigma_x"))
    assert [name for layer, name in beside if layer == "residual_2"] == ["best feature", *names]
    assert beside[("residual_2", "pca")]["sigma_x"].startswith(f"{pca:.3f} [")
    assert beside[("residual_2", "raw spins")]["sigma_x"] == "–"


def test_steering_compares_slope_with_prediction_and_reach(whole_run: Path) -> None:
    rows = table(whole_run, "Steering (energy budget |dE/E| <= 2e-4)")
    row = rows[("residual_2 · abs_magnetization", "feature 17, reweighted")]
    assert row["predicted slope"] == "0.0500 ± 0.0011"
    assert row["measured slope"] == "0.0510 ± 0.0017"
    assert row["reach"] == "0.01200 ± 0.00040"
    assert row["monotone"] == "0.5 to 2"
    assert row["min ESS"] == "0.61"
    assert ("residual_2 · abs_magnetization", "jastrow dial, resampled") not in rows  # never computed


def test_how_the_targets_answer_a_field_is_said_with_the_field(whole_run: Path) -> None:
    rows = table(whole_run, "Susceptibilities")
    assert rows[("abs_magnetization",)] == {
        "target": "abs_magnetization",
        "chi": "0.810 ± 0.013",
        "field": "0.020",
    }
    assert rows[("half_chain_correlation",)]["field"] == "exact"


def test_verdicts_are_coloured_by_the_interval_of_the_gain(whole_run: Path) -> None:
    found = verdicts(whole_run)
    assert found["residual_1, sigma_x: <feature> 5 & gain"] == "bad"
    assert found["residual_1, abs_magnetization: <feature> 3 & gain"] == "open"
    steered = next(text for text in found if "turning feature 4" in text)
    assert "0.01200 ± 0.00040 within |dE/E| <= 2e-4" in steered
    assert "best control, jastrow dial, by 0.01560 ± 0.00040, efficiency 0.45: worse than this" in steered
    assert found[steered] == "bad"


def test_every_direction_is_named_with_what_it_turns_and_holds(
    make_run: Factory, every_direction: Callable[[xr.Dataset], xr.Dataset]
) -> None:
    directory = make_run("many", change=every_direction)
    found = verdicts(directory)
    first = next(text for text in found if text.startswith("Steering: "))
    assert first.startswith("Steering: no feature moves its target further than the best of its controls")
    assert list(found).index(first) < min(i for i, text in enumerate(found) if "turning feature" in text)
    steered = next(text for text in found if "turning feature 4" in text)
    assert (
        "best control, difference of means, by 0.02400 ± 0.00040, efficiency 0.45: worse than this" in steered
    )
    beside = (
        "of the same dictionary, clamp by 0.00960 ± 0.00040, add by 0.00480 ± 0.00040, leverage feature 7"
    )
    assert f"{beside} by 0.01800 ± 0.00040, natural gradient by 0.03000" in steered
    assert "natural gradient held (abs magnetization, energy) by 0.00600" in steered
    rows = table(directory, "Steering (energy budget |dE/E| <= 2e-4)")
    assert ("residual_2 · abs_magnetization", "other feature 11, exact") in rows


def test_a_feature_beyond_its_controls_needs_no_sentence_before(
    make_run: Factory, every_direction: Callable[[xr.Dataset], xr.Dataset]
) -> None:
    """Neither the other features nor all of them together are controls."""

    def ahead(dataset: xr.Dataset) -> xr.Dataset:
        many = every_direction(dataset)
        if "reach" in many:
            control = many["direction"].isin(["feature", *OF_THE_DICTIONARY])
            many["reach"] = many["reach"].where(control, 0.1 * many["reach"])
        return many

    found = verdicts(make_run("ahead", change=ahead))
    assert not any(text.startswith("Steering: ") for text in found)
    steered = next(text for text in found if "turning feature 4" in text)
    assert found[steered] == "good"
    assert ": better than all controls; of the same dictionary" in steered


@pytest.mark.parametrize(("errors_below", "faults"), [(2.5, 0), (3.5, 1)])
def test_an_energy_below_the_exact_one_is_a_fault(
    make_run: Factory, errors_below: float, faults: int
) -> None:
    def lowered(dataset: xr.Dataset) -> xr.Dataset:
        if "exact_energy" in dataset.attrs:
            exact, error = dataset.attrs["exact_energy"], dataset.attrs["final_energy_error"]
            dataset.attrs["final_energy"] = exact - errors_below * error
        return dataset

    found = [text for text, kind in verdicts(make_run(change=lowered)).items() if kind == "fault"]
    assert len([text for text in found if "below the exact one" in text]) == faults


def test_judgement_of_the_stage_decides_the_colour(make_run: Factory) -> None:
    def judged(dataset: xr.Dataset) -> xr.Dataset:
        if "verdict" not in dataset:
            return dataset
        texts = np.array(
            [["feature found: 3", "SAE not informative here: 1", "undefined: 2"], ["no better: 1"] * 3]
        )
        return dataset.assign(verdict=(("layer", "observable"), texts))

    kinds = [
        kind for text, kind in verdicts(make_run(change=judged)).items() if text.startswith("residual_1")
    ]
    assert kinds[:3] == ["good", "note", "note"]


def test_a_slope_off_its_prediction_and_chains_that_disagree_are_faults(make_run: Factory) -> None:
    def broken(dataset: xr.Dataset) -> xr.Dataset:
        if "slope_measured" in dataset:
            return dataset.assign(slope_measured=dataset.slope_measured + 0.05)
        return dataset.assign_attrs(r_hat=1.3) if "r_hat" in dataset.attrs else dataset

    faults = [text for text, kind in verdicts(make_run(change=broken)).items() if kind == "fault"]
    assert any("R-hat 1.300" in text for text in faults)
    assert sum("3 sigma apart" in text for text in faults) == 4


def test_attribution_is_judged_by_ablation_and_by_the_bare_activation(
    whole_run: Path, make_run: Factory
) -> None:
    *_, section = summarise(read(whole_run)).sections
    assert section.title == "Attribution"
    assert [verdict.kind for verdict in section.verdicts] == ["good", "good"]
    assert "r = 0.970 (the bare activation: 0.12)" in section.verdicts[0].text
    agreement, atlas, edges = section.tables
    assert len(agreement.rows) == 2 * 3 * 3
    assert agreement.rows[0][:3] == ("residual_1", "zero, gradient", "0.97 (0.95)")
    assert len(atlas.rows) == 2 * 3
    assert "(4096 samples)" in atlas.title
    assert [row[1] for row in edges.rows] == [f"residual_1, feature {i}" for i in (3, 17, 5, 2, 1)]
    assert edges.rows[0][2:] == ("0.500 ± 0.010", "0.520 ± 0.010")

    def worse(dataset: xr.Dataset) -> xr.Dataset:
        return dataset.assign(agreement=1 - dataset["agreement"]) if "agreement" in dataset else dataset

    *_, spoilt = summarise(read(make_run("worse", change=worse))).sections
    assert [verdict.kind for verdict in spoilt.verdicts] == ["bad", "bad"]


def test_attribution_is_missing_only_where_it_is_asked_for(make_run: Factory) -> None:
    others = tuple(stage for stage in read(make_run()).stages if stage != "attribution")
    assert read(make_run("without", others)).missing == []
    asked = 'name = "x"\n[attribution]\nsamples = 512\n'
    assert read(make_run("asked", others, spec=asked)).missing == ["attribution"]


def test_a_partial_run_says_what_is_missing(make_run: Factory) -> None:
    status = {"state": "running", "stage": "features", "progress": 0.42}
    text = " ".join(shown(make_run(stages=("ground_state", "sae"), status=status)).split())
    assert "running in stage features (42%)" in text
    assert "Not there yet: samples, observables, activations, features, steering" in text
    assert "Dictionaries" in text


def test_a_failed_run_says_why(make_run: Factory) -> None:
    found = verdicts(
        make_run(stages=(), status={"state": "failed", "stage": "samples", "error": "the disk is full"})
    )
    text, kind = next(iter(found.items()))
    assert kind == "fault"
    assert "failed in stage samples. the disk is full." in text


def test_a_run_that_draws_its_own_report_counts_as_done(make_run: Factory) -> None:
    directory = make_run(status={"state": "running", "stage": "steering", "progress": 1.0})
    assert not any("State of the run" in text for text in verdicts(directory))


def test_numbers_stay_whole_on_narrow_terminals(whole_run: Path) -> None:
    text = shown(whole_run, width=60)
    assert max(map(len, text.splitlines())) <= 60
    for whole in ("best control neuron", "gain -0.133 [-0.173, -0.093]", "predicted slope 0.0500 ± 0.0011"):
        assert whole in text


def test_a_run_of_nothing_but_nan(make_run: Factory) -> None:
    def lost(dataset: xr.Dataset) -> xr.Dataset:
        return dataset.assign(
            {n: v * np.nan for n, v in dataset.data_vars.items() if v.dtype.kind == "f"}
        ).assign_attrs({key: np.nan for key, value in dataset.attrs.items() if isinstance(value, float)})

    text = shown(make_run(change=lost))
    assert "the final energy is not known" in text
    assert "nan" not in text


def test_files_without_attributes_and_optional_variables(make_run: Factory) -> None:
    def bare(dataset: xr.Dataset) -> xr.Dataset:
        dropped = {
            "exact",
            "simple_function_r2",
            "verdict",
            "best_control",
            "stability",
            "reach",
            "control_low",
            "l0",
        }
        dropped |= {"step_bounded", "participation_ratio", "slope_predicted", "feature_density"}
        return dataset.drop_vars(dropped & set(dataset.data_vars)).drop_attrs(deep=False)

    text = shown(make_run(change=bare))
    assert "residual_1, sigma_x: gain over the best control -0.1" in text
    assert "Steering" in text


def test_a_sweep_has_a_row_per_point_in_order(sweep: Path) -> None:
    rows = table(sweep, "Points")
    assert [name for (name,) in rows] == ["0.5", "1.0", "10.0"]
    assert rows[("1.0",)]["|r| half_chain_correlation"] == "0.830 (+0.121)"
    assert rows[("10.0",)]["|r| half_chain_correlation"] == "–"
    assert rows[("10.0",)]["energy"] == "-50.94207 ± 0.00031"
    assert verdicts(sweep)["hamiltonian.h=10.0 failed. the disk is full"] == "fault"


def test_coordinates_of_a_point_are_read_from_its_name() -> None:
    assert coordinates("hamiltonian.h=0.5,sae.kind=topk,sae.k=8") == {
        "hamiltonian.h": 0.5,
        "sae.kind": "topk",
        "sae.k": 8,
    }


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_what_is_not_a_run_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"run directory"):
        show(tmp_path / name, Console(file=StringIO()))


def test_an_unreadable_stage_file_is_named(make_run: Factory) -> None:
    directory = make_run(stages=())
    (directory / "sae.nc").write_bytes(b"not NetCDF")
    with pytest.raises(UserError, match=r"sae\.nc: not a readable NetCDF file"):
        show(directory, Console(file=StringIO()))


def test_only_drawing_imports_matplotlib() -> None:
    code = "import sys; from nqs_sae_service.report import show; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
