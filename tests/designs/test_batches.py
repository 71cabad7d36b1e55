"""The batches of a design are those of a run of SGD, in a loop of one's own too, and have the weights of the design."""

from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsgd import designs, training
from jaxsgd.designs._batches import Epochs, Gathered, Weighted
from tests.support.own_designs import Bernoulli as OwnBernoulli
from tests.support.registry import LAWS, network, quick

KEY = jax.random.key(7)
N = 7
OF_EACH_KIND = {"importance", "reshuffling_short_batch", "stratified"}


def test_how_designs_are_drawn() -> None:
    """Catches a design that differentiates all examples without need."""
    kinds = {name: type(designs.batches(LAWS[name](8), 8)) for name in LAWS}
    gathered = {"with_replacement", "without_replacement", "importance", "importance_floats", "total"}
    assert {name for name in LAWS if kinds[name] is Gathered} == gathered
    assert {name for name in LAWS if kinds[name] is Epochs} == {"reshuffling", "reshuffling_short_batch"}
    assert kinds["distinct_units"] is Weighted


@pytest.mark.parametrize("name", [name for name in LAWS if hasattr(LAWS[name](6), "draw_weights")])
def test_draw_weights_add_up_to_the_weights(name) -> None:
    design = LAWS[name](6)
    indices = design.indices(KEY, 6)
    weights = np.zeros(6)
    np.add.at(weights, np.asarray(indices), design.draw_weights(6)[np.asarray(indices)])
    np.testing.assert_allclose(weights, design.weights(KEY, 6), rtol=1e-12)


def weights_of(design, step, key=KEY):
    """What the design itself says of the batch of a step."""
    if not isinstance(design, designs.Reshuffling):
        return design.weights(jax.random.fold_in(key, step), N)
    epoch, b = divmod(step, len(design.batch_sizes(N)))
    return design.epoch_weights(jax.random.fold_in(key, epoch), N)[b]


@pytest.mark.parametrize("name", LAWS)
def test_batches_have_the_weights_of_the_design(name) -> None:
    """Seven steps, over two epochs and more. Catches a wrong step, example or weight, and padding that is drawn."""
    design = LAWS[name](N)
    batches = designs.batches(design, N)
    assert isinstance(batches, designs.Batches)
    state, found = batches.start(), []
    for step in range(7):
        state, draw = batches(state, KEY, step)
        drawn = np.ones(len(draw.weights), bool) if draw.drawn is None else np.asarray(draw.drawn)
        assert not np.asarray(draw.weights)[~drawn].any()
        found.append(np.zeros(N))
        np.add.at(found[-1], np.asarray(draw.take(jnp.arange(N)))[drawn], np.asarray(draw.weights)[drawn])
        np.testing.assert_allclose(found[-1], weights_of(design, step), rtol=1e-12)
    if design.support_size(N) > 1:
        assert any(not np.allclose(weights, found[0]) for weights in found), "the control: another step, another batch"


def own_loop(problem, batches, optimizer, num_steps, key):
    """A loop as one writes it: one compiled step after the other."""
    loss_fn, params, data = problem

    @jax.jit
    def step(params, optimizer_state, state, key, number):
        state, draw = batches(state, key, number)

        def batch_loss(params):
            losses = jax.vmap(loss_fn, in_axes=(None, 0))(params, draw.take(data))
            return jnp.sum(draw.weights.astype(losses.dtype) * losses)

        updates, optimizer_state = optimizer.update(jax.grad(batch_loss)(params), optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state, state

    carry = params, optimizer.init(params), batches.start()
    for number in range(num_steps):
        carry = step(*carry, key, number)
    return carry[0]


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", quick(LAWS, OF_EACH_KIND))
def test_a_loop_of_ones_own_is_the_run(name) -> None:
    """Bit for bit, with the plain gradient; with another key, not."""
    problem, design, optimizer = network(), LAWS[name](N), optax.sgd(0.02, momentum=0.9)
    result = training.run_sgd(*problem, optimizer, design, 9, KEY, num_runs=2, gradient="plain")
    own = partial(own_loop, problem, designs.batches(design, N), optimizer, 9)
    alone = training.run_sgd(*problem, optimizer, design, 9, KEY, gradient="plain")
    first, second = (own(jax.random.fold_in(KEY, run)) for run in range(2))
    assert bits(first) == bits(alone.params)
    np.testing.assert_allclose(second["hidden"]["w"], result.params["hidden"]["w"][1], rtol=1e-9)
    assert bits(second) != bits(first), "the control: another run"


def test_own_designs_have_batches() -> None:
    design = OwnBernoulli(Fraction(1, 2))
    (state, draw), problem = designs.batches(design, N)((), KEY, 3), network()
    assert state == ()
    assert draw.take(problem.data) is problem.data
    np.testing.assert_array_equal(draw.weights, weights_of(design, 3))


@pytest.mark.parametrize("name", quick(LAWS, OF_EACH_KIND))
def test_batches_of_many_runs_side_by_side(name) -> None:
    """Under ``vmap`` over keys and ``jit``. Catches a state or a draw that depends on a concrete key."""
    batches = designs.batches(LAWS[name](N), N)
    keys = jax.random.split(KEY, 3)
    state = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), batches.start())
    step = jax.jit(jax.vmap(batches, in_axes=(0, 0, None)))
    alone = [batches.start()] * 3
    for number in range(4):
        state, together = step(state, keys, number)
        for run in range(3):
            alone[run], draw = batches(alone[run], keys[run], number)
            np.testing.assert_allclose(together.weights[run], draw.weights, rtol=1e-12)
            if draw.indices is not None:
                np.testing.assert_array_equal(together.indices[run], draw.indices)
