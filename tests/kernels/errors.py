"""Every way to be refused by ``kernels``: the exception, its message, and the call that gives it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd import designs, estimators, moments, variance_reduction
from jaxsgd._core import memory
from jaxsgd.kernels.factors import Dense, WithSharedPart
from tests.support.error_helpers import KEY, NOT_FINITE, ONE, PAIR, TWO_BY_TWO, Case, G, bad_data, gradients, recomputed
from tests.support.registry import gradients_given, linear_loss, measured


def equinox_module(folder: Path, _: Any) -> Any:
    import equinox as eqx

    return gradients(lambda net, x: net(x)[0], eqx.nn.MLP(2, 1, 3, 1, key=KEY), TWO_BY_TWO)


def without_memory(_: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(memory, "free_bytes", lambda: 10**9)
    return gradients(batch=jnp.ones(20_000)).gram()


def a_frame(*_: Any) -> Any:
    return gradients(batch=pytest.importorskip("pandas").DataFrame({"x": [1.0, 2.0]}))


def a_sparse_array(*_: Any) -> Any:
    from scipy.sparse import csr_array

    return gradients(batch=csr_array(np.eye(2)))


def without_x64(call: Callable[[], Any]) -> Any:
    with jax.enable_x64(False):
        return call()


CASES: list[Case] = [
    (
        TypeError,
        "params must be a pytree of arrays, but params['scale'] is 2.0 of type float; write jnp.asarray(2.0), or leave",
        lambda *_: gradients(params={"w": ONE, "scale": 2.0}),
    ),
    (
        TypeError,
        "loss_fn must return (loss, aux) with has_aux=True, got PyTreeDef(*)",
        lambda *_: jaxsgd.per_example_gradients(linear_loss, has_aux=True)(ONE, jnp.ones(2)),
    ),
    (
        TypeError,
        "loss_fn must be called as loss_fn(params, example): missing a required argument: 'key'; … key=...",
        lambda *_: jaxsgd.per_example_gradients(lambda p, x, key: p * x)(ONE, jnp.ones(2)),
    ),
    (
        TypeError,
        "key must be a key such as jax.random.key(0), got 3 of type int",
        lambda *_: jaxsgd.per_example_gradients(lambda p, x, key: p * x)(ONE, jnp.ones(2), key=3),
    ),
    (
        TypeError,
        "got PyTreeDef((*, *)) for one example (example: ()); has_aux=True is for (loss, aux)",
        lambda *_: gradients(lambda p, x: (p * x, x)),
    ),
    (
        ValueError,
        "statistics are of one batch, and these gradients, … have losses of shape (2, 3): call the statistic inside",
        lambda *_: jax.vmap(lambda p: gradients(params=p, batch=(1.0, 2.0, 3.0)))(jnp.ones(2)).mean(),
    ),
    (
        ValueError,
        "must be computed inside jax.shard_map, which returned that part once for each device: (6,) for (3,)",
        lambda *_: WithSharedPart(Dense(jnp.ones((2, 3))), jnp.ones(6)).mean(),
    ),
    (
        ValueError,
        "metric must have the structure of params, PyTreeDef({'b': *, 'm': *}), got PyTreeDef(*)",
        lambda *_: jaxsgd.noise_scale(G, metric=2.0),
    ),
    (
        TypeError,
        "metric must be real floating-point arrays, but metric['b'] has dtype int64",
        lambda *_: G.in_metric({"b": jnp.asarray(1), "m": ONE}),
    ),
    (
        ValueError,
        "scales must have the shapes of params, but scales['m'] has shape (2,), not ()",
        lambda *_: G.stretched({"m": jnp.ones(2), "b": ONE}),
    ),
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
    (TypeError, "params must be a pytree of arrays, but params.activation is … eqx.partition(", equinox_module),
    (
        TypeError,
        "params must be real floating-point arrays, but params['n'] has dtype int64",
        lambda *_: gradients(params={"n": jnp.arange(2)}),
    ),
    (
        KeyError,
        "'z' … loss_fn failed so on one example (example['x']: (2,))",
        lambda *_: gradients(lambda p, e: p * e["z"], batch={"x": TWO_BY_TWO}),
    ),
    (
        TypeError,
        "mul got incompatible shapes … loss_fn failed so on one example (example: (2,))",
        lambda *_: gradients(params=jnp.ones(3), batch=TWO_BY_TWO),
    ),
    (
        TypeError,
        "loss_fn must return one scalar, got PyTreeDef(None) for one example",
        lambda *_: gradients(lambda p, x: None),
    ),
    (
        ValueError,
        "memory_limit must be at least 16 bytes, which one example needs, got 15",
        lambda *_: jaxsgd.per_example_gradients(linear_loss, memory_limit=15)(ONE, jnp.ones(3)),
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
        "batch must have equally many examples in every array, but batch['x'] has 2, batch['y'] has 3",
        lambda *_: gradients(batch={"x": TWO_BY_TWO, "y": jnp.ones(3)}),
    ),
    (TypeError, "loss_fn must be a function, got 3 of type int", lambda *_: gradients(3)),
    (
        ValueError,
        "loss_fn failed on one example (example: (2,)), and gives a number for a batch: ValueError: axis 1 is out of "
        "bounds … "
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
        ValueError,
        "the number of examples must be at least 2, got 1",
        lambda *_: gradients(batch=(1.0,)).variance(ddof=1),
    ),
    (ValueError, "ddof must be at least 0, got -1", lambda *_: G.variance(ddof=-1)),
    (
        ValueError,
        "memory_limit must be at least 1, got 0",
        lambda *_: jaxsgd.per_example_gradients(linear_loss, memory_limit=0),
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
    # Through those who call it.
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
        )
    ),
    (
        ValueError,
        "gradients must be finite, got inf for example 0 in params",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, jnp.asarray([np.inf, 1.0])),
    ),
    (ValueError, "gradients must be finite, got -inf for example 5 in params['b']", lambda *_: bad_data()),
    (ValueError, "gradients must be finite, got -inf for example 5 in params['b']", lambda *_: bad_data(chunk_size=4)),
    (ValueError, "gradients must be finite, got -inf for example 5 in params['b']", lambda *_: bad_data(iterate=True)),
    (
        ValueError,
        "squared gradient norms overflow float32: scale the loss down, or use float64 parameters",
        lambda *_: moments.of(measured(gradients_given([1e30], jnp.float32))),
    ),
    (
        ValueError,
        "squared gradient norms underflow float32: scale the loss up, or use float64 parameters",
        lambda *_: estimators.with_replacement_variance(measured(gradients_given([1e-20, -2e-20], jnp.float32))),
    ),
    (
        ValueError,
        "squared gradient norms underflow float32: scale the loss up, or use float64 parameters",
        lambda *_: moments.of(measured(gradients_given([1e-20, 2e-20], jnp.float32))),
    ),
    (
        ValueError,
        "a Gram matrix of 20000 by 20000 examples takes 6.4e+09 bytes, and 1e+09 are free: take fewer",
        without_memory,
    ),
    (TypeError, "batch must be arrays, got a pandas frame, whose brackets choose columns", a_frame),
    (TypeError, "batch must be dense arrays, got a sparse csr_array: pass batch.toarray()", a_sparse_array),
    (
        ValueError,
        "batch must have no masked entries: fill them in, or leave the examples out",
        lambda *_: gradients(batch=np.ma.masked_equal(np.arange(3.0), 1)),
    ),
    (
        ValueError,
        "batch must be integers from -2147483648 to 2147483647, as JAX has without jax_enable_x64, but batch['id'] has "
        "2147483648",
        lambda *_: without_x64(lambda: gradients(batch={"id": np.array([0, 2**31])})),
    ),
    (
        ValueError,
        "data must be integers from 0 to 4294967295, as JAX has without jax_enable_x64, but data has 4294967296",
        lambda *_: without_x64(
            lambda: moments.gradient_moments(
                lambda p, e: p * e["x"], jnp.ones(()), {"x": np.ones(2), "id": np.array([0, 2**32], np.uint64)}
            )
        ),
    ),
    (
        ValueError,
        "other must hold gradients of the same parameters and of as many examples",
        lambda *_: variance_reduction.exact(designs.WithoutReplacement(1), G, G.take(slice(2))),
    ),
    (
        TypeError,
        "g must be what per_example_gradients returns, got an array of shape (2, 2)",
        lambda *_: estimators.monte_carlo(designs.WithReplacement(1), TWO_BY_TWO, key=KEY, num_draws=2),
    ),
    (
        ValueError,
        "gradients must be finite, got nan for example 1 in params",
        lambda *_: estimators.exact(designs.Poisson([1.0, 1.0]), measured(gradients_given([1.0, np.nan]))),
    ),
]
