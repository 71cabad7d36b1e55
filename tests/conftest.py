"""Strict switches for every test: shapes and types checked, no silent promotion of dtypes or ranks, float64.

They are set before jaxsgd is imported anywhere. Warnings are errors through pyproject.toml.
"""

from collections.abc import Iterator

import jax
import jaxtyping
import pytest

jaxtyping.install_import_hook("jaxsgd", "beartype.beartype")
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def without_type_checks() -> Iterator[None]:
    """The package as its users run it: wrong arguments reach its own checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
