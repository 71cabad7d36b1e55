"""Every way to be refused by ``noise``: the exception, its message, and the call that gives it."""

import jax.numpy as jnp
import numpy as np

import jaxsgd
from jaxsgd import moments, noise, problems
from jaxsgd.noise_scale import noise_scale_law
from tests.support.error_helpers import ONE, Case, G


def nested() -> jaxsgd.PerExampleGradients:
    """Gradients of a parameter in a tree of two levels."""
    return jaxsgd.per_example_gradients(lambda p, x: p["a"]["b"] * x)({"a": {"b": ONE}}, jnp.arange(3.0))


CASES: list[Case] = [
    (
        ValueError,
        "curvatures along gradients leave float32: scale the loss so that norms are near 1, got some near 7.28e-12, or",
        lambda *_: jaxsgd.hessian_noise_scale(
            lambda p, x: 1e-30 * jnp.sum((p * x) ** 2) + 1e-11 * jnp.sum(p * x),
            jnp.ones(1, jnp.float32),
            jnp.asarray([[1.0], [0.5]], jnp.float32),
        ),
    ),
    (
        ValueError,
        "squares of small_gradient and big_gradient underflow float32: scale the loss up, or use float64 parameters",
        lambda *_: jaxsgd.two_batch_noise_scale(
            jnp.asarray([1e-20], jnp.float32), jnp.asarray([2e-20], jnp.float32), small_size=1, big_size=2
        ),
    ),
    (
        ValueError,
        "big_gradient must be finite, got nan at (1,) in big_gradient['a']",
        lambda *_: jaxsgd.two_batch_noise_scale(
            {"a": jnp.ones(2)}, {"a": jnp.asarray([1.0, np.nan])}, small_size=1, big_size=2
        ),
    ),
    (
        ValueError,
        "big_gradient must be of the same parameters as small_gradient, with the same structure and shapes",
        lambda *_: jaxsgd.two_batch_noise_scale({"a": ONE}, {"b": ONE}, small_size=1, big_size=2),
    ),
    (
        ValueError,
        "big_gradient must be of the same parameters as small_gradient, with the same structure and shapes",
        lambda *_: jaxsgd.two_batch_noise_scale(jnp.ones(2), jnp.ones(3), small_size=1, big_size=2),
    ),
    (ValueError, "batch_size must be at least 1, got 0", lambda *_: noise.variance_factor(0, None)),
    (ValueError, "batch_size must be at most the population size 4, got 5", lambda *_: noise.variance_factor(5, 4)),
    (
        ValueError,
        "batch_size must be positive, got -1.0",
        lambda *_: jaxsgd.hessian_noise_scale(*problems.line_fit()).learning_rate(-1),
    ),
    (
        ValueError,
        "big_size must be at least 3, got 2",
        lambda *_: jaxsgd.two_batch_noise_scale(ONE, ONE, small_size=2, big_size=2),
    ),
    (
        ValueError,
        'gradients must be of one batch, or of several with interval="score", got 2',
        lambda *_: jaxsgd.noise_scale([G, G], interval="fieller"),
    ),
    (ValueError, "gradients must be of one batch, or of several … got 0", lambda *_: jaxsgd.noise_scale([])),
    (
        TypeError,
        "gradients must be those of single examples for groups of parameters, got moments",
        lambda *_: jaxsgd.noise_scale(moments.of(G), by=1),
    ),
    (TypeError, "by must be a depth, a list of prefixes or a function", lambda *_: jaxsgd.noise_scale(G, by="a")),
    (ValueError, "by must be at least 1, got 0", lambda *_: jaxsgd.noise_scale(G, by=0)),
    (
        ValueError,
        "by must name longer prefixes first, got 'a/b' after one that it begins with",
        lambda *_: jaxsgd.noise_scale(nested(), by=["a", "a/b"]),
    ),
    (
        TypeError,
        "gradients must be per-example gradients, their moments or lists of these, got 3.0",
        lambda *_: jaxsgd.noise_scale(3.0),
    ),
    (
        TypeError,
        "gradients must be per-example gradients, their moments or lists of these, got [1.0]",
        lambda *_: jaxsgd.noise_scale([[1.0], [2.0]]),
    ),
    (
        ValueError,
        "by must be prefixes of names of parameters, such as ",
        lambda *_: jaxsgd.noise_scale(G, by=["layer"]),
    ),
    (
        ValueError,
        "by must give at least one parameter a group, got none",
        lambda *_: jaxsgd.noise_scale(G, by=lambda name: None),
    ),
    (
        ValueError,
        "interval must be one of score, fieller, jackknife, got 'normal'",
        lambda *_: jaxsgd.noise_scale(G, interval="normal"),
    ),
    (
        ValueError,
        "confidence_level must be between 0 and 1, got 95",
        lambda *_: jaxsgd.noise_scale(G, confidence_level=95),
    ),
    (
        ValueError,
        "the number of examples must be at most 3, got 4",
        lambda *_: jaxsgd.noise_scale(G, population_size=3),
    ),
    (
        ValueError,
        "the number of examples must be at least 2, got 1",
        lambda *_: jaxsgd.noise_scale(G.take(slice(0, 1))),
    ),
    (
        TypeError,
        "population_size must be an integer, got 2.5",
        lambda *_: jaxsgd.noise_scale(moments.of(G), population_size=2.5),
    ),
    (
        ValueError,
        "batch_size must be at most the population size 4, got 5",
        lambda *_: noise_scale_law(G, 5),
    ),
    (
        TypeError,
        "key must be a key such as jax.random.key(0), got None of type NoneType",
        lambda *_: jaxsgd.hessian_noise_scale(*problems.line_fit(), num_probes=4),
    ),
]
