"""A step of the natural gradient by several processes is that of one, up to rounding."""

import subprocess

import numpy as np
import pytest
import steps_over_ranks

# Of the largest element: rounding times the condition of T + shift, 1e4; conjugate gradients end at a residual of 1e-8.
TOLERANCES = {case: 1e-7 if "conjugate" in case else 1e-10 for case in steps_over_ranks.CASES}


@pytest.fixture(scope="module")
def alone():
    return {case: steps_over_ranks.step(case) for case in steps_over_ranks.CASES}


@pytest.mark.parametrize(
    ("processes", "cases"), [(2, list(steps_over_ranks.CASES)), (3, ["complex", "rbm"])], ids=["2", "3"]
)
def test_a_step_is_that_of_one_process(mpiexec, alone, tmp_path, processes, cases):
    command = [*mpiexec(processes), steps_over_ranks.__file__, str(tmp_path / "steps.npz"), *cases]
    subprocess.run(command, check=True, timeout=300)
    found = np.load(tmp_path / "steps.npz")
    for case in cases:
        for name, expected in alone[case].items():
            if name == "history_step_seconds":
                continue
            there, size = found[f"{case}/{name}"], np.abs(expected).max()
            np.testing.assert_allclose(there, expected, rtol=0, atol=TOLERANCES[case] * size, err_msg=name)
        np.testing.assert_array_equal(found[f"{case}/sigma"], alone[case]["sigma"])
