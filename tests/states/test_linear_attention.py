"""Linear attention: written out in full, against finite differences, under translations; heads of several kinds in a layer."""

import numpy as np
import pytest
from scipy.sparse.linalg import eigsh

from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.physics.hamiltonians import HAMILTONIANS
from nqs_sae_service.physics.lattices import LATTICES, Chain, Rectangular
from nqs_sae_service.spec import load_spec
from nqs_sae_service.spec.keys import stage_key
from nqs_sae_service.spec.sampling import Sampling
from nqs_sae_service.spec.sections import GroundState
from nqs_sae_service.states import Transformer
from nqs_sae_service.states.linear_attention import (
    DeltaRule,
    JoinHeads,
    KernelAttention,
    LocalMix,
    neighbourhood,
)
from nqs_sae_service.states.transfer import transferred
from nqs_sae_service.vmc.jacobian import TapeJacobian
from nqs_sae_service.vmc.training import Trainer

LINEAR = ("kernel", "delta")
MIXED = ("delta", "full", "kernel", "positional")
SHAPES = {"ring": ((8,), True), "line": ((8,), False), "torus": ((4, 6), True), "plane": ((4, 6), False)}


def lattice(shape):
    lengths, periodic = SHAPES[shape]
    if len(lengths) == 1:
        return Chain(kind="chain", length=lengths[0], periodic=periodic).build()
    return Rectangular(kind="rectangular", lengths=lengths, periodic=periodic).build()


def network(attention, shape="ring", **options):
    heads = 2 if isinstance(attention, str) else 4
    sizes = {
        "patch": 2,
        "width": 4 * heads,
        "heads": heads,
        "layers": 2,
        "mlp_ratio": 1,
        "amplitude": "complex",
    }
    return Transformer(**sizes | options, attention=attention).build(lattice(shape))


def random_parameters(state, seed=0, dtype=np.float64):
    noise = 0.3 * np.random.default_rng(seed).normal(size=state.n_parameters)
    return (state.initial_parameters(seed) + noise).astype(dtype)


def spins(n, sites, seed=1):
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), size=(n, sites))


def bricks():
    """Every brick in one and two dimensions, closed and open, with inputs (2, token, channel) and weights."""
    rng = np.random.default_rng(3)
    for extent, wraps in (
        ((4,), (True,)),
        ((3,), (False,)),
        ((2, 3), (True, True)),
        ((3, 2), (False, True)),
        ((1,), (True,)),
    ):
        tokens, windows = int(np.prod(extent)), neighbourhood(extent, wraps)
        edges = [rng.normal(size=(2, tokens, 6)) for _ in range(3)]
        gates = rng.normal(size=(2, tokens, 8 * len(extent)))
        label = "x".join(map(str, extent)) + "".join("|o"[wrap] for wrap in wraps)
        made = [
            (KernelAttention("a", ("q", "k", "v"), "y", tokens, 6, 2, ()), edges),
            (DeltaRule("a", ("q", "k", "v", "g"), "y", tokens, 6, 2, (), extent, wraps), [*edges, gates]),
            (LocalMix("a", ("v",), "y", windows[0], 6, windows[1]), edges[:1]),
            (
                JoinHeads("a", ("b", "c"), "y", ((2, 0), (1, 3, 4)), 3),
                [edges[0], rng.normal(size=(2, tokens, 9))],
            ),
        ]
        for brick, x in made:
            w = {name: rng.normal(size=shape) for name, shape in brick.shapes().items()}
            yield pytest.param(brick, tuple(x), w, id=f"{type(brick).__name__}-{label}")


def numeric_gradient(value, array, step=1e-6):
    """d value / d array, by central differences."""
    gradient = np.empty(array.shape, complex)
    for place in np.ndindex(array.shape):
        ends = []
        for s in (step, -step):
            moved = array.copy()
            moved[place] += s
            ends.append(value(moved))
        gradient[place] = (ends[0] - ends[1]) / (2 * step)
    return gradient


