"""Heads that learn those of a teacher: gradients against finite differences, and what learning must and must not do."""

import numpy as np
import pytest

from nqs_sae_service.errors import NumericalError
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.states import Transformer
from nqs_sae_service.states.head_transfer import taken_over
from nqs_sae_service.vmc.matching import Learning, Matching, blocks_of, loss_and_gradient, set_gammas

MIXED = ("kernel", "full", "positional", "delta")


def network(attention, precision="float64"):
    record = Transformer(
        patch=2, width=16, heads=4, layers=2, mlp_ratio=1, precision=precision, attention=attention
    )
    return record.build(Chain(kind="chain", length=8).build())


def spins(n, seed=1):
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), size=(n, 8))


def random_parameters(state, seed=0):
    noise = 0.3 * np.random.default_rng(seed).normal(size=state.n_parameters)
    return (state.initial_parameters(seed) + noise).astype(state.dtype)


def pupil(teacher, parameters, state):
    start = taken_over(teacher, parameters, state, state.initial_parameters(3))
    set_gammas(state, start, teacher.bind(parameters), spins(32))
    return start


def test_gradients_against_finite_differences():
    teacher, state = network("full"), network(MIXED)
    edges = teacher.bind(random_parameters(teacher)).tape(spins(5)).edges
    parameters = random_parameters(state, 2)
    for block in blocks_of(state):
        x, target = edges[block.stream], edges[block.output]
        loss, gradients = loss_and_gradient(block, state.unpack(parameters), x, target)
        assert set(gradients) == {name for brick in block.bricks for name in brick.shapes()}
        rng, whole = np.random.default_rng(4), np.zeros(state.n_parameters)
        for name, part in gradients.items():
            whole[state.layout[name][0]] = part.ravel()
        for _ in range(3):
            along = rng.normal(size=state.n_parameters)
            ends = [
                loss_and_gradient(block, state.unpack(parameters + step * along), x, target)[0]
                for step in (1e-6, -1e-6)
            ]
            assert whole @ along == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)
        own = state.bind(parameters)
        y = own.edited(block.stream, lambda _, x=x: x).psi.tape(spins(5), {block.stream: lambda _, x=x: x})
        missed = ((y.edges[block.output] - target) ** 2).sum() / (target**2).sum()
        assert loss == pytest.approx(missed, rel=1e-12)


def test_learning_lowers_the_loss_of_every_block_and_touches_nothing_else():
    teacher, state = network("full"), network(MIXED)
    known = random_parameters(teacher)
    start = pupil(teacher, known, state)
    matching, learning = Matching(teacher.bind(known), state, 200, 1e-2), Learning.start(start)
    for step in range(200):
        matching.advance(learning, spins(32, step))
    losses = np.asarray(learning.losses)
    assert losses.shape == (200, 2)
    assert (losses[-20:].mean(axis=0) < 0.1 * losses[0]).all()
    moved = {
        name
        for name, (place, _) in state.layout.items()
        if (learning.parameters[place] != start[place]).any()
    }
    assert moved
    assert all(name.startswith("attention_") for name in moved)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_who_knows_it_already_stays_as_it_is(precision):
    state = network("full", precision)
    parameters = random_parameters(state)
    matching, learning = Matching(state.bind(parameters), state, 10, 1e-2), Learning.start(parameters)
    for step in range(3):
        matching.advance(learning, spins(16, step))
    np.testing.assert_array_equal(learning.parameters, parameters)


def test_normalised_heads_get_the_size_of_the_teachers():
    teacher, state = network("full"), network(MIXED)
    known = random_parameters(teacher)
    ours = state.bind(pupil(teacher, known, state)).tape(spins(32)).edges["heads_1"]
    theirs = teacher.bind(known).tape(spins(32)).edges["heads_1"]
    size = [np.sqrt((x.reshape(32, 4, 4, 4) ** 2).mean(axis=(0, 1, 3))) for x in (ours, theirs)]
    np.testing.assert_allclose(*size, rtol=1e-3)


def test_a_loss_that_is_not_finite_is_said():
    teacher = network("full")
    broken = random_parameters(teacher)
    broken[teacher.layout["attention_1.out.bias"][0]] = np.inf
    state = network(MIXED)
    learning = Learning.start(random_parameters(state))
    with np.errstate(all="ignore"), pytest.raises(NumericalError, match=r"lower transfer\.learning_rate"):
        Matching(teacher.bind(broken), state, 10, 1e-2).advance(learning, spins(4))
