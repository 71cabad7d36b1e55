"""A Python number among the parameters works as an array does, or is refused by its name, wherever there are params."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxsgd
from jaxsgd import designs, estimators, model_agnostic, monitors, problems, surfaces, training, variance_reduction

KEY = jax.random.key(0)
PARAMS: Any = {"w": jnp.asarray([1.0, -0.5]), "scale": 2.0}
BATCH = jnp.asarray([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5], [2.0, 0.0]])
DESIGN = designs.WithReplacement(2)


def loss_fn(params, x):
    return params["scale"] * jnp.tanh(x @ params["w"]) ** 2


def batch_loss(params, batch):
    return jnp.mean(jax.vmap(loss_fn, (None, 0))(params, batch))


REFUSED = {
    "per_example_gradients": lambda: jaxsgd.per_example_gradients(loss_fn)(PARAMS, BATCH),
    "gradient_moments": lambda: jaxsgd.gradient_moments(loss_fn, PARAMS, BATCH),
    "gradient_moments of batches": lambda: jaxsgd.gradient_moments(loss_fn, PARAMS, iter([BATCH])),
    "check_per_example": lambda: jaxsgd.check_per_example(loss_fn, PARAMS, BATCH),
    "check_additivity": lambda: jaxsgd.check_additivity(batch_loss, PARAMS, BATCH),
    "check_accumulation": lambda: jaxsgd.check_accumulation(
        jax.grad(batch_loss), batch_loss, PARAMS, BATCH, num_microbatches=2
    ),
    "batch_loss_gradient": lambda: estimators.batch_loss_gradient(batch_loss, PARAMS, BATCH, DESIGN),
    "inner_products": lambda: model_agnostic.inner_products(loss_fn, PARAMS, BATCH, PARAMS),
    "run_sgd": lambda: training.run_sgd(loss_fn, PARAMS, BATCH, optax.sgd(0.1), DESIGN, 1, KEY),
    "hessian_noise_scale": lambda: jaxsgd.hessian_noise_scale(loss_fn, PARAMS, BATCH, key=KEY),
    "mean_loss": lambda: problems.mean_loss(loss_fn, PARAMS, BATCH),
    "SVRG": lambda: variance_reduction.SVRG(loss_fn, DESIGN, refresh_every=2).init(KEY, PARAMS, BATCH),
    "SAGA": lambda: variance_reduction.SAGA(loss_fn, DESIGN).init(KEY, PARAMS, BATCH),
    "surfaces": lambda: surfaces.losses_along(loss_fn, PARAMS, BATCH, {"w": BATCH[:1]}, jnp.zeros((1, 1))),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.usefixtures("without_type_checks")
def test_a_python_number_is_refused_by_its_name(name: str) -> None:
    """Catches an error of JAX's, or of a missing attribute, about a number that is nowhere named."""
    with pytest.raises(TypeError, match=r"but params\['scale'\] is 2.0 of type float; write jnp.asarray\(2.0\)"):
        REFUSED[name]()


def test_a_monitor_takes_it_as_an_array() -> None:
    state = monitors.gradient_snr(per_coordinate=True).init(PARAMS)
    assert [leaf.shape for leaf in state.totals["trace_covariance"]] == [(), (2,)]
    assert monitors.noise_scale().init(PARAMS).totals["trace_covariance"].dtype == jnp.float64
