"""A process without x64, as users have it: every function of n gradients in float32, and of the same in float64.

``python -m tests.support.sizes_job N`` prints the largest relative error of each, and its seconds, as JSON; with
``N dense``, of a loss that compiles fast.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd import batch_size
from tests.support.every_statistic import EVERY, HUGE, Given, Statistic


def loss_fn(params: Any, example: Any) -> jax.Array:
    return jnp.sum((example["x"] @ params["w"] - example["y"]) ** 2) + jnp.sum(params["t"][example["k"]])


def dense(params: Any, example: Any) -> jax.Array:
    return jnp.sum(params * example["x"]) + 0.5 * jnp.sum(params**2 * example["y"][0] ** 2)


def problem(n: int, dtype: Any, loss: Any) -> Given:
    r = np.random.default_rng(0)
    numbers = {"x": r.normal(size=(n, 3)), "y": r.normal(size=(n, 2)) + 0.5}
    data = {name: jnp.asarray(np.float32(each), dtype) for name, each in numbers.items()}
    params = {"w": jnp.asarray(np.float32(r.normal(size=(3, 2))), dtype), "t": jnp.ones((4, 2), dtype)}
    if loss is dense:
        return Given(dense, params["w"][:, 0], data)
    return Given(loss_fn, params, data | {"k": jnp.arange(n) % 4})


SIZES: dict[str, Callable[[Given], Any]] = {
    "critical": lambda c: batch_size.critical_batch_size(c.ones[0] * 12, population_size=HUGE),
    "adascale": lambda c: batch_size.adascale_gain(c.ones[0] * 12, HUGE, base_batch_size=HUGE),
    "relative_cost": lambda c: batch_size.relative_cost(c.ones[0] * 12, HUGE).examples,
    "tested_size": lambda c: batch_size.gradient_tests(c.g).batch_size(),
}
CALLS = EVERY | {name: Statistic(lambda c, size=size: {0: size(c)}) for name, size in SIZES.items()}
# Those whose compiled code has products of sizes as numbers, of one loss that compiles fast.
COEFFICIENTS = {
    *SIZES,
    *(f"noise.{name}" for name in ("noise_scale", "noise_scale fieller", "noise_scale jackknife", "noise_scale_law")),
    *("noise.noise_scale of moments", "noise.two_batch_noise_scale", "noise.mean_fourth_power"),
    *("batch_size.gradient_tests", "signal_to_noise.coordinate_snr", "estimators.horvitz_thompson_variance"),
    *("estimators.with_replacement_variance", "estimators.without_replacement_variance", "estimators.exact"),
    *("estimators.without_replacement_central_moments", "estimators.variance_curve", "estimators.squared_error_law"),
    *("moments.gradient_moments", "PerExampleGradients.variance", "estimators.exact groups", "moments.of"),
}
LINEAR = {"mean", "squared_norms", "total_deviation", "gradient_moments", "noise_scale", "exact", "variance_curve"}
LINEAR |= {"monte_carlo", "merge", "of", "with_replacement_variance", "SVRG", "gradient_tests", "random_sign_moments"}


def numbers(found: Any) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(found))])


def outcomes(n: int, dtype: Any, loss: Any) -> Iterator[tuple[str, dict[int, np.ndarray], float]]:
    given, chosen = problem(n, dtype, loss), COEFFICIENTS if loss is dense else CALLS
    for name, statistic in CALLS.items():
        if n <= statistic.max_count and (n <= 10**5 or name.split(".")[-1] in LINEAR) and name in chosen:
            start = time.perf_counter()
            found = {power: numbers(tree) for power, tree in statistic.call(given).items()}
            yield name, found, time.perf_counter() - start


def error(statistic: Statistic, found: dict[int, np.ndarray], truth: dict[int, np.ndarray]) -> float:
    """The largest error of all, each relative to the largest number of its kind; of draws, in standard errors."""
    if statistic.draws:
        (a, s), (b, t) = found[2], truth[2]
        return float(abs(a - b) / (4 * np.hypot(s, t)) / 1000)
    return max(
        (
            float(np.abs(found[p] - truth[p]).max(initial=0) / max(np.abs(truth[p]).max(initial=0), 1e-30))
            for p in truth
        ),
        default=0.0,
    )


def compared(n: int, loss: Any) -> dict[str, tuple[float, float]]:
    single = {name: (found, seconds) for name, found, seconds in outcomes(n, jnp.float32, loss)}
    with jax.enable_x64(True):
        double = {name: found for name, found, _ in outcomes(n, jnp.float64, loss)}
    return {name: (error(CALLS[name], single[name][0], double[name]), single[name][1]) for name in double}


if __name__ == "__main__":
    print(json.dumps(compared(int(sys.argv[1]), dense if "dense" in sys.argv else loss_fn)))