@pytest.mark.parametrize("complex_cotangent", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize(("brick", "x", "w"), [*bricks()])
def test_derivatives_of_bricks_match_finite_differences(brick, x, w, complex_cotangent):
    y = brick.forward(w, *x)
    rng = np.random.default_rng(5)
    delta = rng.normal(size=y.shape) + 1j * complex_cotangent * rng.normal(size=y.shape)
    delta = delta if complex_cotangent else delta.real
    for i, found in enumerate(brick.backward(w, x, y, delta)):
        exact = numeric_gradient(
            lambda a, i=i: (brick.forward(w, *x[:i], a, *x[i + 1 :]) * delta).sum(), x[i]
        )
        np.testing.assert_allclose(found, exact, atol=2e-7)
    total, single = brick.gradient(w, x, delta, True), brick.gradient(w, x, delta, False)
    assert set(total) == set(single) == set(brick.shapes())
    for name in total:
        exact = numeric_gradient(
            lambda a, name=name: (brick.forward({**w, name: a}, *x) * delta).sum(), w[name]
        )
        np.testing.assert_allclose(total[name], exact, atol=2e-7)
        np.testing.assert_allclose(single[name].sum(axis=0), total[name], atol=1e-12)


@pytest.mark.parametrize(("brick", "x", "w"), [*bricks()])
def test_cotangents_by_parts_are_complex_ones(brick, x, w):
    y, rng = brick.forward(w, *x), np.random.default_rng(6)
    parts = rng.normal(size=(2, *y.shape))
    whole = parts[0] + 1j * parts[1]
    for found, expected in zip(brick.backward(w, x, y, parts), brick.backward(w, x, y, whole), strict=True):
        np.testing.assert_allclose(found[0] + 1j * found[1], expected, atol=1e-12)
    expected = brick.gradient(w, x, whole, False)
    for name, found in brick.gradient(w, x, parts, False).items():
        np.testing.assert_allclose(found[0] + 1j * found[1], expected[name], atol=1e-12)


def test_kernel_attention_is_its_quadratic_formula():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(4, 7, 6)) for _ in range(3))
    phi = lambda x: np.where(x > 0, x + 1, np.exp(x))  # noqa: E731
    expected = np.empty_like(v)
    for head in (slice(0, 3), slice(3, 6)):
        weight = phi(q[..., head]) @ phi(k[..., head]).swapaxes(1, 2)
        expected[..., head] = weight @ v[..., head] / (weight.sum(axis=2, keepdims=True) + 1e-6)
    brick = KernelAttention("a", ("q", "k", "v"), "y", 7, 6, 2, ())
    np.testing.assert_allclose(brick.forward({}, q, k, v), expected, rtol=1e-12)


def delta_rule_of_a_line(q, k, v, alpha, beta, turns):
    """The rule as printed, for one head: q, k, v (token, c); of ``turns`` around a ring the last one counts."""
    s, y = np.zeros((v.shape[1], k.shape[1])), np.zeros_like(v)
    for _ in range(turns):
        for t in range(len(q)):
            s = alpha[t] * s @ (np.eye(k.shape[1]) - beta[t] * np.outer(k[t], k[t])) + beta[t] * np.outer(
                v[t], k[t]
            )
            y[t] = s @ q[t]
    return y


