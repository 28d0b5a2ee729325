"""The stand-in refuses what CuPy refuses, and asks CuPy for nothing that it does not have."""

import ast
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import strict_cupy
from strict_cupy import pretended_gpu


@pytest.fixture
def cupy():
    with pretended_gpu() as module:
        yield module


@pytest.mark.parametrize(
    "mix",
    [
        lambda host, there: host + there,
        lambda host, there: there + host,
        lambda host, there: there @ host,
        lambda host, there: there[host.astype(int)],
        lambda host, there: there.__setitem__(0, host),
        lambda host, there: host.__setitem__(slice(None), there),
        lambda host, there: np.asarray(there),
        lambda host, there: np.exp(there),
        lambda host, there: np.stack([there, there]),
        lambda host, there: np.add.reduce(there),
        lambda host, there: there.__iadd__(host),
        lambda host, there: f"{there.sum():.3f}",
        lambda host, there: there.__add__([1.0, 2.0]),
    ],
)
def test_host_and_device_do_not_mix(cupy, mix):
    host = np.ones(3)
    with pytest.raises(TypeError):
        mix(host, cupy.asarray(host))


def test_functions_of_the_module_refuse_arrays_of_the_host(cupy):
    with pytest.raises(TypeError):
        cupy.concatenate([np.ones(2), np.ones(2)])
    with pytest.raises(TypeError):
        cupy.where(cupy.ones(2) > 0, np.ones(2), 0.0)


def test_scalars_and_its_own_arrays_are_welcome(cupy):
    there = cupy.asarray(np.arange(3.0))
    np.testing.assert_array_equal((np.float64(2) * there + 1 - np.float32(1)).get(), [0, 2, 4])
    assert isinstance(there.sum(), cupy.ndarray)
    assert float(there.sum()) == 3.0
    assert (there * 2)[1:].get().tolist() == [2, 4]


def test_it_is_another_memory(cupy):
    host = np.zeros(3)
    there = cupy.asarray(host)
    there += 1
    assert not host.any()
    there.get()[0] = 7
    assert there.get().max() == 1


def test_everything_that_was_asked_for_exists_in_cupy(chain_calls):
    """Names, keywords and operand types of every call of a whole run, looked up in the real module, which needs no GPU."""
    cupy = pytest.importorskip("cupy")
    calls, methods = chain_calls
    assert len(calls) > 40
    for path, keywords, types in sorted(calls, key=str):
        module, _, name = path.rpartition(".")
        if (
            module.startswith("cupyx.") or module == "cupy.cublas"
        ):  # load libraries that are not here; their source says as much
            assert keywords <= _parameters_in_source(module, name), (path, keywords)
            continue
        function = getattr(importlib.import_module(module), name)
        if isinstance(function, cupy.ufunc):
            known = [signature.split("->")[0] for signature in function.types]
            assert any(all(np.can_cast(t, k) for t, k in zip(types, row, strict=False)) for row in known), (
                path,
                types,
            )
            assert keywords <= {"out", "dtype"}, path
        else:
            assert keywords <= set(inspect.signature(function).parameters), (path, keywords)
    assert all(hasattr(cupy.ndarray, name) for name in methods)
    for name in strict_cupy.ATTRIBUTES:
        assert hasattr(cupy.ndarray, name), name


def _parameters_in_source(module, name):
    package, *inner = module.split(".")
    place = Path(importlib.util.find_spec(package).origin).parent.joinpath(*inner)
    paths = place.glob("*.py") if place.is_dir() else [place.with_suffix(".py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
    (found,) = [
        node
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    return {argument.arg for argument in found.args.args}


def test_importing_the_stand_in_leaves_no_trace():
    command = (
        "import sys; sys.path.insert(0, sys.argv[1]); import strict_cupy; assert 'cupy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", command, str(strict_cupy.__file__).rpartition("/")[0]], check=True)
