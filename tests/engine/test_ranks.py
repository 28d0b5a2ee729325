"""What processes of one run share, alone and through MPI."""

import subprocess

import numpy as np
import pytest
import ranks_program

from nqs_sae_service.engine.ranks import ALONE, Ranks
from nqs_sae_service.errors import NumericalError


def test_a_process_alone_gets_back_what_it_gives():
    array = np.arange(6.0).reshape(3, 2)
    for found in (ALONE.gather(array), ALONE.sum(array), ALONE.spread(array, 0), *ALONE.exchange([array])):
        assert found is array
    assert ALONE.agree("yes") == "yes"
    assert ALONE.collect(3) == [3]
    assert ALONE.share(5) == slice(0, 5)
    assert not ALONE.notified()
    ALONE.meet()
    with pytest.raises(NumericalError, match="here"):
        ALONE.together(lambda: (_ for _ in ()).throw(NumericalError("here")))


@pytest.mark.parametrize(("count", "size"), [(7, 3), (1024, 5), (3, 3), (2, 4)])
def test_shares_are_contiguous_and_even(count, size):
    shares = [range(count)[Ranks(rank, size).share(count)] for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_every_operation_through_mpi(mpiexec):
    command = [*mpiexec(2), ranks_program.__file__]
    out = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert out.returncode == 0, out.stderr
    assert out.stdout == "2 ranks agree\n"
