"""A stand-in for CuPy that computes with NumPy and is at least as strict: it makes the whole GPU path run without a GPU.

Its arrays live in another memory as far as anybody can tell. They do not convert to NumPy by themselves, do not mix with
NumPy arrays in an operation, an index or an assignment, do not format as numbers, and NumPy's own functions refuse them
(CuPy would take some). Raw kernels are the real ``.cu`` sources, emulated on the CPU (``tests/gpu/emulation.py``): argument
types must match the C signature exactly, because CuPy passes whatever it is given.

``CALLS`` collects the name, keywords and operand types of every call, so that a test can look them up in the real CuPy.
"""

from __future__ import annotations

import inspect
import sys
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np

CALLS: set[tuple[str, frozenset[str], str]] = set()
METHODS: set[str] = set()
ATTRIBUTES = ("T", "dtype", "flags", "get", "imag", "nbytes", "ndim", "real", "shape", "size")


def _refuse(value, where):
    if isinstance(value, np.ndarray):
        raise TypeError(f"{where}: a NumPy array of shape {value.shape} meets an array on the device")


def _inside(value, where):
    """The NumPy data of a device array (also within tuples, lists, slices); scalars as they are."""
    if isinstance(value, ndarray):
        return value._data
    if isinstance(value, (list, tuple)):
        return type(value)(_inside(v, where) for v in value)
    if isinstance(value, slice):
        return slice(*(_inside(v, where) for v in (value.start, value.stop, value.step)))
    _refuse(value, where)
    return value


def _outside(value):
    """What comes back: arrays and NumPy scalars as device arrays (CuPy's reductions give arrays without axes)."""
    if isinstance(value, (np.ndarray, np.generic)):
        return ndarray(np.asarray(value))
    if isinstance(value, (list, tuple)):
        return (
            type(value)(_outside(v) for v in value)
            if type(value) in (list, tuple)
            else tuple(map(_outside, value))
        )
    return value


class ndarray:
    """An array on the pretended device."""

    __slots__ = ("__weakref__", "_data")
    __hash__ = None

    def __init__(self, data):
        self._data = data

    def get(self):
        """A copy in the memory of the host."""
        return self._data.copy()

    def __array__(self, *args, **kwargs):
        raise TypeError("implicit conversion of a device array to NumPy; use to_host")

    def __array_function__(self, function, types, args, kwargs):
        raise TypeError(f"numpy.{function.__name__} was called on a device array; use the array's namespace")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if method != "__call__" or kwargs:
            raise TypeError(f"numpy.{ufunc.__name__}.{method} was called on a device array")
        for value in inputs:
            _refuse(value, ufunc.__name__)
        if all(isinstance(value, (ndarray, np.generic)) for value in inputs) and any(
            isinstance(v, np.generic) for v in inputs
        ):
            return _outside(ufunc(*(_inside(v, ufunc.__name__) for v in inputs)))  # scalar * array
        raise TypeError(f"numpy.{ufunc.__name__} was called on a device array; use the array's namespace")

    def __getitem__(self, key):
        return _outside(self._data[_inside(key, "index")])

    def __setitem__(self, key, value):
        self._data[_inside(key, "index")] = _inside(value, "assignment")

    def __len__(self):
        return len(self._data)

    def __iter__(self):
        return (_outside(row) for row in self._data)

    def __bool__(self):
        return bool(self._data)

    def __int__(self):
        return int(self._data)

    def __float__(self):
        return float(self._data)

    def __complex__(self):
        return complex(self._data)

    @property
    def real(self):
        return ndarray(self._data.real)

    @property
    def imag(self):
        return ndarray(self._data.imag)

    @property
    def T(self):
        return ndarray(self._data.T)

    shape = property(lambda self: self._data.shape)
    ndim = property(lambda self: self._data.ndim)
    size = property(lambda self: self._data.size)
    nbytes = property(lambda self: self._data.nbytes)
    dtype = property(lambda self: self._data.dtype)
    flags = property(lambda self: self._data.flags)


def _operator(name):
    def apply(self, *others):
        if any(isinstance(other, (list, tuple)) for other in others):
            raise TypeError(f"{name}: a list meets an array on the device")
        others = tuple(_inside(other, name) for other in others)
        result = getattr(self._data, name)(*others)
        if result is NotImplemented:
            return result
        return self if result is self._data else _outside(result)

    return apply


_BINARY = [
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
]
for _name in (
    *(f"__{b}__" for b in _BINARY),
    *(f"__r{b}__" for b in _BINARY),
    *(f"__i{b}__" for b in _BINARY if b != "matmul"),
    *(f"__{c}__" for c in ["lt", "le", "eq", "ne", "gt", "ge", "neg", "pos", "abs", "invert"]),
):
    setattr(ndarray, _name, _operator(_name))


def _method(name):
    def call(self, *args, **kwargs):
        METHODS.add(name)
        args = _inside(args, name)
        kwargs = {key: _inside(value, name) for key, value in kwargs.items()}
        return _outside(getattr(self._data, name)(*args, **kwargs))

    return call


for _name in [
    "all",
    "any",
    "argmax",
    "argmin",
    "argsort",
    "astype",
    "clip",
    "conj",
    "copy",
    "cumsum",
    "dot",
    "fill",
    "max",
    "mean",
    "min",
    "nonzero",
    "ravel",
    "repeat",
    "reshape",
    "sort",
    "sum",
    "swapaxes",
    "take",
    "transpose",
    "var",
    "std",
    "view",
]:
    setattr(ndarray, _name, _method(_name))

