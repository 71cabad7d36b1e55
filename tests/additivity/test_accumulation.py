"""Steps that accumulate, right ones and those that people have written, and what is said about each."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxsgd.additivity import _microbatches, check_accumulation
from jaxsgd.additivity._microbatches import flat
from tests.support.registry import skewed

N, K, TOKENS = 8, 4, 5
LENGTHS = np.array([5, 4, 1, 2, 3, 5, 1, 1])
DTYPES = [jnp.float32, jnp.bfloat16]


def params_and_batch(dtype):
    """Sequences of different lengths, padded: labels of −100, as is the custom."""
    w, x = skewed(3, 2), skewed(N, TOKENS, 3, seed=1)
    keep = np.arange(TOKENS)[None] < LENGTHS[:, None]
    labels = np.where(keep, np.arange(N * TOKENS).reshape(N, TOKENS) % 2, -100)
    return {"w": jnp.asarray(w, dtype), "b": jnp.zeros(2, dtype)}, {
        "x": jnp.asarray(x, dtype),
        "labels": jnp.asarray(labels, jnp.int32),
    }


def token_losses(params, batch):
    """One number for each token; 0 for those that do not count."""
    scores = jnp.tanh(batch["x"] @ params["w"] + params["b"][None, None])
    score = jnp.where(batch["labels"] == 1, scores[..., 1], scores[..., 0])
    return jnp.where(batch["labels"] >= 0, (score - 1) ** 2, 0)


def tokens(batch, dtype):
    return (batch["labels"] >= 0).sum().astype(dtype)


def token_mean(params, batch):
    losses = token_losses(params, batch)
    return losses.sum() / tokens(batch, losses.dtype)


def microbatches(batch):
    return jax.tree.map(lambda leaf: leaf.reshape(K, -1, *leaf.shape[1:]), batch)


def added(loss, params, batch):
    """Σ ∇ loss over microbatches, in a scan."""

    def add(total, part):
        return jax.tree.map(jnp.add, total, jax.grad(loss)(params, part)), None

    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), microbatches(batch))[0]


def times(factor, tree):
    return jax.tree.map(lambda leaf: leaf * jnp.asarray(factor, leaf.dtype), tree)


# Right ones.


def sums_over_all_tokens(params, batch):
    count = tokens(batch, params["w"].dtype)
    return added(lambda p, part: token_losses(p, part).sum() / count, params, batch)


def multi_steps(params, batch):
    """What ``optax.MultiSteps`` applies after the last microbatch, if each is weighted by its share of the tokens."""
    optimizer = optax.MultiSteps(optax.sgd(1.0), K)
    state, count = optimizer.init(params), tokens(batch, params["w"].dtype)
    with jax.numpy_dtype_promotion("standard"):
        for j in range(K):
            part = jax.tree.map(lambda leaf, j=j: leaf[j], microbatches(batch))
            share = K * tokens(part, count.dtype) / count
            gradient = times(share, jax.grad(token_mean)(params, part))
            updates, state = optimizer.update(gradient, state, params)
    return times(-1.0, updates)


def data_parallel(params, batch):
    """Numerators and normalizers over all devices; each holds the parameters as its own."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))

    @partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    def step(params, part):
        params = jax.tree.map(lambda leaf: jax.lax.pcast(leaf, "data", to="varying"), params)
        count = jax.lax.psum(tokens(part, jnp.float32), "data")
        gradient = jax.grad(lambda p: token_losses(p, part).sum() / count.astype(p["w"].dtype))(params)
        return jax.lax.psum(gradient, "data")

    return step(params, batch)


def donated(params, batch):
    """A compiled step that takes its arguments' memory."""
    step = jax.jit(jax.grad(token_mean), donate_argnums=0, keep_unused=True)
    return step(params, batch)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "step",
    [sums_over_all_tokens, donated, *(pytest.param(s, marks=pytest.mark.slow) for s in (multi_steps, data_parallel))],
)
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
def test_right_steps_pass(step, dtype) -> None:
    """Catches an alarm over rounding."""
    found = check_accumulation(step, token_mean, *params_and_batch(dtype), num_microbatches=K)
    assert found.passed, found
    assert (found.found, found.factor) == ("whole batch", 1.0)
    assert str(found).startswith("The step applies the gradient of the whole batch")
    assert ("finer dtype" in str(found)) == (dtype == jnp.bfloat16)


