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


def pytest_configure(config: pytest.Config) -> None:
    """What one worker has compiled, the others and later runs of the tests need not: `--cache-clear` forgets it."""
    config.addinivalue_line("filterwarnings", "ignore:Error reading persistent compilation cache entry")  # half-written
    if not config.pluginmanager.hasplugin("cacheprovider"):
        return
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session")
def what_is_compiled() -> dict[str, str]:
    """The environment of a process that need not compile what a test has compiled before."""
    folder = jax.config.jax_compilation_cache_dir
    sizes = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    return {"JAX_COMPILATION_CACHE_DIR": folder} | sizes if folder else {}


@pytest.fixture
def without_type_checks() -> Iterator[None]:
    """The package as its users run it: wrong arguments reach its own checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
