"""Error cases of losses, parameters and data: the exception, its message, and the call that gives it."""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd import designs, estimators, model_agnostic, moments, problems
from tests.support.error_helpers import KEY, LARGE, ONE, PAIR, TWO_BY_TWO, Case, G, gradients, recomputed
from tests.support.registry import gradients_given, linear_loss, measured

NOT_FINITE = measured(gradients_given([1.0, np.nan]))


def two_leaves(params: Any, example: Any) -> Any:
    return params["a"] * example["x"] + params["b"] * jnp.log(example["x"])


def bad_data(**options: Any) -> Any:
    """log(0) in example 5, for the parameter b."""
    x = jnp.arange(5.0, -1.0, -1.0)
    data = iter([{"x": x[:4]}, {"x": x[4:]}]) if options.pop("iterate", False) else {"x": x}
    return jaxsgd.gradient_moments(two_leaves, {"a": ONE, "b": ONE}, data, **options)


def network(x: Any = ((1.0, 2.0), (3.0, 4.0)), y: Any = (0, 1), **options: Any) -> Any:
    return problems.mlp(np.asarray(x), np.asarray(y), key=KEY, **options)


def without_sklearn(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    return problems.diabetes_regression()


def random_loss() -> Any:
    generator = np.random.default_rng(0)
    return lambda p, x: jnp.sum(p * x) * generator.random()


def remembering() -> Any:
    """A loss that adds up what it returned before."""
    seen: list[Any] = []

    def loss(p: Any, x: Any) -> Any:
        seen.append(jnp.sum(p * x) + sum(seen))
        return seen[-1]

    return loss


def equinox_module(folder: Path, _: Any) -> Any:
    import equinox as eqx

    return gradients(lambda net, x: net(x)[0], eqx.nn.MLP(2, 1, 3, 1, key=KEY), TWO_BY_TWO)


CASES: list[Case] = [
    (
        ValueError,
        "other must hold gradients of the same parameters and of as many examples",
        lambda *_: G.minus(PAIR),
    ),
    (
        ValueError,
        "other must be gradients that are kept, as these must be: without a memory_limit",
        lambda *_: recomputed().minus(recomputed()),
    ),
    # Gradients, data and starts that are not finite.
    *(
        (ValueError, "gradients must be finite, got nan for example 1 in params", call)
        for call in (
            lambda *_: estimators.with_replacement_variance(NOT_FINITE),
            lambda *_: estimators.without_replacement_variance(NOT_FINITE, population_size=9),
            lambda *_: estimators.horvitz_thompson_variance(NOT_FINITE, jnp.ones(2), TWO_BY_TWO, population_size=3),
            lambda *_: estimators.without_replacement_central_moments(NOT_FINITE, batch_size=1),
            lambda *_: estimators.monte_carlo(designs.WithoutReplacement(1), NOT_FINITE, key=KEY, num_draws=2),
            lambda *_: estimators.enumerate_batches(designs.WithoutReplacement(1), NOT_FINITE),
            lambda *_: estimators.variance_curve(NOT_FINITE),
            lambda *_: estimators.optimal_probabilities(NOT_FINITE),
            lambda *_: jaxsgd.noise_scale(NOT_FINITE),
            lambda *_: moments.of(NOT_FINITE),
            lambda *_: jaxsgd.check_per_example(linear_loss, ONE, jnp.asarray([1.0, np.nan])),
            lambda *_: model_agnostic.random_sign_moments(
                linear_loss, ONE, jnp.asarray([1.0, np.nan]), key=KEY, num_draws=2
            ),
        )
    ),
    (
        ValueError,
        "gradients must be finite, got inf for example 0 in params",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, jnp.asarray([np.inf, 1.0])),
    ),
    # Losses that are no functions of their arguments.
    (
        ValueError,
        "loss_fn must give the same loss for the same arguments, got … and then … must come from a key",
        lambda *_: jaxsgd.gradient_moments(random_loss(), ONE, jnp.ones(3)),
    ),
    (
        ValueError,
        "loss_fn must give the same loss for the same arguments, got … and then … must come from a key",
        lambda *_: jaxsgd.check_per_example(random_loss(), ONE, jnp.ones(3)),
    ),
    (
        ValueError,
        "loss_fn must be a function of its arguments alone: it uses a value that an earlier call of it left behind",
        lambda *_: jaxsgd.gradient_moments(remembering(), ONE, jnp.ones(3)),
    ),
    # Data and parameters of other kinds.
    (TypeError, "params must be a pytree of arrays, but params.activation is … eqx.partition(", equinox_module),
    (
        TypeError,
        "params must be real floating-point arrays, but params['n'] has dtype int64",
        lambda *_: gradients(params={"n": jnp.arange(2)}),
    ),
    (
        TypeError,
        "data must be numbers, but data has dtype object",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, np.array([[1], [2]], object)),
    ),
    (
        TypeError,
        "data must be numbers, but data has dtype datetime64[s]",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, np.array([1, 2], "datetime64[s]")),
    ),
    (
        TypeError,
        "data must be numbers, but data has dtype [('a', '<f4')]",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, np.zeros(3, [("a", "f4")])),
    ),
    (
        TypeError,
        "data must be a pytree of arrays, but data[0] is 1.0 of type float",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, [1.0, 2.0]),
    ),
    (
        ValueError,
        "data must have at least one array, got None",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, None),
    ),
    (
        ValueError,
        "data must have equally many examples in every array, but data['x'] has 3, data['y'] has 2",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, {"x": np.ones(3), "y": np.ones(2)}),
    ),
    (
        ValueError,
        "loss_fn failed on one example (example['x']: (2,)): KeyError: 'z' … loss_fn takes ONE example",
        lambda *_: gradients(lambda p, e: p * e["z"], batch={"x": TWO_BY_TWO}),
    ),
    (
        ValueError,
        "loss_fn failed on one example (example: (2,)): TypeError: mul got incompatible shapes",
        lambda *_: gradients(params=jnp.ones(3), batch=TWO_BY_TWO),
    ),
    (
        TypeError,
        "loss_fn must return one scalar, got PyTreeDef(None) for one example",
        lambda *_: gradients(lambda p, x: None),
    ),
    (ValueError, "hidden must be at least 1, got 0", lambda *_: network(hidden=0)),
    (TypeError, "chunk_size must be an integer, got '3'", lambda *_: bad_data(chunk_size="3")),
    (
        ValueError,
        "the number of examples must be at least 2, got 1",
        lambda *_: gradients(batch=(1.0,)).variance(ddof=1),
    ),
    (
        ValueError,
        "memory_limit must be at least 16 bytes, which one example needs, got 15",
        lambda *_: jaxsgd.per_example_gradients(linear_loss, memory_limit=15)(ONE, jnp.ones(3)),
    ),
    (
        ValueError,
        "num_examples must be at least 1, got 0",
        lambda *_: jaxsgd.check_per_example(*problems.line_fit(), num_examples=0),
    ),
    (
        ValueError,
        "memory_limit must be at least 1, got 0",
        lambda *_: jaxsgd.per_example_gradients(linear_loss, memory_limit=0),
    ),
    (
        ValueError,
        "the number of examples must be at least 2, got 1",
        lambda *_: moments.of(gradients(batch=(1.0,))).trace_covariance(ddof=1),
    ),
    (ValueError, "activation must be one of sigmoid, tanh, relu, got 'gelu'", lambda *_: network(activation="gelu")),
    (
        TypeError,
        "key must be a key such as jax.random.key(0), got an array of shape (3,) and dtype key<fry>",
        lambda *_: problems.digits_mlp(key=jax.random.split(KEY, 3)),
    ),
    (ValueError, "ddof must be at least 0, got -1", lambda *_: G.variance(ddof=-1)),
    (TypeError, "ddof must be an integer, got 0.5", lambda *_: moments.of(G).trace_covariance(ddof=0.5)),
    (TypeError, "y must be integers or real numbers, got dtype bool", lambda *_: network(y=(True, False))),
    (
        ValueError,
        "batches of data must have the structure of the first",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, iter([jnp.ones(2), {"x": jnp.ones(2)}])),
    ),
    (ValueError, "x must be finite, got nan in example 1", lambda *_: network(((1.0, 2.0), (3.0, np.nan)))),
    (ValueError, "y must be finite, got inf in example 0", lambda *_: network(y=(np.inf, 1.0))),
    (ValueError, "y must be a vector of labels, got shape (2, 1)", lambda *_: network(y=((0,), (1,)))),
    (ValueError, "y must be labels 0, 1, 2, ..., got -1", lambda *_: network(y=(0, -1))),
    (
        ImportError,
        "this problem's data comes with scikit-learn: pip install 'jaxsgd[experiments]'",
        lambda _, monkeypatch: without_sklearn(monkeypatch),
    ),
    (ValueError, "params must have at least one array, got {}", lambda *_: gradients(params={})),
    (
        TypeError,
        "params must be a pytree of arrays, but params['f'] is <built-in function sum> of type "
        "builtin_function_or_method; … as in `arrays, static = eqx.partition(model, eqx.is_inexact_array)`",
        lambda *_: gradients(params={"f": sum}),
    ),
    (
        TypeError,
        "params must be a pytree of arrays, but params is 1.0 of type float",
        lambda *_: jaxsgd.gradient_moments(linear_loss, 1.0, TWO_BY_TWO),
    ),
    (
        TypeError,
        "params must be real floating-point arrays, but params[0] has dtype int64",
        lambda *_: gradients(params=[jnp.asarray(1)]),
    ),
    (
        TypeError,
        "params must be real floating-point arrays, but params has dtype complex128",
        lambda *_: gradients(params=jnp.asarray(1j)),
    ),
    (ValueError, "batch must have at least one array, got {}", lambda *_: gradients(batch={})),
    (
        TypeError,
        "batch must be a pytree of arrays, but batch['n'] is 3 of type int",
        lambda *_: gradients(batch={"x": TWO_BY_TWO, "n": 3}),
    ),
    (TypeError, "batch must be numbers, but batch has dtype <U1", lambda *_: gradients(batch=np.array(["a"]))),
    (
        ValueError,
        "data must have examples along the first axis of every array, but data is a scalar",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, ONE),
    ),
    (
        ValueError,
        "batch must have equally many examples in every array, but batch['x'] has 2, batch['y'] has 3",
        lambda *_: gradients(batch={"x": TWO_BY_TWO, "y": jnp.ones(3)}),
    ),
    (
        ValueError,
        "data must have at least one example, got 0",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, jnp.ones((0, 2))),
    ),
    (TypeError, "loss_fn must be a function, got 3 of type int", lambda *_: gradients(3)),
    (
        ValueError,
        "loss_fn failed on one example (example: (2,)): ValueError: axis 1 is out of bounds … "
        "loss_fn takes ONE example, without the batch axis; was it written for a batch?",
        lambda *_: gradients(lambda p, x: jnp.sum(p * x, axis=1)[0], batch=TWO_BY_TWO),
    ),
    (
        TypeError,
        "loss_fn must return one scalar, got PyTreeDef((*, *)) for one example (example: ())",
        lambda *_: gradients(lambda p, x: (p * x, x)),
    ),
    (
        ValueError,
        "loss_fn must return a scalar for one example (example: (2,)), got shape (2,); "
        "it is given ONE example, without the batch axis",
        lambda *_: gradients(lambda p, x: p * x, batch=TWO_BY_TWO),
    ),
    (
        TypeError,
        "loss_fn must return a real floating-point number, got dtype int64",
        lambda *_: jaxsgd.gradient_moments(lambda *_: jnp.asarray(1), ONE, TWO_BY_TWO),
    ),
    (
        ValueError,
        "direction must have the structure of params, PyTreeDef({'b': *, 'm': *}), got PyTreeDef({'m': *})",
        lambda *_: G.inner_products({"m": ONE}),
    ),
    (
        ValueError,
        "direction must have the shapes of params, but direction['m'] has shape (2,), not ()",
        lambda *_: G.inner_products({"m": jnp.ones(2), "b": ONE}),
    ),
    (ValueError, "weights must have shape (4,), got (3,)", lambda *_: G.weighted_sum(jnp.ones(3))),
    (ValueError, "other must hold gradients of the same parameters", lambda *_: G.gram(PAIR)),
    (ValueError, "gradients must be finite, got -inf for example 5 in params['b']", lambda *_: bad_data()),
    (ValueError, "gradients must be finite, got -inf for example 5 in params['b']", lambda *_: bad_data(chunk_size=4)),
    (ValueError, "gradients must be finite, got -inf for example 5 in params['b']", lambda *_: bad_data(iterate=True)),
    (
        ValueError,
        "squared gradient norms overflow float32: scale the loss down, or use float64 parameters",
        lambda *_: moments.of(measured(gradients_given([1e30], jnp.float32))),
    ),
    # Every gradient is finite, and its squared norm, but the sum is not: an infinite variance must not pass.
    (ValueError, "overflow", lambda *_: moments.of(measured(LARGE))),
    (ValueError, "overflow", lambda *_: jaxsgd.gradient_moments(*LARGE)),
    (ValueError, "overflow", lambda *_: jaxsgd.gradient_moments(*LARGE[:2], iter([LARGE.data, LARGE.data]))),
    (
        ValueError,
        "chunk_size must be None for an iterator of batches, got 2",
        lambda *_: bad_data(iterate=True, chunk_size=2),
    ),
    (
        ValueError,
        "data must have at least one batch, got an empty iterator",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, iter([])),
    ),
    (
        ValueError,
        "variance must be asked for: gradient_moments(..., per_coordinate=True)",
        lambda *_: moments.of(G).variance(),
    ),
]
