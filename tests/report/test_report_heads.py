"""Attention heads in the report."""

import numpy as np
import pytest

from nqs_sae_service.datasets import labelled
from nqs_sae_service.report.heads import heads_section
from nqs_sae_service.report.plots.heads import heads_figure

RANDOM = np.linspace(0.20, 0.24, 19)


def dataset(strongest=0.5, stability=0.95, blocks=2, heads=3):
    """Heads whose scores fall with their number; the curve of random orders lies at 0.22."""
    count = blocks * heads
    score = np.linspace(1, 0, count).reshape(blocks, heads)
    kinds = np.broadcast_to(score, (2, 3, blocks, heads)).copy()
    kinds[:, 2] = np.nan  # a readout that says nothing
    area = np.array([strongest, 0.1, *RANDOM])
    curve = area[:, None] * np.linspace(0, 2, 5)
    variables = dict.fromkeys(
        ("receiver", "sender", "total", "gradient", "kappa", "raw_score", "score"), kinds
    )
    variables |= {
        "effect": np.ones((2, 3)),
        "resolved": np.array([[1, 1, 0.0]] * 2),
        "mean_score": score,
        "set_score": np.stack([score, 0.9 * score]),
        "rank": np.arange(1, count + 1).reshape(blocks, heads),
        "gradient_score": score[::-1],
        "gradient_agreement": np.array([[0.9, 0.8, np.nan]] * 2),
        "infidelity": curve,
        "energy_change": curve,
        "energy_change_error": 0.1 * curve,
        "ess": np.full(curve.shape, 0.5),
        "area": area,
    }
    variables["sender"] = -0.5 * kinds
    coordinates = {
        "counterfactual": ["sector", "region"],
        "readout": ["log_psi", "energy", "magnetization"],
        "block": np.arange(1, blocks + 1),
        "head": np.arange(1, heads + 1),
        "sample_set": [1, 2],
        "order": ["strongest first", "weakest first", *(f"random {number}" for number in range(1, 20))],
        "knocked": np.linspace(0, count, 5).round().astype(int),
    }
    attributes = {"stability": stability, "gradient_rank_correlation": 0.7}
    return labelled("heads", variables, coordinates, attributes)


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({}, "good", "(p = 0.050 among 19 orders)"),
        ({"strongest": 0.235}, "open", "does not clearly beat"),
        ({"strongest": 0.15}, "bad", "is worse than"),
        ({"stability": 0.3}, "open", "0.30, not stable"),
        ({"stability": np.nan}, "open", "sets of samples is –"),
    ],
)
def test_the_verdict_asks_for_more_than_chance_and_for_stability(options, kind, said):
    (verdict,) = heads_section(dataset(**options)).verdicts
    assert verdict.kind == kind
    assert said in verdict.text
    assert "with the ranking by gradients 0.70" in verdict.text


def test_the_table_lists_the_first_heads():
    section = heads_section(dataset())
    assert section.figures == ("heads",)
    (table,) = section.tables
    assert table.columns[-3:] == ("log_psi", "energy", "magnetization")
    assert table.rows[0] == (
        "block 1, head 1",
        "1.000 ± 0.050",
        "0.40",
        "1.0",
        "-0.50",
        "1.0",
        "1.0",
        "–",
    )
    assert [row[0] for row in table.rows[3:]] == [f"block 2, head {head}" for head in (1, 2, 3)]
    long = heads_section(dataset(blocks=6, heads=8)).tables[0]
    assert len(long.rows) == 24
    assert "the first 24 of 48" in long.title
    assert heads_section(dataset().drop_vars("mean_score")) is None
    assert heads_section(dataset().drop_vars("area")).verdicts == []


def test_the_figure_draws_map_and_curves(clashes):
    figure = heads_figure(dataset())
    scores, infidelity, energy = figure.axes[:3]
    assert scores.images[0].get_array().shape == (2, 3)
    assert len(scores.texts) == 6
    assert {text.get_text() for text in infidelity.get_legend().get_texts()} == {
        "random order",
        "strongest first",
        "weakest first",
    }
    np.testing.assert_allclose(infidelity.lines[0].get_ydata(), RANDOM.mean() * np.linspace(0, 2, 5))
    assert energy.get_ylabel() == "energy change, relative"
    figure.savefig("/dev/null", format="png")
    assert clashes(figure) == []
    assert not heads_figure(dataset(blocks=12, heads=16)).axes[0].texts
    assert heads_figure(dataset().drop_vars("mean_score")) is None
    assert heads_figure(dataset().drop_vars(["infidelity", "energy_change"])) is not None
