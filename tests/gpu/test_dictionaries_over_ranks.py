"""A dictionary whose features are spread over ranks with a GPU each: the gradients of the dense twin."""

import subprocess
from pathlib import Path

import emulation
import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("dictionary_gradients_over_ranks.py")


def test_gradients_are_those_of_the_dense_twin(mpiexec, tmp_path):
    if emulation.COMPILER is None:
        pytest.skip("no C++20 compiler to emulate the kernels with")
    command = [*mpiexec(2), "-m", "mpi4py", SCRIPT, tmp_path / "gradients.npz"]
    subprocess.run(command, check=True, timeout=300)
    arrays = np.load(tmp_path / "gradients.npz")
    names = [name for name in arrays.files if name.startswith("found")]
    assert len(names) == 3 * 6
    for name in names:
        expected = arrays[name.replace("found", "expected")]
        np.testing.assert_allclose(arrays[name], expected, atol=2e-6, err_msg=name)
    losses = {name: float(arrays[name]) for name in names if name.endswith("loss")}
    assert len(set(losses.values())) == 3  # the auxiliary loss is at work
