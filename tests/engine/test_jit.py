import subprocess
import sys
import textwrap

import numpy as np

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
