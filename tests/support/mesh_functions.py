"""Calls of public functions on parameters and data, each of which any mesh must leave as it is."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsgd
from jaxsgd import (
    batch_size,
    checks,
    designs,
    estimators,
    kernels,
    model_agnostic,
    moments,
    monitors,
    noise,
    problems,
    signal_to_noise,
    sources,
    surfaces,
    tails,
    training,
    variance_reduction,
)
from tests.support.registry import skewed

N = 24
KEY = jax.random.key(0)
HALVES = np.repeat([0, 1], N // 2)
PARAMS = {"w": jnp.asarray(skewed(8, 16)) / 4, "b": jnp.asarray(skewed(16, seed=1)) / 4}
DATA = {"x": jnp.asarray(skewed(N, 8, seed=3)), "y": jnp.asarray(skewed(N, seed=4))}


def loss_fn(params: Any, example: Any) -> jax.Array:
    return (jnp.tanh(example["x"] @ params["w"] + params["b"]).sum() - example["y"]) ** 2


def batch_loss_fn(params: Any, batch: Any) -> jax.Array:
    return jax.vmap(loss_fn, (None, 0))(params, batch).mean()


def noisy(params: Any, example: Any, key: jax.Array) -> jax.Array:
    return loss_fn(params, example | {"x": example["x"] * jax.random.bernoulli(key, 0.5, (8,)).astype(float)})


def with_aux(params: Any, example: Any) -> tuple[jax.Array, Any]:
    return loss_fn(params, example), {"x": example["x"] @ params["w"], "one": 1.0}


def noisy_with_aux(params: Any, example: Any, key: jax.Array) -> tuple[jax.Array, Any]:
    return noisy(params, example, key), jax.random.uniform(key)


def gradients(params: Any, data: Any, **options: Any) -> jaxsgd.PerExampleGradients:
    return jaxsgd.per_example_gradients(loss_fn, **options)(params, data)


def of(statistic: Callable[..., Any], **options: Any) -> Callable[[Any, Any], Any]:
    """What a statistic says of the gradients."""
    return lambda params, data: statistic(gradients(params, data, **options))


def estimated(estimator: Any) -> Callable[[Any, Any], Any]:
    """A step of variance reduction, and its law."""

    def step(params: Any, data: Any) -> Any:
        state = estimator.init(KEY, params, data)
        gradient, state = estimator.estimate(params, state, data)
        return gradient, estimator.law(params, state, data).variance

    return step


def monitored(params: Any, data: Any) -> Any:
    """Monitors in a loop of one's own."""
    terms = monitors.Terms(gradients(params, data))
    optimizer = optax.chain(monitors.noise_scale(), monitors.gradient_snr(), monitors.gradient_tests(), optax.sgd(0.1))
    state = optimizer.init(params)
    for step in range(2):
        mean = terms.gradients.mean()
        updates, state = optimizer.update(mean, state, params, terms=terms, step=step)
        params = optax.apply_updates(params, updates)
    return params, monitors.readings(state)


def observed(params: Any, data: Any) -> Any:
    """Monitors that are shown the batch before a call of ``update`` that hands nothing on."""
    watched = optax.chain(monitors.noise_scale(decay=0.5), monitors.two_batch_noise_scale(), optax.adam(0.1))
    optimizer = monitors.observed(watched)
    state = optimizer.init(params)
    for _ in range(2):
        g = gradients(params, data)
        state = monitors.observe(state, per_example_gradients=g)
        with jax.numpy_dtype_promotion("standard"):  # Adam counts its steps in integers
            updates, state = optimizer.update(g.mean(), state, params)
        params = optax.apply_updates(params, updates)
    return params, monitors.readings(state)


def whole(tree: Any) -> Any:
    """Arrays that every device has: those of a mesh with explicit axes can be sliced anywhere only then."""

    def one(leaf: jax.Array) -> jax.Array:
        mesh = jax.typeof(leaf).sharding.mesh
        return jax.reshard(leaf, NamedSharding(mesh, P())) if AxisType.Explicit in mesh.axis_types else leaf

    return jax.tree.map(one, tree)


def accumulated(sizes: tuple[int, int]) -> Callable[[Any, Any], Any]:
    """What is found of a step that takes the mean over two microbatches, of sizes that are equal, or not."""

    def step(params: Any, data: Any) -> Any:
        params, data = whole((params, data))
        first, second = (jax.tree.map(lambda leaf, s=s: leaf[s], data) for s in (slice(sizes[0]), slice(sizes[0], N)))
        parts = (jax.grad(batch_loss_fn)(params, part) for part in (first, second))
        return jax.tree.map(lambda a, b: (a + b) / 2, *parts)

    def found(params: Any, data: Any) -> Any:
        result = jaxsgd.check_accumulation(jax.jit(step), batch_loss_fn, params, data, num_microbatches=2)
        assert result.passed == (sizes[0] == sizes[1])
        return result.factor, result.weights, result.whole_weights, result.sizes

    return found


