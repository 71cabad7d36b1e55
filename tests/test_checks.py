"""The check passes where the engine is right, and says where it is not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd import problems
from jaxsgd._core import loss_functions
from jaxsgd.kernels.factors import _dense, _outer_products
from tests.support.models import MODELS
from tests.support.registry import quick


@pytest.mark.parametrize(
    "name",
    quick(
        ["tanh", "tied_embedding", "conv_same", "weight_normalized", "partly_frozen"], {"tied_embedding", "conv_same"}
    ),
)
def test_passes_where_the_engine_is_right(name: str) -> None:
    loss_fn, params, batch, _ = MODELS[name]()
    check = jaxsgd.check_per_example(loss_fn, params, batch)
    g = jaxsgd.per_example_gradients(loss_fn)(params, batch)
    assert check.passed, check
    assert check.num_examples == 4
    assert check.largest_error < 1e-12
    assert [p.shape for p in check.parameters] == [leaf.shape for leaf in jax.tree.leaves(params)]
    assert [(p.rule, p.kept_as) for p in check.parameters] == [
        (rule, factor.describe()) for rule, factor in zip(g.rules, g.factors, strict=True)
    ]
    kept = sum(leaf.nbytes for factor in g.factors for leaf in jax.tree.leaves(factor))
    assert sum(p.bytes_kept for p in check.parameters) == kept
    assert "equals the loop over 4 examples" in str(check)


MUTATIONS = {
    "squared_norms": lambda factor: factor.squared_norms() * 1.001,
    "mean": lambda factor: factor.mean() * (1 + 1e-6),
    "gram": lambda factor: factor.squared_norms()[:, None] * jnp.ones((1, factor.count)),
    "coordinate_deviations": lambda factor: factor.second_moment() * factor.count,
}


@pytest.mark.parametrize("method", quick(MUTATIONS, {"mean"}))
def test_names_the_statistic_and_the_parameter_that_are_wrong(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a check that compares the engine with itself, or with a tolerance that hides an error."""
    original = {
        name: getattr(_outer_products.OuterProducts, name) for name in ("squared_norms", "mean", "second_moment")
    }

    def wrong(factor: Any, *arguments: Any) -> Any:
        del arguments
        stand_in = type("Original", (), {k: staticmethod(lambda f=f: f(factor)) for k, f in original.items()})
        stand_in.count = factor.count
        return MUTATIONS[method](stand_in)

    monkeypatch.setattr(_outer_products.OuterProducts, method, wrong)
    jax.clear_caches()
    check = jaxsgd.check_per_example(*problems.mlp(*_data(), key=jax.random.key(0), hidden=4))
    jax.clear_caches()
    assert not check.passed
    assert "DIFFERS FROM" in str(check)
    for parameter in check.parameters:
        if parameter.rule == "dot_general":
            assert parameter.worst == {"coordinate_deviations": "variance"}.get(method, method)
            assert parameter.errors[parameter.worst] > check.tolerance
        else:
            assert max(parameter.errors.values()) < check.tolerance


def _data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(9, 3)) + 1, rng.normal(size=(9, 2))


def test_gradients_that_are_not_a_number_do_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dense.Dense, "squared_norms", lambda self: jnp.full(self.count, jnp.nan))
    jax.clear_caches()
    check = jaxsgd.check_per_example(*problems.line_fit())
    jax.clear_caches()
    assert not check.passed
    assert check.largest_error == float("inf")


@pytest.mark.slow
def test_a_parameter_that_the_loss_ignores_has_no_error() -> None:
    loss_fn, params, batch, _ = MODELS["partly_frozen"]()
    errors = {p.path: p.errors for p in jaxsgd.check_per_example(loss_fn, params, batch).parameters}
    assert set(errors["['ignored']"].values()) == {0.0}


@pytest.mark.slow
def test_tolerance_is_two_thirds_of_the_digits() -> None:
    loss_fn, params, batch, _ = MODELS["tanh"]()
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    data = batch | {"x": batch["x"].astype(jnp.float32)}
    check = jaxsgd.check_per_example(loss_fn, single, data, num_examples=9)
    assert check.num_examples == 5
    np.testing.assert_allclose(check.tolerance, float(np.finfo(np.float32).eps) ** (2 / 3))
    assert check.passed, check


def test_a_loss_that_passed_is_not_traced_for_randomness_again() -> None:
    """Two traces of a transformer take longer than its gradients."""
    traced = []

    def loss_fn(params: jax.Array, example: jax.Array) -> jax.Array:
        traced.append(example.shape)
        return jnp.sum(params * example)

    for data, expected in ((jnp.ones((5, 3)), 2), (jnp.ones((7, 3)), 0), (jnp.ones((5, 1)), 2)):
        traced.clear()
        loss_functions.require_deterministic(loss_fn, jnp.ones(3) if expected else jnp.zeros(3), data)
        assert len(traced) == expected
