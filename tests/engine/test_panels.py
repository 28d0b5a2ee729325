"""A matrix spread over ranks in panels of columns, and its Cholesky solve."""

import numpy as np
import pytest

from nqs_sae_service.engine.panels import Panels, all_rows
from nqs_sae_service.engine.ranks import Ranks


def factor(rows, columns, dtype):
    generator = np.random.default_rng(0)
    parts = generator.normal(size=(2, rows, columns))
    return (parts[0] + 1j * parts[1] if dtype == np.complex128 else parts[0]).astype(dtype)


def spread(panels, matrix):
    own = panels.zeros(matrix, matrix.dtype)
    panels.add(own, lambda rows, columns: matrix[rows, columns])
    return own


@pytest.mark.parametrize(("size", "rows"), [(1, 300), (2, 700), (3, 20), (4, 5), (8, 1500)])
def test_panels_cover_the_lower_triangle_once_and_evenly(size, rows):
    covered, areas = np.zeros((rows, rows), int), []
    for rank in range(size):
        panels = Panels(Ranks(rank, size), rows)
        own = panels.own.values()
        for columns in own:
            covered[columns.start :, columns] += 1
        areas.append(sum((rows - c.start) * (c.stop - c.start) for c in own))
        assert max(c.stop - c.start for c in own) <= 128
    assert (covered[np.tril_indices(rows)] == 1).all()
    if rows > 16 * size:
        assert max(areas) < 1.05 * np.mean(areas)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("rows", [7, 700])
def test_the_solve_is_that_of_the_whole_matrix(in_ranks, size, dtype, rows):
    half = factor(rows, rows // 2 + 1, dtype)
    matrix, rhs = half @ half.conj().T, factor(rows, 1, dtype)[:, 0]
    expected = np.linalg.solve(matrix + 0.1 * np.eye(rows), rhs)

    def solve(ranks):
        panels = Panels(ranks, rows)
        np.testing.assert_array_equal(np.tril(panels.whole(spread(panels, matrix))), np.tril(matrix))
        return panels.solve(spread(panels, matrix), 0.1, rhs)

    first, *others = in_ranks(size, solve)
    np.testing.assert_allclose(first, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("wrong", [3, 290])
def test_a_matrix_that_is_not_positive_definite_is_noticed_by_all(in_ranks, wrong):
    matrix = np.eye(300)
    matrix[wrong, wrong] = -1.0

    def solve(ranks):
        panels = Panels(ranks, 300)
        return panels.solve(spread(panels, matrix), 0.5, np.ones(300))

    assert in_ranks(2, solve) == [None, None]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("columns", [2, 4200])
def test_products_of_rows_that_the_ranks_share(in_ranks, size, columns):
    block = factor(300, columns, np.float64)

    def multiply(ranks):
        panels = Panels(ranks, 300)
        own = panels.zeros(block, np.float64)
        for _ in range(2):
            panels.add_products(own, all_rows(block[ranks.share(300)], ranks))
        return panels.whole(own)

    for found in in_ranks(size, multiply):
        np.testing.assert_allclose(found, 2 * block @ block.T, atol=1e-10)