def run(params: Any, data: Any) -> Any:
    optimizer, design = optax.sgd(0.01, momentum=0.9), designs.WithReplacement(4)
    result = training.run_sgd(loss_fn, params, data, optimizer, design, 6, KEY, monitors=[monitors.noise_scale()])
    return result.params, result.metrics


FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "losses": of(lambda g: g.losses()),
    "mean": of(lambda g: g.mean()),
    "squared_norms": of(lambda g: g.squared_norms()),
    "squared_deviations": of(lambda g: g.squared_deviations()),
    "inner_products": lambda params, data: gradients(params, data).inner_products(params),
    "weighted_sum": lambda params, data: gradients(params, data).weighted_sum(data["y"]),
    "weighted_deviation": lambda params, data: gradients(params, data).weighted_deviation(data["y"] ** 2),
    "scaled": lambda params, data: gradients(params, data).scaled(data["y"]).squared_norms(),
    "stretched": lambda params, data: (lambda g: (g.squared_norms(), g.variance(), g.gram(), g.squared_deviations()))(
        gradients(params, data).stretched(jax.tree.map(jnp.exp, params))
    ),
    "minus": of(lambda g: g.minus(g.scaled(g.losses())).mean()),
    "second_moment": of(lambda g: g.second_moment()),
    "total_deviation": of(lambda g: g.total_deviation()),
    "variance": of(lambda g: g.variance()),
    "gram": of(lambda g: g.gram()),
    "cross_gram": of(lambda g: g.gram(g.take(slice(4, 12)))),
    "materialize": of(lambda g: g.materialize()),
    "take": of(lambda g: g.take(jnp.arange(5)).squared_norms()),
    "recomputed": of(lambda g: (g.mean(), g.squared_norms(), g.gram(), g.variance()), memory_limit=4000),
    "centered_gram": of(kernels.centered_gram),
    "require_finite": of(kernels.require_finite),
    "gradient_moments": lambda params, data: jaxsgd.gradient_moments(loss_fn, params, data, per_coordinate=True),
    "moments_in_chunks": lambda params, data: jaxsgd.gradient_moments(loss_fn, params, data, chunk_size=5),
    "moments_of": of(moments.of),
    "moments_merge": of(lambda g: moments.merge(moments.of(g.take(slice(0, 8))), moments.of(g.take(slice(8, None))))),
    "noise_scale": of(lambda g: jaxsgd.noise_scale(g).value),
    "noise_scale_of_moments": of(lambda g: jaxsgd.noise_scale(moments.of(g)).value),
    "noise_scale_in_a_metric": lambda params, data: (
        jaxsgd.noise_scale(gradients(params, data), metric=jax.tree.map(jnp.exp, params)).value
    ),
    "variance_curve_in_a_metric": lambda params, data: (
        estimators.variance_curve(gradients(params, data), metric=jax.tree.map(jnp.exp, params)).variance
    ),
    "two_batch_noise_scale": of(
        lambda g: (
            jaxsgd.two_batch_noise_scale(
                g.take(slice(0, 4)).mean(), g.take(slice(0, 16)).mean(), small_size=4, big_size=16
            ).value
        )
    ),
    "noise_scale_law": of(lambda g: noise.noise_scale_law(g, 4)),
    "pair_sums": of(noise.pair_sums),
    "hessian_noise_scale": lambda params, data: (
        jaxsgd.hessian_noise_scale(loss_fn, params, data, key=KEY, num_probes=4).value
    ),
    "exact_without_replacement": of(lambda g: estimators.exact(designs.WithoutReplacement(4), g)),
    "exact_stratified": of(lambda g: estimators.exact(designs.Stratified(HALVES, [2, 2]), g)),
    "exact_importance": of(lambda g: estimators.exact(designs.Importance(np.full(N, 1 / N), 4), g)),
    "exact_blocks": of(lambda g: estimators.exact(designs.Blocks(4), g)),
    "exact_circular_blocks": of(lambda g: estimators.exact(designs.CircularBlocks(4), g)),
    "exact_of_moments": of(lambda g: estimators.exact(designs.WithReplacement(4), moments.of(g))),
    "enumerate_batches": of(lambda g: estimators.enumerate_batches(designs.WithoutReplacement(2), g)),
    "monte_carlo": of(
        lambda g: estimators.monte_carlo(designs.WithoutReplacement(4), g, key=KEY, num_draws=16).variance
    ),
    "monte_carlo_merge": of(
        lambda g: (
            estimators.merge(
                estimators.monte_carlo(designs.WithReplacement(4), g, key=KEY, num_draws=8),
                estimators.monte_carlo(designs.WithReplacement(4), g, key=KEY, num_draws=8, first_draw=8),
            ).variance
        )
    ),
    "variance_curve": of(lambda g: estimators.variance_curve(g).variance),
    "monte_carlo_curve": of(lambda g: estimators.monte_carlo_curve(g, [2, 4], key=KEY, num_draws=8).variance),
    "squared_error_law": of(lambda g: estimators.squared_error_law(g, [2, 4]).variance),
    "descent_probability": of(lambda g: float(estimators.descent_probability(designs.WithoutReplacement(2), g))),
    "design_effect": of(lambda g: estimators.design_effect(designs.Stratified(HALVES, [2, 2]), g)),
    "optimal_probabilities": of(estimators.optimal_probabilities),
    "stratum_deviations": of(lambda g: estimators.stratum_deviations(g, HALVES)),
    "with_replacement_variance": of(estimators.with_replacement_variance),
    "without_replacement_variance": of(lambda g: estimators.without_replacement_variance(g, population_size=100)),
    "batch_loss_gradient": lambda params, data: (
        estimators.batch_loss_gradient(
            batch_loss_fn, params, data, designs.WithoutReplacement(4), key=KEY, num_draws=8
        ).variance
    ),
    "gradient_tests": of(batch_size.gradient_tests),
    "coordinate_snr": of(signal_to_noise.coordinate_snr),
    "early_stopping_evidence": of(signal_to_noise.early_stopping_evidence),
    "principal_directions": of(lambda g: surfaces.principal_directions(g).variances),
    "losses_along": lambda params, data: surfaces.losses_along(
        loss_fn, params, data, jax.tree.map(lambda leaf: leaf[None], params), jnp.linspace(-1, 1, 3)[:, None]
    ),
    "random_sign_moments": lambda params, data: model_agnostic.random_sign_moments(
        loss_fn, params, data, key=KEY, num_draws=4
    ),
    "inner_products_of_any_model": lambda params, data: model_agnostic.inner_products(loss_fn, params, data, params),
    "variance_reduction": lambda params, data: variance_reduction.exact(
        designs.WithReplacement(4), gradients(params, data), gradients(jax.tree.map(jnp.tanh, params), data)
    ),
    "optimal_coefficient": lambda params, data: variance_reduction.optimal_coefficient(
        designs.WithReplacement(4), gradients(params, data), gradients(jax.tree.map(jnp.tanh, params), data)
    ),
    "svrg": estimated(variance_reduction.SVRG(loss_fn, designs.WithReplacement(4), refresh_every=3)),
    "saga": estimated(variance_reduction.SAGA(loss_fn, designs.WithReplacement(4))),
    "check_additivity": lambda params, data: jaxsgd.check_additivity(batch_loss_fn, params, data).kind == "mean",
    "check_accumulation": accumulated((12, 12)),
    "check_accumulation_of_unequal_parts": accumulated((16, 8)),
    "check_per_example": lambda params, data: checks.check_per_example(loss_fn, params, data).passed,
    "run_sgd": run,
    "monitors": monitored,
    "observed_monitors": observed,
    "keys": lambda params, data: (
        jaxsgd.per_example_gradients(noisy)(params, data, key=KEY).squared_norms(),
        jaxsgd.gradient_moments(noisy, params, data, key=KEY, chunk_size=2).squared_norms_mean,
    ),
    "aux": lambda params, data: (lambda found: (found[0].squared_norms(), found[1]))(
        jaxsgd.per_example_gradients(with_aux, has_aux=True)(params, data)
    ),
    "keys_and_aux": lambda params, data: (lambda found: (found[0].mean(), found[1]))(
        jaxsgd.per_example_gradients(noisy_with_aux, has_aux=True)(params, data, key=KEY)
    ),
    "mean_loss": lambda params, data: problems.mean_loss(loss_fn, params, data),
    "stable_index": of(lambda g: tails.stable_index(g.squared_norms(), block_size=4)),
    "hill_index": of(lambda g: tails.hill_index(g.squared_norms(), num_largest=5)),
    "batches": lambda params, data: next(sources.batches(data, 5)),
    "a_draw": lambda params, data: designs.Draw(jnp.asarray([3, 0]), jnp.ones(2), None).take(data),
}
