"""Statistics of gradients that a map over batches or parameters returned: inside a map, or a clear refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from tests.support.registry import network

LOSS, PARAMS, BATCH = network()
STACK = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), PARAMS)


@pytest.fixture(scope="module")
def stacked():
    """The gradients at two points."""
    return jax.vmap(lambda p: jaxsgd.per_example_gradients(LOSS)(p, BATCH))(STACK)


@pytest.mark.parametrize(
    "use",
    [
        lambda g: g.squared_norms(),
        lambda g: g.mean(),
        lambda g: g.gram(),
        lambda g: g.variance(),
        lambda g: g.weighted_sum(jnp.ones(2)),
        lambda g: g.losses(),
        lambda g: g.count,
        lambda g: g.take(slice(1)),
        lambda g: g.explain(),
        jaxsgd.noise_scale,
        jaxsgd.moments.of,
        lambda g: jaxsgd.estimators.exact(jaxsgd.designs.WithReplacement(2), g),
    ],
)
def test_statistics_of_several_batches_are_refused(stacked, use) -> None:
    """Catches "too many values to unpack", and statistics along the wrong axis."""
    with pytest.raises(ValueError, match=r"have losses of shape \(2, 7\): call the statistic inside the map"):
        use(stacked)


def test_the_remedy_works(stacked) -> None:
    norms = jax.vmap(lambda g: g.squared_norms())(stacked)
    for i in range(2):
        g = jaxsgd.per_example_gradients(LOSS)(jax.tree.map(lambda leaf, i=i: leaf[i], STACK), BATCH)
        np.testing.assert_allclose(norms[i], g.squared_norms(), rtol=1e-12)
    assert jax.vmap(lambda g: g.losses())(stacked).shape == (2, 7)
