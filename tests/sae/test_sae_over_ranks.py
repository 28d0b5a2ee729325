"""Dictionaries whose features are spread over MPI ranks learn what one process learns, to rounding."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from dictionaries_over_ranks import FIRST, RECORDS, STEPS, continued, go_on, part, training

from nqs_sae_service.sae.dictionary import select_topk
from nqs_sae_service.sae.encode import keep_best

SCRIPT = Path(__file__).with_name("dictionaries_over_ranks.py")


@pytest.fixture(scope="module")
def before():
    """After the first steps on one process, by case."""
    return {case: go_on(training(case), FIRST) for case in RECORDS}


@pytest.fixture(scope="module")
def alone(before):
    return {case: continued(case, before[case]) for case in RECORDS}


@pytest.fixture(scope="module", params=[2, 3])
def over_ranks(request, before, mpiexec, tmp_path_factory):
    """What several processes make of the same."""
    folder = tmp_path_factory.mktemp("ranks")
    arrays = {f"{case}/{name}": array for case in RECORDS for name, array in before[case].items()}
    np.savez(folder / "before.npz", **arrays)
    command = [*mpiexec(request.param), "-m", "mpi4py", SCRIPT]
    subprocess.run([*command, folder / "before.npz", folder / "after.npz"], check=True, timeout=300)
    after = dict(np.load(folder / "after.npz"))
    return {case: part(after, f"{case}/") for case in RECORDS}


def test_features_are_dead_and_others_are_not(before):
    """What the comparisons below are to be worth."""
    dead = before["topk"]["0.idle"] >= RECORDS["topk"].dead_after
    assert 0.1 < dead.mean() < 0.9


@pytest.mark.parametrize("case", RECORDS)
def test_first_parameters_agree(case, alone, over_ranks):
    for name, expected in part(alone[case], "start/").items():
        np.testing.assert_allclose(over_ranks[case][f"start/{name}"], expected, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("case", RECORDS)
def test_a_step_agrees_to_rounding(case, alone, over_ranks):
    for name, expected in part(alone[case], "step/").items():
        size = np.abs(expected).max(initial=1e-30)
        np.testing.assert_allclose(
            over_ranks[case][f"step/{name}"], expected, rtol=1e-4, atol=2e-6 * size, err_msg=name
        )


@pytest.mark.parametrize("case", RECORDS)
def test_a_training_agrees(case, alone, over_ranks):
    expected, found = alone[case], over_ranks[case]
    np.testing.assert_allclose(found["last/0.history"], expected["last/0.history"], rtol=1e-3, atol=1e-3)
    for name in part(expected, "end/"):
        size = np.abs(expected[f"end/{name}"]).max()
        np.testing.assert_allclose(
            found[f"end/{name}"], expected[f"end/{name}"], atol=1e-3 * size, err_msg=name
        )


@pytest.mark.parametrize("case", RECORDS)
def test_a_checkpoint_serves_any_number_of_ranks(case, over_ranks):
    """Begun by several, ended by one."""
    trained, found = training(case), over_ranks[case]
    trained.restore(part(found, "step/"))
    last = go_on(trained, STEPS)
    assert last.keys() == part(found, "last/").keys()
    for name, array in last.items():
        expected = found[f"last/{name}"]
        assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(
            array, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max(initial=0), err_msg=name
        )


@pytest.mark.parametrize("k", [1, 3, 40, 100])
@pytest.mark.parametrize("digits", [1, 6], ids=["ties", "no ties"])
def test_the_best_of_candidates(k, digits):
    generator = np.random.default_rng(k)
    scores = np.round(generator.normal(size=(50, 80)), digits).astype(np.float32)
    scores[generator.random(scores.shape) < 0.2] = -np.inf
    scores[0] = -np.inf
    expected = select_topk(scores, k) & (scores > -np.inf)
    np.testing.assert_array_equal(keep_best(scores, k), expected)
