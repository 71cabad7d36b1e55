"""What Optax needs."""

import jax
import pytest


@pytest.fixture
def optax_promotes():
    """Most of Optax multiplies numbers of different dtypes, which the tests forbid elsewhere."""
    with jax.numpy_dtype_promotion("standard"):
        yield
