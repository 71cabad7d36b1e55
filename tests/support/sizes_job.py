"""A process without x64, as users have it: statistics of n gradients in float32, and of the same numbers in float64.

``python -m tests.support.sizes_job N`` prints the largest relative error of every function, as JSON.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd import (
    batch_size,
    designs,
    estimators,
    gradient_moments,
    kernels,
    model_agnostic,
    moments,
    noise,
    per_example_gradients,
    signal_to_noise,
    surfaces,
    variance_reduction,
)

KEY = jax.random.key(0)
HUGE = 10**11


def loss_fn(params: Any, example: Any) -> jax.Array:
    return jnp.sum((example["x"] @ params["w"] - example["y"]) ** 2) + jnp.sum(params["t"][example["k"]])


def problem(n: int, dtype: Any) -> tuple[Any, Any]:
    r = np.random.default_rng(0)
    numbers = {"x": r.normal(size=(n, 3)), "y": r.normal(size=(n, 2)) + 0.5}
    data = {name: jnp.asarray(np.float32(each), dtype) for name, each in numbers.items()}
    params = {"w": jnp.asarray(np.float32(r.normal(size=(3, 2))), dtype), "t": jnp.ones((4, 2), dtype)}
    return params, data | {"k": jnp.arange(n) % 4}


def calls(n: int, dtype: Any) -> dict[str, Callable[[], Any]]:
    params, data = problem(n, dtype)
    g, m = per_example_gradients(loss_fn)(params, data), gradient_moments(loss_fn, params, data, per_coordinate=True)
    h = per_example_gradients(loss_fn)(jax.tree.map(lambda leaf: leaf * 0.5, params), data)
    ones, strata, few = jnp.ones(n, dtype), np.arange(n) % 7, n <= 2048
    always = {
        "total_deviation": g.total_deviation,
        "squared_deviations": g.squared_deviations,
        "weighted_deviation": lambda: g.weighted_deviation(ones),
        "variance": lambda: g.variance(ddof=1),
        "second_moment": g.second_moment,
        "centered_products": lambda: g.centered_products(params),
        "chunks": lambda: gradient_moments(loss_fn, params, data, chunk_size=n // 3 + 1).trace_covariance(ddof=1),
        "merge": lambda: moments.merge(m, m).trace_covariance(),
        "with_replacement_variance": lambda: estimators.with_replacement_variance(g),
        "without_replacement_variance": lambda: estimators.without_replacement_variance(g, population_size=HUGE),
        "central_moments": lambda: estimators.without_replacement_central_moments(g, batch_size=n // 3).fourth,
        "noise_scale": lambda: _of(noise.noise_scale(g)),
        "noise_scale_of_a_sample": lambda: _of(noise.noise_scale(g, population_size=10 * n, interval="fieller")),
        "noise_scale_jackknife": lambda: _of(noise.noise_scale(g, interval="jackknife")),
        "noise_scale_of_all": lambda: noise.noise_scale(g, population_size=n).value,
        "noise_scale_of_moments": lambda: noise.noise_scale(m, population_size=HUGE).value,
        "noise_scale_law": lambda: noise.noise_scale_law(g, n // 2).covariance,
        "two_batches": lambda: _two_batches(g),
        "mean_fourth_power": lambda: noise.mean_fourth_power(noise.pair_sums(g)),
        "hessian": lambda: noise.hessian_noise_scale(loss_fn, params, data).learning_rate(n // 2),
        "gradient_tests": lambda: batch_size.gradient_tests(g).unbiased_norm,
        "tested_size": lambda: batch_size.gradient_tests(g).batch_size(),
        "critical": lambda: batch_size.critical_batch_size(ones[0] * 12, population_size=HUGE),
        "adascale": lambda: batch_size.adascale_gain(ones[0] * 12, HUGE, base_batch_size=HUGE),
        "relative_cost": lambda: batch_size.relative_cost(ones[0] * 12, HUGE).examples,
        "snr": lambda: signal_to_noise.coordinate_snr(g, population_size=HUGE)["w"],
        "evidence": lambda: signal_to_noise.early_stopping_evidence(m) if few else 0.0,
        "exact": lambda: estimators.exact(designs.WithoutReplacement(n // 2), g).variance,
        "exact_stratified": lambda: estimators.exact(designs.Stratified(strata, [2] * 7), g).variance,
        "exact_blocks": lambda: estimators.exact(designs.Blocks(2), g).variance,
        "curve": lambda: estimators.variance_curve(m, [1, 3, n // 2]).variance,
        "squared_error_law": lambda: estimators.squared_error_law(g, [1, 3, n // 2]).variance,
        "principal_directions": lambda: surfaces.principal_directions(g).variances,
        "control": lambda: variance_reduction.exact(designs.WithoutReplacement(5), g, h).variance,
        "random_signs": lambda: model_agnostic.random_sign_moments(loss_fn, params, data, key=KEY, num_draws=2).mean,
        "strata": lambda: estimators.stratum_deviations(g, strata),
    }
    matrices = {
        "centered_gram": lambda: kernels.centered_gram(g),
        "gram": lambda: g.gram(),
        "horvitz_thompson": lambda: estimators.horvitz_thompson_variance(
            g, ones / 2, jnp.full((n, n), 0.25, dtype), population_size=2 * n
        ),
    }
    return always | (matrices if few else {})


def _of(scale: noise.NoiseScale) -> Any:
    return scale.value, scale.low, scale.trace_covariance, scale.covariance[1, 1]


def _two_batches(g: kernels.PerExampleGradients) -> Any:
    means = (g.take(slice(g.count // 2)).mean(), g.mean())
    sizes = {"small_size": g.count // 2, "big_size": g.count, "population_size": HUGE}
    return noise.two_batch_noise_scale(*means, **sizes).squared_mean_norm


def numbers(found: Any) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(found)])


def errors(n: int) -> dict[str, float]:
    """The largest error of each function, relative to its largest number."""
    single = {name: numbers(call()) for name, call in calls(n, jnp.float32).items()}
    with jax.enable_x64(True):
        double = {name: numbers(call()) for name, call in calls(n, jnp.float64).items()}
    return {
        name: float(np.abs(single[name] - truth).max() / max(np.abs(truth).max(), 1e-30))
        for name, truth in double.items()
    }


if __name__ == "__main__":
    print(json.dumps(errors(int(sys.argv[1]))))
