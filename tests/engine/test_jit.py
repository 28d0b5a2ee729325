import subprocess
import sys
import textwrap

import numpy as np
import pytest

from nqs_sae_service.engine.jit import _OwnCopies, numba

PROGRAM = """
import numpy as np
from nqs_sae_service.engine.jit import njit

@njit()
def helper(x, depth):
    if depth == 0:
        return x.sum()
    return helper(x, depth - 1) + x[0]

@njit()
def kernel(x, depth):
    return helper(x, depth)

print(repr(float(kernel(np.arange(8.0), 3))))
(overload,) = kernel.overloads.values()
library = overload.library
defined = {f.name: f.linkage.name for f in library._final_module.functions if not f.is_declaration}
print(sorted({linkage for name, linkage in defined.items() if "helper" in name}))
print("linkonce_odr" in defined.values())
"""


def test_a_kernel_owns_its_copies_of_what_it_calls(tmp_path):
    """Or a process that compiled the callee would run other code than one that found the caller in the cache."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM), encoding="utf-8")
    lines = subprocess.run(
        [sys.executable, str(program)], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert float(lines[0]) == np.arange(8.0).sum()
    assert lines[1:] == ["['internal']", "False"]


def test_the_body_of_a_parallel_loop_is_translated_in_its_kernel_alone(monkeypatch):
    """What it refers to while it runs, here the texts it prints, it finds there as well."""
    translated = []
    finalize = _OwnCopies._finalize_final_module
    monkeypatch.setattr(
        _OwnCopies, "_finalize_final_module", lambda self: (translated.append(self.name), finalize(self))
    )

    @numba.njit(parallel=True)
    def kernel(x):
        total = np.empty(len(x))
        for i in numba.prange(len(x)):
            total[i] = x[i].sum()
            if total[i] < 0:
                print("negative", i)
        return total

    x = np.arange(-3.0, 9.0).reshape(4, 3)
    np.testing.assert_array_equal(kernel(x), x.sum(axis=1))
    assert any("kernel" in name for name in translated)
    assert not any("parfor" in name or "ufunc" in name.lower() for name in translated)


@pytest.mark.parametrize("target", ["cpu", "parallel"])
def test_universal_functions_of_other_packages_still_work(target):
    @numba.guvectorize(["void(float64[:], float64[:])"], "(n)->()", target=target)
    def total(x, out):
        out[0] = x.sum()

    @numba.vectorize(["float64(float64)"], target=target)
    def twice(x):
        return 2 * x

    x = np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(total(x), x.sum(axis=1))
    np.testing.assert_array_equal(twice(x), 2 * x)