_FROM_HOST = {"asarray", "array"}
_TYPES = [
    "bool_",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
    "dtype",
]
_CONSTANTS = {"inf", "nan", "pi", "newaxis", "e"}
_ABSENT = {"errstate", "vectorize", "testing", "random", "char", "nditer"}


def _function(name, function, path):
    def call(*args, **kwargs):
        leading = args
        if name in _FROM_HOST and path == "cupy":
            (array, *rest) = args
            data = array._data if isinstance(array, ndarray) else array
            result = getattr(np, name)(data, *rest, **kwargs)
            if isinstance(array, ndarray):
                return array if result is data else ndarray(result)
            return ndarray(result.copy())  # another memory
        CALLS.add((f"{path}.{name}", frozenset(kwargs), _operand_types(leading)))
        return _outside(
            function(
                *(_inside(a, name) for a in args), **{key: _inside(v, name) for key, v in kwargs.items()}
            )
        )

    call.__name__ = name
    return call


def _operand_types(args):
    return "".join(a.dtype.char for a in args if isinstance(a, ndarray))


def _cholesky(a):
    """As CuPy: no error, but NaN, when the matrix is not positive definite."""
    try:
        return _outside(np.linalg.cholesky(_inside(a, "cholesky")))
    except np.linalg.LinAlgError:
        return ndarray(np.full(a.shape, np.nan))


def _solve_triangular(a, b, trans=0, lower=False):
    CALLS.add(("cupyx.scipy.linalg.solve_triangular", frozenset({"trans", "lower"}), ""))
    from scipy.linalg import solve_triangular

    return _outside(
        solve_triangular(
            _inside(a, "solve_triangular"),
            _inside(b, "solve_triangular"),
            trans=trans,
            lower=lower,
            check_finite=False,
        )
    )


def _syrk(trans, a, out, alpha=1.0, beta=0.0, lower=False):
    """One triangle of a a^T + beta out, in place; the other is left alone."""
    CALLS.add(("cupy.cublas.syrk", frozenset({"trans", "out", "beta", "lower"}), ""))
    assert trans == "N"
    assert lower
    a, result = _inside(a, "syrk"), _inside(out, "syrk")
    assert a.dtype == result.dtype
    assert result.flags.c_contiguous
    triangle = np.tril_indices(len(a))
    result[triangle] = (a @ a.T + beta * result)[triangle]
    return out


class _Module(ModuleType):
    def __getattr__(self, name):
        if name.startswith("__") or name in _ABSENT:
            raise AttributeError(name)
        if name in _TYPES or name in _CONSTANTS:
            return getattr(np, name)
        function = getattr(np, name)
        if not callable(function) or inspect.isclass(function):
            raise AttributeError(f"the stand-in for CuPy has no {name}")
        return _function(name, function, "cupy")


class CUDARuntimeError(RuntimeError):
    pass


class _NoStream:
    def synchronize(self):
        pass


def make_module(free_bytes=2**33, devices=1, raw_module=None, singles_per_double=2):
    """A module to put into ``sys.modules["cupy"]``, with its submodules."""
    cupy = _Module("cupy")
    cupy.__spec__ = ModuleSpec("cupy", None)
    cupy.ndarray, cupy.__version__ = ndarray, "14.2.0"

    def count():
        if devices < 0:
            raise CUDARuntimeError("cudaErrorInsufficientDriver: no driver\nsecond line")
        return devices

    current = [0]
    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=count,
        getDevice=lambda: current[0],
        setDevice=lambda device: current.__setitem__(0, device),
        getDeviceProperties=lambda device: {"name": b"Pretended GPU"},
        memGetInfo=lambda: (free_bytes, 2 * free_bytes),
        cudaDevAttrSingleToDoublePrecisionPerfRatio=87,
        deviceGetAttribute=lambda attribute, device: {87: singles_per_double}[attribute],
    )
    cupy.cuda = SimpleNamespace(runtime=runtime, Stream=SimpleNamespace(null=_NoStream()))
    cupy.get_default_memory_pool = lambda: SimpleNamespace(free_bytes=lambda: 0)
    cupy.asnumpy = lambda array: array.get()
    linalg = {
        name: _function(name, getattr(np.linalg, name), "cupy.linalg") for name in ("norm", "eigh", "solve")
    }
    cupy.linalg = SimpleNamespace(cholesky=_cholesky, **linalg)
    if raw_module is not None:
        cupy.RawModule = raw_module
    blas = ModuleType("cupy.cublas")
    blas.syrk = _syrk
    cupyx = ModuleType("cupyx")
    scipy, solvers = ModuleType("cupyx.scipy"), ModuleType("cupyx.scipy.linalg")
    solvers.solve_triangular = _solve_triangular
    cupyx.scipy, scipy.linalg = scipy, solvers
    return {
        "cupy": cupy,
        "cupy.cublas": blas,
        "cupyx": cupyx,
        "cupyx.scipy": scipy,
        "cupyx.scipy.linalg": solvers,
    }


@contextmanager
def pretended_gpu(**options):
    """``import cupy`` gives the stand-in inside the block. Yields the module."""
    modules = make_module(**options)
    saved = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield modules["cupy"]
    finally:
        for name, module in saved.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
