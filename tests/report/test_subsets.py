"""Which examples a report looks at one by one: a subset, every one of which is as likely."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgd.report._subset import Reservoir, draw
from tests.support.reports import KEY


@pytest.mark.parametrize("streamed", [False, True])
def test_subsets_are_uniform(streamed):
    """Inclusion of every example, and of neighbors together, against their probabilities; the control fails."""
    N, n, R = 10, 3, 1500
    data, together, alone = np.arange(N), np.zeros(N), np.zeros(N)
    for r in range(R):
        key = jax.random.fold_in(KEY, r)
        if streamed:
            reservoir = Reservoir(n, key)
            for _ in reservoir.passing(iter(np.array_split(data, 3))):
                pass
            subset = reservoir.subset()
        else:
            subset = draw(data, n, key)
        assert subset.examples.tolist() == subset.indices.tolist() == sorted(set(subset.indices.tolist()))
        taken = np.isin(data, subset.indices)
        alone += taken
        together += taken & np.roll(taken, 1)
    for count, p in [(alone, n / N), (together, n * (n - 1) / (N * (N - 1)))]:
        error = (p * (1 - p) / R) ** 0.5
        assert np.abs(count / R - p).max() < 4.5 * error
        first_ones = np.where(data < n, 1.0, 0.0)
        assert np.abs(first_ones - p).max() > 4.5 * error


def test_a_reservoir_of_jax_arrays_and_keys():
    batches = [{"x": jnp.arange(4.0) + 4 * i, "key": jax.random.split(jax.random.key(i), 4)} for i in range(5)]
    reservoir = Reservoir(6, KEY)
    list(reservoir.passing(iter(batches)))
    subset = reservoir.subset()
    assert subset.examples["x"].tolist() == subset.indices.tolist()
    keys = jnp.concatenate([batch["key"] for batch in batches])[subset.indices]
    assert jnp.array_equal(jax.random.key_data(subset.examples["key"]), jax.random.key_data(keys))