@pytest.mark.parametrize("wraps", [(False, False), (True, True), (True, False)])
def test_the_delta_rule_is_its_plain_loop(wraps):
    rng, extent, heads, c = np.random.default_rng(1), (3, 4), 2, 3
    q, k, v = (rng.normal(size=(2, 12, 6)) for _ in range(3))
    gates = rng.normal(size=(2, 12, 16))
    brick = DeltaRule("a", ("q", "k", "v", "g"), "y", 12, 6, heads, (), extent, wraps)
    unit = lambda x: x / np.sqrt((x**2).sum(axis=-1, keepdims=True) + 1e-6)  # noqa: E731
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    number, expected = np.arange(12).reshape(extent), np.zeros_like(v)
    for n, head in np.ndindex(2, heads):
        own = slice(head * c, (head + 1) * c)
        for scan in range(4):
            alpha = 0.999 * sigmoid(gates[n, :, 4 * scan + head])
            beta = sigmoid(gates[n, :, 4 * scan + 2 + head])
            for line in number if scan // 2 else number.T:
                line = line[::-1] if scan % 2 else line
                turns = 60 if wraps[scan // 2] else 1
                expected[n, line, own] += delta_rule_of_a_line(
                    unit(q[n, line, own]),
                    unit(k[n, line, own]),
                    v[n, line, own],
                    alpha[line],
                    beta[line],
                    turns,
                )
    np.testing.assert_allclose(brick.forward({}, q, k, v, gates), expected, atol=1e-10)


@pytest.mark.parametrize("attention", [*LINEAR, MIXED], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_per_sample_gradients_match_finite_differences(attention, shape):
    """Along a random direction in every array of parameters."""
    state = network(attention, shape, layers=1)
    p, sigma, rng, step = random_parameters(state), spins(3, state.n_sites), np.random.default_rng(2), 1e-5
    exact = state.bind(p).per_sample_gradients(sigma)
    for place, _ in state.layout.values():
        push = np.zeros_like(p)
        push[place] = rng.normal(size=push[place].shape)
        push /= np.linalg.norm(push)
        numeric = (state.log_psi(p + step * push, sigma) - state.log_psi(p - step * push, sigma)) / (2 * step)
        np.testing.assert_allclose(exact @ push, numeric, atol=1e-6 * max(1, np.abs(exact).max()))


@pytest.mark.parametrize("attention", [*LINEAR, MIXED], ids=str)
def test_layers_can_be_edited(attention):
    state = network(attention)
    psi, sigma = state.bind(random_parameters(state)), spins(4, 8)
    generator = np.random.default_rng(5)
    for layer in state.layers:
        x = psi.stream_at(sigma, layer)
        push = generator.normal(size=x.shape[1:])
        predicted = (psi.layer_gradient(sigma, layer) * push).sum(axis=(1, 2))
        step = 1e-5
        up, down = (
            psi.edited(layer, lambda y, s=s, push=push: y + s * push).log_psi(sigma) for s in (step, -step)
        )
        np.testing.assert_allclose(
            (up - down) / (2 * step), predicted, atol=1e-6 * max(1, np.abs(predicted).max())
        )


@pytest.mark.parametrize("attention", [*LINEAR, MIXED], ids=str)
@pytest.mark.parametrize("shape", ["ring", "torus"])
def test_translations_by_a_patch_are_symmetries_where_claimed(attention, shape):
    state = network(attention, shape)
    p, sigma = random_parameters(state), spins(5, state.n_sites)
    assert len(state.invariances) == state.n_tokens
    for shift in state.invariances:
        np.testing.assert_allclose(state.log_psi(p, sigma[:, shift]), state.log_psi(p, sigma), atol=1e-10)
    broken = network(attention, shape, translation_invariant=False)
    assert broken.invariances is None
    p, shift = random_parameters(broken), state.invariances[1]
    assert np.abs(broken.log_psi(p, sigma[:, shift]) - broken.log_psi(p, sigma)).max() > 1e-3


@pytest.mark.parametrize("attention", LINEAR)
def test_no_other_permutation_of_the_tokens_is_a_symmetry(attention):
    """Positions do get in: exchanged tokens, or all in reverse, are another configuration."""
    state = network(attention, "ring", patch=1)
    p, sigma = random_parameters(state), spins(20, 8)
    for order in ([1, 0, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1, 0]):
        assert np.abs(state.log_psi(p, sigma[:, order]) - state.log_psi(p, sigma)).max() > 1e-3


@pytest.mark.parametrize("attention", [*LINEAR, "full", "positional"])
def test_a_list_of_one_kind_is_that_kind(attention):
    pure, p = network(attention), None
    for listed in ((attention,) * 2, (attention,) * 4):
        state = network(listed, heads=2, width=8)
        assert state.layout == pure.layout
        p = random_parameters(pure)
        np.testing.assert_array_equal(state.log_psi(p, spins(9, 8)), pure.log_psi(p, spins(9, 8)))
        record = Transformer(heads=2, layers=2, width=8, attention=listed)
        assert record.resolved({}).attention == attention


def test_a_layer_repeated_is_written_once():
    record = Transformer(heads=4, layers=2, attention=MIXED * 2)
    assert record.resolved({}).attention == MIXED
    other = Transformer(heads=4, layers=2, attention=MIXED + MIXED[::-1])
    assert other.resolved({}).attention == MIXED + MIXED[::-1]


def test_kinds_of_heads_go_through_a_spec_and_its_key(tmp_path):
    """The resolved spec loads back; a list of one kind has the key of the kind; other orders of heads have other keys."""

    def key(attention, name="spec.toml"):
        sections = '[lattice]\nkind = "chain"\nlength = 16\n[hamiltonian]\nkind = "tfim"\nh = 1.0\n[state]\nheads = 2\n'
        (tmp_path / name).write_text(f'name = "ring"\n{sections}attention = {attention}\n')
        (point,) = load_spec(str(tmp_path / name))
        (tmp_path / name).write_text(point.toml())
        (again,) = load_spec(str(tmp_path / name))
        assert again.spec == point.spec
        return stage_key("ground_state", 1, {"state": point.spec.state}, {})

    assert key('"full"') == key('["full", "full"]') == key('["full", "full", "full", "full"]')
    assert key('["full", "delta"]') == key('["full", "delta", "full", "delta"]')
    assert len({key(kind) for kind in ('"full"', '"delta"', '["full", "delta"]', '["delta", "full"]')}) == 4


def test_heads_stay_in_their_order():
    """Every head of the edge ``heads_1`` is that of its kind by itself, of root mean square gamma."""
    state = network(MIXED)
    psi = state.bind(random_parameters(state))
    edges = psi.tape(spins(3, 8)).edges
    gamma = psi.weights["attention_1.join.gamma"]
    assert gamma.shape == (4,)
    for head, kind in enumerate(MIXED):
        own = edges[f"attention_1.{kind}.heads"]
        size = np.sqrt((own**2).mean(axis=-1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(
            edges["heads_1"][..., 4 * head : 4 * head + 4], gamma[head] * own / size, rtol=1e-10
        )
    start = state.unpack(state.initial_parameters(0))
    np.testing.assert_array_equal(start["attention_2.join.gamma"], 1)


def test_a_layer_of_one_kind_among_others_has_no_gamma():
    state = network(("full",) * 4 + MIXED)
    assert "attention_2.join.gamma" in state.layout
    assert not any(name.startswith("attention_1.join") for name in state.layout)
    assert "attention_1.mix.bias" in state.layout


@pytest.mark.parametrize("attention", [*LINEAR, MIXED], ids=str)
def test_a_larger_ring_takes_over_what_does_not_know_its_length(attention):
    """A configuration of period 8 on 16 sites: linear heads see the same thing around every token."""
    sizes = {"patch": 1, "layers": 1, "precision": "float64"}
    small = network(attention, **sizes)
    heads = 2 if isinstance(attention, str) else 4
    record = Transformer(
        width=4 * heads, heads=heads, mlp_ratio=1, amplitude="complex", attention=attention, **sizes
    )
    large = record.build(Chain(kind="chain", length=16).build())
    p = random_parameters(small)
    carried = transferred(small, p, large)
    sigma = spins(3, 8)
    twice = np.concatenate([sigma, sigma], axis=1)
    if attention in LINEAR:
        there = large.bind(carried).tape(twice).edges["heads_1"]
        np.testing.assert_allclose(there[:, :8], small.bind(p).tape(sigma).edges["heads_1"], rtol=1e-6)
        np.testing.assert_allclose(there[:, 8:], there[:, :8], rtol=1e-6)
    assert carried.shape == (large.n_parameters,)


def test_two_tokens_on_a_ring_are_one_neighbour_and_two_on_a_larger_one():
    old, new = (
        LocalMix("a", ("x",), "y", *(neighbourhood(e, (True,))[0], 2, neighbourhood(e, (True,))[1]))
        for e in ((2,), (6,))
    )
    w = {"a.taps": np.array([[1.0, 2.0], [3.0, 4.0]])}
    carried = new.carried(old, w)
    np.testing.assert_array_equal(carried["a.taps"], [[1, 1, 1], [3, 2, 2]])
    x = np.random.default_rng(0).normal(size=(1, 2, 2))
    np.testing.assert_allclose(new.forward(carried, np.tile(x, (1, 3, 1)))[:, :2], old.forward(w, x))


@pytest.mark.parametrize("kind", ["honeycomb", "graph"])
def test_other_lattices(kind):
    record = LATTICES[kind]
    geometry = (
        record(kind=kind, sites=6, edges=tuple((i, (i + 1) % 6) for i in range(6)))
        if kind == "graph"
        else record(kind=kind, lengths=(2, 4))
    )
    site = geometry.build()
    state = Transformer(patch=2, width=8, heads=4, layers=1, attention=MIXED).build(site)
    p = random_parameters(state)
    sigma = spins(4, site.n_sites)
    assert np.isfinite(state.log_psi(p, sigma)).all()
    for shift in state.invariances if state.invariances is not None else ():
        np.testing.assert_allclose(state.log_psi(p, sigma[:, shift]), state.log_psi(p, sigma), atol=1e-10)


@pytest.mark.parametrize("attention", LINEAR)
def test_large_pre_activations_stay_finite(attention):
    state = network(attention)
    p = 50 * random_parameters(state)
    for dtype in (np.float32, np.float64):
        assert np.isfinite(state.log_psi(p.astype(dtype), spins(20, 8))).all()


@pytest.mark.parametrize("attention", [*LINEAR, MIXED], ids=str)
def test_no_samples_and_single_precision(attention):
    state = network(attention)
    psi = state.bind(random_parameters(state, dtype=np.float32))
    assert psi.log_psi(spins(0, 8)).shape == (0,)
    sigma = spins(50, 8)
    np.testing.assert_allclose(np.exp(psi.log_psi(sigma) - psi.reference.log_psi(sigma)), 1, atol=2e-4)
    assert {edge.dtype for name, edge in psi.tape(sigma).edges.items() if name != "log_psi"} == {
        np.dtype(np.float32)
    }


def test_a_projected_mixed_network():
    """Momentum and spin-flip parity are what they should be; per-sample gradients along a random direction."""
    record = Transformer(
        patch=2, width=16, heads=4, layers=1, mlp_ratio=1, amplitude="complex", attention=MIXED,
        symmetry={"translations": True, "momentum": (4,), "spin_flip": -1},
    )  # fmt: skip
    state = record.build(lattice("ring"))
    assert state.n_copies == 4  # the network does not distinguish shifts by a patch
    p, sigma, rng, step = random_parameters(state), spins(3, 8), np.random.default_rng(3), 1e-5
    psi = np.exp(state.log_psi(p, sigma))
    np.testing.assert_allclose(np.exp(state.log_psi(p, np.roll(sigma, 1, axis=1))), -psi, rtol=1e-9)
    np.testing.assert_allclose(np.exp(state.log_psi(p, -sigma)), -psi, rtol=1e-9)
    push = rng.normal(size=p.shape)
    push /= np.linalg.norm(push)
    numeric = (state.log_psi(p + step * push, sigma) - state.log_psi(p - step * push, sigma)) / (2 * step)
    exact = state.bind(p).per_sample_gradients(sigma)
    np.testing.assert_allclose(exact @ push, numeric, atol=1e-6 * max(1, np.abs(exact).max()))


@pytest.mark.parametrize("attention", [*LINEAR, MIXED], ids=str)
def test_products_with_the_jacobian_are_those_of_the_gradients(attention):
    """As reconfiguration makes them, from real and imaginary parts of deltas side by side."""
    state = network(attention, "torus")
    psi, sigma, rng = state.bind(random_parameters(state)), spins(9, 24), np.random.default_rng(4)
    vector = rng.normal(size=state.n_parameters)
    centred = psi.per_sample_gradients(sigma)
    centred = (centred - centred.mean(axis=0)) / 3
    rows = np.concatenate([centred.real, centred.imag])
    jacobian = TapeJacobian(psi, sigma)
    gram, product = jacobian.gram_and_product(vector)
    np.testing.assert_allclose(product, rows @ vector, atol=1e-10 * np.abs(rows).max())
    np.testing.assert_allclose(gram, rows @ rows.T, atol=1e-10 * np.abs(rows).max() ** 2)


def test_a_mixed_network_finds_a_ground_state():
    """Sampling, local energies and reconfiguration by the bricks; the energy by full summation beside diagonalisation."""
    geometry = Rectangular(kind="rectangular", lengths=(3, 4))
    hamiltonian, site = HAMILTONIANS["tfim"](kind="tfim", h=3.0), geometry.build()
    record = Transformer(patch=(1, 2), width=16, heads=4, layers=1, attention=MIXED)
    sampling = Sampling(chains=512, burn_in=10).resolved({"lattice": geometry, "hamiltonian": hamiltonian})
    chosen = GroundState(steps=20, samples=512, learning_rate=0.2, seed=1)
    trainer = Trainer(record.build(site), site, hamiltonian.build(site), sampling, chosen)
    training = trainer.start()
    while training.step < chosen.steps:
        trainer.advance(training)
    matrix = hamiltonian.build(site).to_sparse()
    exact = eigsh(matrix, k=1, which="SA", return_eigenvectors=False)[0]
    psi = np.exp(trainer.state.log_psi(training.parameters, all_configurations(12)))
    energy = psi @ (matrix @ psi) / (psi @ psi)
    assert exact - 1e-6 < energy < exact + 1e-3 * abs(exact)
