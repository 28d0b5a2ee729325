"""Activations in pieces: rectangles of chains and draws, rows of a stage file."""

import numpy as np
import pytest
import xarray as xr

from nqs_sae_service.sae.inputs import blocks
from nqs_sae_service.stages.inputs import Rows, hyperslabs, recorded


@pytest.mark.parametrize("n_draws", [1, 3, 7, 100])
def test_rectangles_tile_a_stretch_of_samples(n_draws):
    numbers = (
        np.arange(70).reshape(-1, n_draws) if 70 % n_draws == 0 else np.arange(7 * n_draws).reshape(7, -1)
    )
    for first in (0, 1, 5, 20):
        for last in (first + 1, first + 8, 41, 60):
            result = np.full(last - first, -1)
            parts = list(hyperslabs(first, min(last, numbers.size), n_draws))
            for chains, draws, place in parts:
                result[place] = numbers[chains, draws].reshape(-1)
            np.testing.assert_array_equal(
                result[: numbers.size - first], np.arange(first, min(last, numbers.size))
            )
            assert len(parts) <= 3


@pytest.mark.parametrize("chains", [[0, 1, 2, 3, 4], [1, 2, 5], [4]])
@pytest.mark.parametrize("pooled", [False, True])
def test_rows_of_a_file_are_the_rows_of_the_array(chains, pooled):
    x = np.random.default_rng(0).standard_normal((6, 300, 2, 1000)).astype(np.float32)
    chosen = x[chains].reshape(-1, 2, 1000)
    rows = Rows(
        recorded(xr.DataArray(x, dims=("chain", "draw", "token", "width")), np.array(chains)),
        chosen.shape,
        pooled,
    )
    expected = chosen.mean(axis=1) if pooled else chosen.reshape(-1, 1000)
    assert len(list(blocks(rows))) > 1
    np.testing.assert_array_equal(np.concatenate(list(blocks(rows))), expected)
