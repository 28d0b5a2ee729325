"""Networks that learned a teacher, and sweeps over which heads are full."""

import json

import numpy as np
import pytest
import xarray as xr

from nqs_sae_service.datasets import Origin, labelled, write_stage
from nqs_sae_service.report import read, show, write_report
from nqs_sae_service.report.figures import draw
from nqs_sae_service.report.hybrid import Network, hybrid_section, learned_section, networks

FULL = {"ranked": 0.125, "random": 0.125, "fixed": 0.125, "layers": 0.25, "kernel": 0.0}


def state(word):
    kinds = ["full"] + 7 * ["kernel"]
    attention = kinds if word == "ranked" else word  # the kinds of ranked heads are written out
    record = {"kind": "transformer", "width": 16, "heads": 4, "layers": 2, "attention": attention}
    return record | ({"share": 0.5} if word == "layers" else {})


def write_point(sweep, word, seed, energy, score=None):
    coordinates = {"seed": seed, "state.attention": word}
    directory = sweep / f"seed={seed},state.attention={word}"
    directory.mkdir(parents=True)
    (directory / "spec.toml").write_text("")
    (directory / "status.json").write_text(json.dumps({"coordinates": coordinates, "state": "done"}))
    attributes = {"final_energy": energy, "final_energy_error": 0.01, "v_score": score or 1e-3 * seed}
    dataset = labelled("ground_state", {"step_seconds": np.array([0.5, 0.6, 9.0])}, {}, attributes)
    sections = json.dumps({"state": state(word)})
    write_stage(
        dataset,
        directory / "ground_state.nc",
        Origin("ground_state", f"{word}{seed}", 1, sections, 1, 1, "", ""),
    )


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hybrid")
    energies = {"ranked": -10.0, "random": -9.0, "fixed": -10.001, "layers": -10.5, "kernel": -8.0}
    for word, energy in energies.items():
        for seed in (1, 2, 3):
            write_point(folder, word, seed, energy + 0.01 * seed)
    return folder


def test_points_that_differ_in_seeds_are_one_network(sweep):
    found = {network.attention: network for network in networks(read(sweep).points)}
    assert set(found) == set(FULL)
    for word, network in found.items():
        assert network.full == (0.5 if word == "layers" else FULL[word])
        assert network.seconds == 0.6
        assert network.scores.tolist() == pytest.approx([1e-3, 2e-3, 3e-3])
    mean, error = found["ranked"].energy
    assert mean == pytest.approx(-9.98)
    assert error == pytest.approx(0.01 / np.sqrt(3))
    assert Network("", 0, np.array([1.0, 1.0]), np.array([3.0, 4.0]), *3 * [np.nan]).energy == (1.0, 2.5)


def test_ranked_heads_are_held_against_every_rival(sweep):
    section = hybrid_section(read(sweep).points)
    assert [verdict.kind for verdict in section.verdicts] == ["good", "open", "bad"]
    lower, same, higher = (verdict.text for verdict in section.verdicts)
    assert "is lower than that of random" in lower
    assert "cannot be told from that of fixed" in same
    assert "is higher than that of layers (0.5 full)" in higher
    assert "The V-score cannot be told from theirs: 1.0 of it [0.28, 3.5] (95 %)." in higher
    assert len(section.tables[0].rows) == 5
    assert draw(read(sweep))["hybrid"].axes
    assert "What do full heads buy?" in write_report(sweep).read_text(encoding="utf-8")


def test_v_scores_decide_where_energies_do_not(tmp_path):
    for seed in (1, 2, 3):
        write_point(tmp_path, "ranked", seed, -10.0, 1e-5 * (1 + 0.1 * seed))
        write_point(tmp_path, "random", seed, -10.0, 1e-4 * (1 + 0.1 * seed))
    (verdict,) = hybrid_section(read(tmp_path).points).verdicts
    assert verdict.kind == "good"
    assert "cannot be told from that of random" in verdict.text
    assert "The V-score is lower than theirs: 0.10 of it [0.083, 0.12] (95 %)." in verdict.text


def test_one_seed_decides_nothing(tmp_path):
    write_point(tmp_path, "ranked", 1, -10.0)
    write_point(tmp_path, "random", 1, -9.0)
    (verdict,) = hybrid_section(read(tmp_path).points).verdicts
    assert verdict.kind == "open"
    assert "cannot be told from that of random" in verdict.text
    assert verdict.text.endswith("The V-score cannot be told from theirs: 1.0 of it.")


def test_points_with_the_same_heads_have_no_such_section(tmp_path):
    for seed in (1, 2):
        write_point(tmp_path, "kernel", seed, -8.0)
    assert hybrid_section(read(tmp_path).points) is None


def test_a_run_says_how_far_it_is_from_its_teacher():
    attributes = {
        "infidelity_taken_over": 0.6,
        "infidelity_matched": 0.1,
        "final_infidelity": 1e-3,
        "infidelity_samples": 512,
    }
    (verdict,) = learned_section(xr.Dataset(attrs=attributes)).verdicts
    assert "0.60 with parameters taken over, 0.10 with heads matched" in verdict.text
    assert learned_section(xr.Dataset()) is None


def test_the_terminal_shows_it(sweep, capsys):
    from rich.console import Console

    show(sweep, Console(width=160))
    assert "What do full heads buy?" in capsys.readouterr().out
