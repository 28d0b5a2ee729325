"""Parameters from NPZ files: they arrive where they belong, and what does not fit is one line that says so."""

import numpy as np
import pytest

from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.states import Rbm, Transformer
from nqs_sae_service.states.loading import Misfit, load_parameters

RING = Chain(kind="chain", length=8).build()


def transformer(**options):
    defaults = {
        "patch": 2,
        "width": 4,
        "heads": 2,
        "layers": 1,
        "attention": "positional",
        "amplitude": "complex",
    }
    return Transformer(**{**defaults, **options}).build(RING)


def save(folder, arrays):
    np.savez(folder / "network.npz", **arrays)
    return folder / "network.npz"


@pytest.fixture
def good(tmp_path):
    """A network, and its parameters as they may be changed before they are saved."""
    state = transformer()
    arrays = {
        name: array.astype(np.float64) for name, array in state.unpack(state.initial_parameters(1)).items()
    }

    def load(**changes):
        return load_parameters(save(tmp_path, arrays | changes), state)

    return state, arrays, load


@pytest.mark.parametrize("state", [transformer(), transformer(attention="full"), Rbm(alpha=2).build(RING)])
def test_what_was_saved_by_name_comes_back(tmp_path, state):
    parameters = state.initial_parameters(5)
    path = save(tmp_path, dict(reversed(state.unpack(parameters).items())))
    np.testing.assert_array_equal(load_parameters(path, state), parameters)


def test_precision_is_that_of_the_network(good):
    state, _, load = good
    value = 1 / 3
    loaded = load(**{"embedding.bias": np.full(4, value)})
    assert loaded.dtype == np.float32
    assert (state.unpack(loaded)["embedding.bias"] == np.float32(value)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding.wait": np.zeros(3)}, "no parameter embedding.wait (did you mean embedding.weight?)"),
        ({"embedding.bias": np.zeros(5)}, r"embedding.bias (5,), needed (4,)"),
        ({"embedding.bias": np.full(4, np.nan)}, "embedding.bias holds numbers that are not finite"),
        (
            {"embedding.bias": np.full(4, 1e200)},
            "embedding.bias holds numbers beyond float32; set state.precision",
        ),
        ({"embedding.bias": np.zeros(4, complex)}, "embedding.bias holds complex128, not float32 or float64"),
        ({"embedding.bias": np.zeros(4, int)}, "embedding.bias holds int64, not float32 or float64"),
        ({"embedding.bias": np.array(["a"] * 4)}, "embedding.bias holds <U1, not float32"),
        ({"embedding.bias": np.array([None] * 4)}, "holds Python objects"),
    ],
)
def test_what_does_not_fit_is_named(good, change, message):
    with pytest.raises(Misfit) as error:
        good[2](**change)
    assert message in str(error.value)
    assert "network.npz: " in str(error.value)
    assert str(error.value).isprintable()


def test_missing_parameters_are_listed(tmp_path):
    state = transformer()
    arrays = state.unpack(state.initial_parameters(1))
    del arrays["head.norm.gain"], arrays["mlp_1.up.bias"]
    with pytest.raises(Misfit, match=r"are missing: mlp_1\.up\.bias, head\.norm\.gain$"):
        load_parameters(save(tmp_path, arrays), state)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "not a readable .npz file"),
        (b"PK\x03\x04garbage", "not a readable .npz file"),
    ],
)
def test_a_file_that_is_none(tmp_path, content, message):
    path = tmp_path / "x.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Misfit, match=message):
        load_parameters(path, transformer())
    with pytest.raises(Misfit, match="not a file"):
        load_parameters(tmp_path, transformer())


def test_a_truncated_file_and_a_single_array(tmp_path, good):
    state, arrays, _ = good
    path = save(tmp_path, arrays)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Misfit, match="not a readable"):
        load_parameters(path, state)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(Misfit, match="a single array"):
        load_parameters(tmp_path / "one.npy", state)


# ---- NetKet's names; NetKet itself is in tests/peers ------------------------------------------------------------------


def rbm(dtype=complex, hidden=16):
    generator = np.random.default_rng(2)

    def numbers(*shape):
        return generator.normal(size=shape).astype(dtype) * (1 + 0.3j if dtype is complex else 1)

    return {"Dense/kernel": numbers(8, hidden), "Dense/bias": numbers(hidden), "visible_bias": numbers(8)}


@pytest.mark.parametrize("prefix", ["", "params/"])
@pytest.mark.parametrize("dtype", [complex, float])
def test_the_rbm_of_netket_is_its_formula(tmp_path, dtype, prefix):
    state, arrays = Rbm(alpha=2).build(RING), rbm(dtype)
    path = save(tmp_path, {prefix + name: array for name, array in arrays.items()})
    sigma = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), size=(20, 8))
    psi = np.exp(state.bind(load_parameters(path, state)).reference.log_psi(sigma))
    theta = arrays["Dense/bias"] + sigma @ arrays["Dense/kernel"]
    np.testing.assert_allclose(
        psi, np.exp(sigma @ arrays["visible_bias"]) * np.cosh(theta).prod(axis=1), rtol=1e-10
    )


@pytest.mark.parametrize(
    ("arrays", "state", "message"),
    [
        (rbm(), transformer(), 'set state.kind = "rbm"'),
        (rbm(hidden=8), Rbm(alpha=2).build(RING), r"Dense/kernel has the shape \(8, 8\), needed \(8, 16\)"),
        (rbm() | {"Dense_1/kernel": np.zeros(3)}, Rbm(alpha=2).build(RING), "unknown parameter Dense_1/kernel"),
        ({"Dense_0/kernel": np.zeros((2, 4))}, Rbm().build(RING), 'set state.kind = "transformer"'),
        ({"Dense_0/kernel": np.zeros((2, 4))}, transformer(amplitude="positive"), 'state.amplitude = "complex"'),
        ({"Dense_0/kernel": np.zeros((2, 4)), "J7": np.zeros(2)}, transformer(), "unknown parameter J7"),
    ],
)  # fmt: skip
def test_parameters_of_another_network_of_netket(tmp_path, arrays, state, message):
    with pytest.raises(Misfit, match=message):
        load_parameters(save(tmp_path, arrays), state)
