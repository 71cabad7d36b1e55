"""What is not the gradient of the mean loss: of other losses, at other θ, of other functions, of another size."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsgd
from jaxsgd import designs, estimators, problems

SIZES = (1, 2, 3, 4)
DRAWS = tuple(designs.WithoutReplacement(M) for M in SIZES)
RESIDUAL_DATA = {"x": np.array([0.0, 1.0, 3.0, 4.0]), "y": np.array([1.0, 0.0, 2.0, 5.0])}


def mean_loss(loss_fn: Any, params: Any, data: Any) -> Any:
    """The mean as one writes it, of which all this is not the gradient."""
    return jnp.mean(jax.vmap(loss_fn, (None, 0))(params, data))


def gradients() -> dict[str, Any]:
    """All of them, with exact answers; and one that is, beside the first."""
    zero = jnp.zeros(())
    squares = [estimators.batch_loss_gradient(_square_of_mean, zero, RESIDUAL_DATA, design) for design in DRAWS]
    line = problems.line_fit()
    g = jaxsgd.per_example_gradients(line.loss_fn)(line.params, line.data)
    scales = ("mean", "sum", "total")
    rows = np.asarray(g.materialize()["m"])
    expected = [[designs.WithoutReplacement(M, scale=scale).mean_weights(4) @ rows for M in SIZES] for scale in scales]
    gradient = jax.jit(jax.grad(partial(mean_loss, line.loss_fn)))
    rates = 1 / 20 / 2.0 ** np.arange(8)
    points = np.linspace(-1, 2, 25)
    slopes = np.stack([jax.vmap(jax.grad(lambda x: x**2 + x**3))(jnp.asarray(points)), 2 * points + 3 * points])
    return {
        "mean_residual": [each.mean for each in squares],
        "mean_residual/additive": jax.grad(mean_loss, argnums=1)(_square, zero, RESIDUAL_DATA),
        "rates": rates,
        "sequential": [_gap(gradient, rate, line) for rate in rates],
        "points": points,
        "slopes": slopes,
        "scales": np.array(expected, float),
    }


def _square(theta: Any, example: Any) -> Any:
    return (example["y"] - theta * example["x"]) ** 2


def _square_of_mean(theta: Any, batch: Any) -> Any:
    return jnp.mean(batch["y"] - theta * batch["x"]) ** 2


def _gap(gradient: Any, rate: float, line: jaxsgd.Problem) -> list[float]:
    """Where four steps end, one for each example, minus where one step with the sum of the four ends: (m, b)."""
    params = line.params
    for i in range(4):
        params = _step(params, gradient(params, {k: v[i : i + 1] for k, v in line.data.items()}), rate)
    together = _step(line.params, gradient(line.params, line.data), 4 * rate)
    return [float(params[name] - together[name]) for name in ("m", "b")]


def _step(params: Any, gradient: Any, rate: float) -> Any:
    return jax.tree.map(lambda p, g: np.asarray(p) - rate * np.asarray(g), params, gradient)


def gaps(rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far steps one after another end from one step with their sum, in m and in b.

    To first order a step i before a step j adds η² H_j g_i. In b these cancel for the order and the θ chosen here.
    """
    return 12 * rates**2 + 504 * rates**3, 168 * rates**3
