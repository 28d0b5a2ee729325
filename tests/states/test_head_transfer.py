"""Parameters for a network with other heads, and which heads a share of full ones is."""

import numpy as np
import pytest

from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.spec import load_spec
from nqs_sae_service.spec.problems import SpecError
from nqs_sae_service.states import Transformer
from nqs_sae_service.states.head_transfer import heads_of, taken_over
from nqs_sae_service.states.loading import Misfit

MIXED = ("kernel", "full", "positional", "kernel")


def network(attention, **options):
    sizes = {"patch": 2, "width": 16, "heads": 4, "layers": 2, "mlp_ratio": 1, "precision": "float64"}
    return Transformer(**sizes | options, attention=attention).build(Chain(kind="chain", length=8).build())


def random_parameters(state, seed=0):
    return state.initial_parameters(seed) + 0.3 * np.random.default_rng(seed).normal(size=state.n_parameters)


@pytest.fixture
def sigma():
    return np.random.default_rng(1).choice(np.array([-1, 1], np.int8), size=(6, 8))


@pytest.mark.parametrize("attention", ["full", "positional", "kernel", "delta", MIXED])
def test_the_same_network_takes_over_everything(attention):
    state = network(attention)
    parameters = random_parameters(state)
    copied = taken_over(state, parameters, state, random_parameters(state, 5))
    np.testing.assert_array_equal(copied, parameters)


def test_heads_of_the_same_kind_do_the_same_in_another_company(sigma):
    teacher, state = network("full"), network(MIXED)
    parameters = random_parameters(teacher)
    psi = state.bind(taken_over(teacher, parameters, state, random_parameters(state, 5)))
    theirs, ours = teacher.bind(parameters).tape(sigma).edges, psi.tape(sigma).edges
    np.testing.assert_array_equal(ours["embedding"], theirs["embedding"])
    np.testing.assert_allclose(ours["attention_1.full.heads"], theirs["heads_1"][..., 4:8], atol=1e-14)
    for role, prefix, columns in (
        ("k", "kernel", [0, 1, 2, 3, 12, 13, 14, 15]),
        ("v", "positional", range(8, 12)),
    ):
        there = theirs[f"attention_1.{role}"][..., list(columns)]
        np.testing.assert_allclose(ours[f"attention_1.{prefix}.{role}"], there, atol=1e-14)
    back = taken_over(state, psi.parameters, teacher, random_parameters(teacher, 9))
    ours = teacher.bind(back).tape(sigma).edges
    np.testing.assert_allclose(ours["attention_1.v"], theirs["attention_1.v"], atol=1e-14)


def test_heads_stand_in_their_order():
    state = network(MIXED)
    assert [(head.prefix, head.place) for head in heads_of(state, 2)] == [
        ("attention_2.kernel", 0),
        ("attention_2.full", 0),
        ("attention_2.positional", 0),
        ("attention_2.kernel", 1),
    ]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"width": 8}, "width 8, here 16"),
        ({"layers": 3}, "layers 3, here 2"),
        ({"heads": 2}, "heads 2, here 4"),
        ({"patch": 1}, "tokens 8, here 4"),
        ({"mlp_ratio": 2}, "hidden units 32, here 16"),
        ({"amplitude": "complex"}, "amplitude complex, here positive"),
    ],
)
def test_another_shape_is_refused(options, what):
    teacher, state = network("full", **options), network("kernel")
    with pytest.raises(Misfit, match=what):
        taken_over(teacher, teacher.initial_parameters(1), state, state.initial_parameters(1))


def full_heads(**options):
    record = Transformer(width=16, heads=4, layers=4, **options)
    return [i for i, kind in enumerate(sum(record.head_kinds(), ())) if kind == "full"]


def test_a_share_of_the_heads_is_full():
    assert full_heads(attention="fixed", share=0.125) == [0, 8]
    assert full_heads(attention="fixed", share=0.25) == [0, 4, 8, 12]
    assert full_heads(attention="layers", share=0.25) == [12, 13, 14, 15]
    assert full_heads(attention="layers", share=0.5) == [4, 5, 6, 7, 12, 13, 14, 15]
    several = {tuple(full_heads(attention="random", choice_seed=seed)) for seed in range(5)}
    assert len(several) > 1
    assert all(len(heads) == 2 for heads in several)
    assert full_heads(attention="fixed", share=0.001) == [0]
    assert full_heads(attention="random", share=1.0) == list(range(16))


def test_the_first_of_a_ranking_are_full_and_the_others_linear():
    record = Transformer(
        width=16, heads=4, layers=2, attention="ranked", ranking="x", share=0.25, linear="delta"
    )
    chosen = record.ranked([6, 1, 0, 2, 3, 4, 5, 7])
    assert chosen.head_kinds() == (("delta", "full", "delta", "delta"), ("delta", "delta", "full", "delta"))
    assert (chosen.ranking, chosen.share, chosen.linear) == (None, 0.125, "kernel")
    assert sum(record.head_kinds(), ()).count("full") == 2


SPEC = """
name = "heads"
[lattice]
kind = "chain"
length = 16
[hamiltonian]
kind = "tfim"
h = 1.0
[state]
layers = 4
"""


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["state.attention=ranked"], "state.attention: ranked heads need a ranking"),
        (
            ["state.share=0.5"],
            'state.share: it counts where attention = "ranked" or "random" or "fixed" or "layers": set that, or',
        ),
        (["state.linear=delta"], "state.linear: it counts where"),
        (["state.choice_seed=2"], 'state.choice_seed: it counts where attention = "random": set'),
        (
            ['state.attention=["full","full","full","kernel"]', "state.ranking=run"],
            'state.ranking: it counts where attention = "ranked": set that',
        ),
        (
            ["state.attention=layers"],
            "state.share: 0.125 of 4 layers are no whole layers: take one of 0.25, 0.5, 0.75, 1",
        ),
        (
            ["transfer.teacher=run", "ground_state.start_from=run"],
            "transfer.teacher: a training has one start",
        ),
        (
            ["transfer.teacher=run", "transfer.batch=4096"],
            "transfer.batch: a batch of 4096 out of 2048 samples",
        ),
        (
            ["transfer.teacher=run", "state.kind=rbm"],
            'transfer.teacher: state.kind = "rbm" has no attention heads',
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, settings, problem):
    path = tmp_path / "spec.toml"
    path.write_text(
        SPEC if "state.kind=rbm" not in settings else SPEC.replace("layers = 4", ""), encoding="utf-8"
    )
    with pytest.raises(SpecError) as error:
        load_spec(path, settings)
    assert problem in str(error.value)


def test_the_path_of_a_ranking_is_anchored_where_it_is_written(tmp_path):
    path = tmp_path / "spec.toml"
    path.write_text(SPEC + 'attention = "../results/teacher/heads.nc"\n', encoding="utf-8")
    (point,) = load_spec(path)
    state = point.spec.state
    assert (state.attention, state.ranking) == ("ranked", str(tmp_path.parent / "results/teacher/heads.nc"))
