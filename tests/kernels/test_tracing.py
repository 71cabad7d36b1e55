"""The engine finds the factored form, and every statistic from it equals a float64 loop over examples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd.kernels.factors import _dense
from tests.support import frameworks, shared_maps, transformers  # noqa: F401 - register their models
from tests.support.models import MODELS, QUICK
from tests.support.registry import quick

RELATIVE = {np.dtype("float64"): 1e-11, np.dtype("float32"): 1e-5}  # of the largest entry, by the dtype of a result


def flat(tree):
    return np.concatenate([np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(tree)])


def losses_and_rows_by_loop(loss_fn, params, batch):
    """The loss and the gradient of one example after the other, gradients as rows."""
    count = len(jax.tree.leaves(batch)[0])
    examples = [jax.tree.map(lambda leaf, i=i: leaf[i], batch) for i in range(count)]
    gradient = jax.jit(jax.value_and_grad(loss_fn), compiler_options=QUICK)
    losses, gradients = zip(*(gradient(params, example) for example in examples), strict=True)
    return np.stack(losses), np.stack([flat(g) for g in gradients])


def assert_close(actual, expected, scale=None):
    actual, expected = np.asarray(actual), np.asarray(expected)
    tolerance = RELATIVE[actual.dtype]
    assert actual.shape == expected.shape
    scale = np.abs(expected).max(initial=0) if scale is None else scale
    worst = np.abs(actual - expected).max(initial=0)
    assert worst <= tolerance * scale, f"{worst} > {tolerance} · {scale}, at {np.abs(actual - expected).argmax()}"


def direction_like(params):
    return jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), params)


WEIGHTS = np.cos(np.arange(5.0))


def statistics(loss_fn, params, batch):
    """Every statistic of a batch in one compiled function."""
    gradients = jaxsgd.per_example_gradients(loss_fn)

    def compute(params, batch):
        g = gradients(params, batch)
        return {
            "losses": g.losses(),
            "materialize": g.materialize(),
            "mean": g.mean(),
            "weighted_sum": g.weighted_sum(jnp.asarray(WEIGHTS)),
            "squared_norms": g.squared_norms(),
            "inner_products": g.inner_products(direction_like(params)),
            "gram": g.gram(),
            "gram_against_others": g.gram(gradients(params, jax.tree.map(lambda leaf: leaf[::2], batch))),
            "second_moment": g.second_moment(),
            "variance": g.variance(ddof=0),
            "squared_deviations": g.squared_deviations(),
            "total_deviation": g.total_deviation(),
            "weighted_deviation": g.weighted_deviation(jnp.asarray(WEIGHTS**2)),
            "scaled_mean": g.scaled(jnp.asarray(WEIGHTS)).mean(),
        }

    return jax.jit(compute, compiler_options=QUICK)(params, batch)


@functools.cache
def case(name):
    """The statistics of a model, and its losses and its gradients as rows."""
    loss_fn, params, batch, _ = MODELS[name]()
    return statistics(loss_fn, params, batch), *losses_and_rows_by_loop(loss_fn, params, batch)


OF_EACH_KIND = {  # a rule, a form of factors or a transformation of JAX that the others do not meet
    *("tanh", "custom_vjp", "checkpoint_of_jit", "loss_that_vmaps", "tied_embedding", "embedding_take_clip"),
    *("conv_valid_strided", "conv_grouped", "conv_1d_first_axes", "scan_over_layers_checkpoint", "recurrent_embedding"),
    *("used_transposed", "weight_normalized", "penalized", "partly_frozen", "cond", "attention"),
    *(
        "weight_norm",
        "masked",
        "merged_adapter",
        "gates",
        "complex_examples",
        "upsampled_uneven",
        "mixed",
        "switch",
        "cond_divides",
    ),
}


@pytest.mark.parametrize("name", quick(MODELS, OF_EACH_KIND))
def test_statistics_equal_the_loop(name):
    found, losses, rows = case(name)
    _, params, _, _ = MODELS[name]()
    materialized = jax.tree.leaves(found["materialize"])
    assert [leaf.shape[1:] for leaf in materialized] == [leaf.shape for leaf in jax.tree.leaves(params)]
    assert_close(np.concatenate([np.asarray(leaf).reshape(len(rows), -1) for leaf in materialized], axis=1), rows)
    assert_close(found["losses"], losses)
    largest, direction, centered = np.abs(rows).max(), flat(direction_like(params)), rows - rows.mean(axis=0)
    assert_close(flat(found["mean"]), rows.mean(axis=0), largest)
    assert_close(flat(found["weighted_sum"]), WEIGHTS @ rows, largest)
    assert_close(found["squared_norms"], np.sum(rows**2, axis=1))
    assert_close(found["inner_products"], rows @ direction, largest * np.abs(direction).sum())
    assert_close(found["gram"], rows @ rows.T)
    assert_close(found["gram_against_others"], rows @ rows[::2].T)
    assert_close(flat(found["second_moment"]), np.mean(rows**2, axis=0))
    assert_close(flat(found["variance"]), np.var(rows, axis=0), largest**2)
    assert_close(found["squared_deviations"], np.sum(centered**2, axis=1))
    assert_close(found["total_deviation"], np.sum(centered**2))
    weighted = rows - WEIGHTS**2 @ rows / np.sum(WEIGHTS**2)
    assert_close(found["weighted_deviation"], WEIGHTS**2 @ np.sum(weighted**2, axis=1))
    assert_close(flat(found["scaled_mean"]), WEIGHTS @ rows / len(rows), largest)


@pytest.mark.parametrize(
    "name",
    quick(MODELS, MODELS.keys() - {"gpt_scanned", "equinox_cnn", *(n for n in MODELS if n.endswith("_transformer"))}),
)
def test_stays_factored_and_explains(name):
    loss_fn, params, batch, dense = MODELS[name]()
    g = jax.eval_shape(jaxsgd.per_example_gradients(loss_fn), params, batch)
    lines = g.explain().splitlines()[1:-1]
    for (path, leaf), factor, line in zip(jax.tree_util.tree_leaves_with_path(params), g.factors, lines, strict=True):
        assert line.startswith(f"{jax.tree_util.keystr(path)} {leaf.shape} ")
        kept = sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(factor))
        rows = len(jax.tree.leaves(batch)[0]) + 2  # with their sum, and a part that all share
        assert kept <= rows * (leaf.size + 1) * leaf.dtype.itemsize, g.explain()
        place = f"/{jax.tree_util.keystr(path, simple=True, separator='/')}/"
        stacked = name.startswith(("scan", "linen_scanned")) or (name == "gpt_scanned" and "/blocks/" in place)
        if leaf.ndim - stacked >= 2 and leaf.size:
            base = getattr(factor, "base", factor)
            assert isinstance(base, _dense.Dense) == any(f"/{part}/" in place for part in dense), g.explain()


@pytest.mark.parametrize(
    "name", quick(["tanh", "conv_same", "scan_over_layers", "embedding", "recurrent"], {"conv_same"})
)
def test_under_jit_and_vmap(name):
    loss_fn, params, batch, _ = MODELS[name]()

    def some(params):
        g = jaxsgd.per_example_gradients(loss_fn)(params, batch)
        return g.mean(), g.squared_norms(), g.second_moment(), g.variance()

    plain = some(params)
    twice = jax.vmap(some)(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params))
    for other in (jax.jit(some)(params), *(jax.tree.map(lambda leaf, i=i: leaf[i], twice) for i in (0, 1))):
        jax.tree.map(lambda a, b: assert_close(a, b, max(np.abs(b).max(initial=0), 1e-12)), other, plain)


@pytest.mark.parametrize("name", ["tanh", "embedding", "penalized_embedding"])
def test_deviations_from_any_center(name):
    """Catches a center that is taken for the mean, and rows that an example has not."""
    loss_fn, params, batch, _ = MODELS[name]()
    for factor in jaxsgd.per_example_gradients(loss_fn)(params, batch).factors:
        center = direction_like(jnp.zeros(factor.shape))
        rows = np.asarray(factor.materialize() - center[None]).reshape(factor.count, -1)
        assert_close(factor.deviations_from(center), np.sum(rows**2, axis=1))
