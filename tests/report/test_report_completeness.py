"""Completeness in the report."""

import numpy as np

from nqs_sae_service.datasets import labelled
from nqs_sae_service.report.completeness import completeness_section
from nqs_sae_service.report.plots.completeness import completeness_figure

ORDER = np.repeat([1, 2], [4, 6])


def dataset(own: float, neuron: float):
    """|r| of all strings of the dictionary and of the neurons."""
    rng = np.random.default_rng(0)
    r = np.stack([np.full(10, own), np.full(10, neuron)])[None] * np.where(rng.random(10) < 0.5, 1, -1)
    variables = {
        "order": ORDER,
        "frequency": np.linspace(0.1, 0.5, 10),
        "weight": np.zeros(10),
        "best_feature": np.zeros((1, 10), int),
        "pearson": r,
        "share": (np.abs(r)[..., :2] >= 0.5).astype(float),
        "half": np.array([[0.2, np.nan]]),
        "slope": np.array([[1.5, np.nan]]),
        "slope_error": np.array([[0.2, np.nan]]),
    }
    labels = {
        "layer": ["residual_1"],
        "source": ["dictionary", "neuron"],
        "string": [f"z{i}" for i in range(10)],
        "spins": [1, 2],
        "predictor": ["frequency", "weight"],
    }
    return labelled("completeness", variables, labels, {"threshold": 0.5})


def test_it_says_whether_the_dictionary_has_more_than_its_controls():
    good, bad = (completeness_section(dataset(*r)).verdicts[0] for r in ((0.8, 0.3), (0.4, 0.6)))
    assert good.kind == "good"
    assert "10 of 10" in good.text
    assert bad.kind == "bad"
    assert "the best control, neuron, has 10" in bad.text
    shares, sigmoids = completeness_section(dataset(0.8, 0.3)).tables
    assert shares.rows[0] == ("residual_1", "1", "100.0%", "0.0%")
    assert sigmoids.rows[1][2:] == ("–", "–")
    assert completeness_section(dataset(0.8, 0.3).drop_vars("share")) is None


def test_the_figure_draws_what_is_known():
    assert len(completeness_figure(dataset(0.8, 0.3)).axes) == 2
    assert completeness_figure(dataset(0.8, 0.3).isel(string=slice(0, 0))) is None