# Wrong ones, and what must be said.


def mean_of_token_means(params, batch):
    """The loss of every microbatch is divided by its own tokens: the well-known bug of 2024."""
    return times(1 / K, added(token_mean, params, batch))


def sum_of_token_means(params, batch):
    return added(token_mean, params, batch)


def averaged_twice(params, batch):
    """Divided by the tokens of all devices, and then averaged by them as well."""
    return times(1 / K, sums_over_all_tokens(params, batch))


def not_averaged(params, batch):
    """Normalized, and summed over devices."""
    return times(K, sums_over_all_tokens(params, batch))


def sum_of_tokens(params, batch):
    return jax.grad(lambda p: token_losses(p, batch).sum())(params)


def padding_counted(params, batch):
    return jax.grad(lambda p: token_losses(p, batch).mean())(params)


def tokens_of_the_first(params, batch):
    """``num_items_in_batch`` counted on one microbatch."""
    first = jax.tree.map(lambda leaf: leaf[0], microbatches(batch))
    count = tokens(first, params["w"].dtype)
    return added(lambda p, part: token_losses(p, part).sum() / count, params, batch)


def overwritten(params, batch):
    return jax.grad(token_mean)(params, jax.tree.map(lambda leaf: leaf[-1], microbatches(batch)))


def last_forgotten(params, batch):
    """A loop that ends one microbatch too early."""
    return jax.grad(token_mean)(params, jax.tree.map(lambda leaf: leaf[: N - N // K], batch))


def running_average(params, batch):
    mean = None
    for j in range(K):
        gradient = jax.grad(token_mean)(params, jax.tree.map(lambda leaf, j=j: leaf[j], microbatches(batch)))
        mean = gradient if mean is None else jax.tree.map(lambda a, b: (a + b) / 2, mean, gradient)
    return mean


def strided(params, batch):
    """Microbatches of every K-th example, averaged."""
    some = [jax.tree.map(lambda leaf, j=j: leaf[j::K], batch) for j in range(K)]
    gradients = [jax.grad(token_mean)(params, part) for part in some]
    return times(1 / K, jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *gradients))


def clipped(params, batch):
    return times(0.3, jax.grad(token_mean)(params, batch))


WRONG = {
    mean_of_token_means: ("mean of microbatches", 1, "plain mean of the gradients of 4 microbatches (2 examples each)"),
    sum_of_token_means: ("mean of microbatches", K, "plain sum of the gradients of 4 microbatches"),
    averaged_twice: ("whole batch", 1 / K, "0.25 is 1 over the number of microbatches: do not divide by it a second"),
    not_averaged: ("whole batch", K, "4 is the number of microbatches: divide the sum over microbatches"),
    sum_of_tokens: ("whole batch", 22, "the number of entries of batch['labels'] that are not negative: divide"),
    padding_counted: ("whole batch", 22 / 40, "that are not negative over the number of entries of batch['labels']"),
    tokens_of_the_first: ("whole batch", 22 / 9, "the normalizer of the whole batch over that of the first microbatch"),
    overwritten: ("last microbatch", 1, "the gradient of the last of 4 microbatches"),
    last_forgotten: ("all but the last", 1, "see where the loop over microbatches begins and ends"),
    running_average: ("running average", 1, "in which the last weighs 1/2"),
    strided: ("mean of microbatches", 1, "4 microbatches of every 4th example (2 examples each)"),
    clipped: ("whole batch", 0.3, "is no number of microbatches, examples or entries: look for clipping"),
}


QUICK = [mean_of_token_means, averaged_twice, padding_counted]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", [s if s in QUICK else pytest.param(s, marks=pytest.mark.slow) for s in WRONG])
def test_wrong_steps_are_explained(step, dtype) -> None:
    name, factor, words = WRONG[step]
    found = check_accumulation(step, token_mean, *params_and_batch(dtype), num_microbatches=K)
    assert not found.passed
    assert found.found == name, found
    np.testing.assert_allclose(found.factor, factor, rtol=1e-6 if dtype == jnp.float32 else 0.02)
    assert words in str(found)


def test_the_weights_are_the_shares_of_tokens() -> None:
    """What the step gives each microbatch, and what it should."""
    found = check_accumulation(mean_of_token_means, token_mean, *params_and_batch(jnp.float64), num_microbatches=K)
    np.testing.assert_allclose(found.weights, np.full(K, 1 / K), rtol=1e-12)
    np.testing.assert_allclose(found.whole_weights, LENGTHS.reshape(K, -1).sum(axis=1) / LENGTHS.sum(), rtol=1e-9)
    g, s = (flat(f(*params_and_batch(jnp.float64))) for f in (jax.grad(token_mean), mean_of_token_means))
    np.testing.assert_allclose(found.error, np.linalg.norm(s - g) / np.linalg.norm(g), rtol=1e-9)


# Other losses, other splits.


def mean_loss(theta, x):
    return jnp.mean(jnp.tanh(x @ theta) ** 2)


X, THETA = jnp.asarray(skewed(10, 6)), jnp.asarray(skewed(6, seed=2))


def mean_of_parts(*edges):
    def step(theta, x):
        parts = [jax.grad(mean_loss)(theta, part) for part in np.split(np.asarray(x), edges)]
        return sum(parts[1:], parts[0]) / len(parts)

    return step


@pytest.mark.parametrize(
    ("step", "name", "sizes", "words"),
    [
        (
            mean_of_parts(3, 6, 9),
            "mean of microbatches",
            (3, 3, 3, 1),
            "of which the last is short (3, 3, 3, 1 examples)",
        ),
        (mean_of_parts(3, 6, 8), "mean of microbatches", (3, 3, 2, 2), "of nearly equal size"),
        (
            lambda t, x: jax.grad(mean_loss)(t, x[:8]),
            "without the remainder",
            (2, 2, 2, 2),
            "the gradient of 8 examples",
        ),
    ],
)
def test_examples_that_do_not_fill_the_microbatches(step, name, sizes, words) -> None:
    found = check_accumulation(step, mean_loss, THETA, X, num_microbatches=4)
    assert (found.found, found.sizes) == (name, sizes)
    assert words in str(found)
    np.testing.assert_allclose(found.whole_weights or 0, np.array(sizes) / 10 if sum(sizes) == 10 else 0, atol=1e-9)


def test_a_sum_is_added() -> None:
    """Of a loss that is a sum, the gradients of the parts are added, and averaging them is the mistake."""

    def total(theta, x):
        return 10 * mean_loss(theta, x) if len(x) == 10 else len(x) * mean_loss(theta, x)

    def step(theta, x, over=1):
        parts = [jax.grad(total)(theta, part) for part in np.split(np.asarray(x), 5)]
        return sum(parts[1:], parts[0]) / over

    assert check_accumulation(step, total, THETA, X, num_microbatches=5).passed
    found = check_accumulation(partial(step, over=5), total, THETA, X, num_microbatches=5)
    assert (found.found, found.factor) == ("whole batch", 1 / 5)


def test_a_loss_that_couples_examples() -> None:
    """No weights of the microbatches' gradients give that of the batch, and this is said."""

    def standardized(theta, x):
        scores = jnp.tanh(x @ theta)
        return jnp.mean((scores - scores.mean()) ** 3) / scores.std() ** 3

    def step(theta, x):
        return jnp.mean(jax.vmap(jax.grad(standardized), (None, 0))(theta, x.reshape(2, 5, 6)), axis=0)

    found = check_accumulation(step, standardized, THETA, X, num_microbatches=2)
    assert (found.found, found.whole_weights) == ("mean of microbatches", None)
    assert "check_additivity(batch_loss_fn, params, batch)" in str(found)


def test_any_combination_is_told() -> None:
    def step(theta, x):
        parts = [jax.grad(mean_loss)(theta, part) for part in np.split(np.asarray(x), 2)]
        return 0.3 * parts[0] + 0.6 * parts[1]

    found = check_accumulation(step, mean_loss, THETA, X, num_microbatches=2)
    assert found.found == "combination of microbatches"
    np.testing.assert_allclose(found.weights, [0.3, 0.6], rtol=1e-9)
    assert "with the weights 0.300, 0.600" in str(found)


def test_what_nothing_explains() -> None:
    found = check_accumulation(lambda theta, x: jnp.sin(theta), mean_loss, THETA, X, num_microbatches=2)
    assert (found.found, found.weights) == ("unknown", None)
    assert "no combination of those of 2" in str(found)


def test_one_parameter_is_explained_by_known_factors_only() -> None:
    """All gradients are multiples of each other. Catches a factor that explains everything."""
    loss = lambda theta, x: jnp.mean(jnp.exp(theta * x))  # noqa: E731
    theta, x = jnp.asarray(0.5), jnp.asarray(skewed(7))
    parts = [jax.grad(loss)(theta, part) for part in (x[:4], x[4:])]
    step = lambda theta, x: (parts[0] + parts[1]) / 2  # noqa: E731
    assert check_accumulation(step, loss, theta, x, num_microbatches=2).found == "mean of microbatches"


def test_leaves_that_all_examples_share() -> None:
    """A temperature, a table and a time-major array, marked as for ``vmap``."""
    batch = {"x": X.T, "table": jnp.arange(3.0), "temperature": 2.0}
    in_axes = {"x": 1, "table": None, "temperature": None}

    def loss(theta, batch):
        return mean_loss(theta / batch["temperature"], batch["x"].T) + batch["table"].sum() * jnp.sum(theta**2)

    def step(theta, batch):
        parts = [loss_of(part) for part in np.split(np.asarray(batch["x"]), 2, axis=1)]
        return (parts[0](theta) + parts[1](theta)) / 2

    def loss_of(x):
        return jax.grad(lambda theta: loss(theta, batch | {"x": x}))

    assert check_accumulation(step, loss, THETA, batch, num_microbatches=2, in_axes=in_axes).passed
    wrong = check_accumulation(lambda t, b: 2 * step(t, b), loss, THETA, batch, num_microbatches=2, in_axes=in_axes)
    assert wrong.factor == 2


def test_rounding_that_parameters_do_not_show() -> None:
    """float32 parameters and bfloat16 arithmetic inside of the loss. Catches an alarm over its rounding."""

    def loss(theta, x):
        return jnp.mean(jnp.tanh(x.astype(jnp.bfloat16) @ theta.astype(jnp.bfloat16)).astype(jnp.float32) ** 2)

    def step(theta, x):
        return jnp.mean(jax.vmap(jax.grad(loss), (None, 0))(theta, x.reshape(5, 2, 6)), axis=0)

    theta, x = THETA.astype(jnp.float32), X.astype(jnp.float32)
    found = check_accumulation(step, loss, theta, x, num_microbatches=5)
    assert found.passed
    assert found.error > 1e-5, "the rounding of bfloat16 is there"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("depth", "width", "count", "k"), [(1, 4, 8, 4), (6, 16, 32, 8), (2, 64, 256, 4), (12, 8, 64, 16)]
)
def test_rounding_of_deep_networks_is_below_the_bound(dtype, depth, width, count, k) -> None:
    """With normalization and residuals; the bound is not reached, and hides no mistake of a percent in float32."""

    def loss(params, batch):
        h = batch["x"]
        for layer in params:
            z = h @ layer["w"] + layer["b"][None]
            z = (z - z.mean(-1, keepdims=True)) * jax.lax.rsqrt(z.var(-1, keepdims=True) + jnp.asarray(1e-3, dtype))
            h = h + jax.nn.gelu(z)
        return jnp.mean((h - batch["y"]) ** 2)

    def step(params, batch):
        parts = jax.tree.map(lambda leaf: leaf.reshape(k, -1, *leaf.shape[1:]), batch)
        zeros = jax.tree.map(jnp.zeros_like, params)
        add = lambda total, part: (jax.tree.map(jnp.add, total, jax.grad(loss)(params, part)), None)  # noqa: E731
        return times(1 / k, jax.lax.scan(add, zeros, parts)[0])

    for seed in range(3):
        rng = np.random.default_rng(seed)
        layers = [
            {"w": rng.normal(size=(width, width)) / width**0.5, "b": rng.normal(size=width)} for _ in range(depth)
        ]
        batch = {name: rng.normal(size=(count, width)) for name in "xy"}
        arrays = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (layers, batch))
        found = check_accumulation(step, loss, *arrays, num_microbatches=k)
        assert found.passed, found
        assert found.error < found.rounding / 3
        assert found.rounding < (1e-4 if dtype == jnp.float32 else 0.25)


def test_equations_in_scans_count_as_often_as_they_turn() -> None:
    def function(x):
        return jax.lax.scan(lambda c, _: (jnp.sin(c), None), jnp.cos(x), None, length=7)[0]

    assert _microbatches.operations(jax.make_jaxpr(function)(1.0).jaxpr).total() == 8
