"""Every size that people have, in float32 without x64, where an integer beyond 2³¹ is refused or another one."""

import dataclasses
import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd import designs, estimators, moments

ROOT = Path(__file__).parents[2]
# of the digits of float32: differences of sums that are known to n times a rounding
LOOSE = {"signal_to_noise.early_stopping_evidence": 1e-2, "noise.two_batch_noise_scale": 1e-2, "tested_size": 1e-2}
LOOSE |= {"noise.mean_fourth_power": 1e-2, "noise.noise_scale_law": 1e-2}


@pytest.mark.parametrize(
    ("n", "loss", "at_least"),
    [
        (256, "dense", 20),
        *(
            pytest.param(n, "layers", k, marks=pytest.mark.slow)
            for n, k in ((256, 75), (10_000, 65), (100_000, 65), (10**6, 15))
        ),
    ],
)
def test_float32_without_x64(n: int, loss: str, at_least: int) -> None:
    """Catches a Python integer such as n (n − 1)(n − 2)(n − 3) in compiled code, from n = 217 on."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_ENABLE_X64": "0"}
    if jax.config.jax_compilation_cache_dir:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
    command = [sys.executable, "-m", "tests.support.sizes_job", str(n), loss]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    errors = {name: error for name, (error, _) in json.loads(done.stdout.splitlines()[-1]).items()}
    assert len(errors) >= at_least
    wrong = {name: error for name, error in errors.items() if not error < LOOSE.get(name, 1e-3)}
    assert not wrong, wrong


def test_counts_beyond_int32_are_not_wrapped() -> None:
    """Catches 2³⁰ + 2³⁰ examples that are −2³¹."""
    with jax.enable_x64(False):
        rows = jnp.asarray([[1.0], [3.0]], jnp.float32)
        m = jaxsgd.gradient_moments(lambda p, x: jnp.sum(p * x), jnp.ones(1, jnp.float32), rows)
        many = dataclasses.replace(m, count=jnp.asarray(2**30), sum_squared_deviations=jnp.float32(2**30))
        with pytest.raises(ValueError, match="the number of examples must be at most"):
            moments.merge(many, many)


@pytest.mark.parametrize(
    "design",
    [
        designs.WithReplacement(3),
        designs.WithoutReplacement(1),
        designs.DistinctUnits(5),
        designs.Reshuffling(3, drop_last=False),
        designs.Bernoulli(Fraction(1, 3)),
        designs.Bernoulli(0.25, normalize="realized"),
    ],
    ids=str,
)
def test_a_population_of_any_size(design: designs.SamplingDesign) -> None:
    """Catches N numbers for one: of 10¹², memory would end the process."""
    small, large = (estimators.population_factors(design, N) for N in (10**6, 10**12))
    assert np.isclose(large.of_data, 1e-12, rtol=1e-9)
    if isinstance(design, designs.Bernoulli):
        assert np.isclose(large.given_data * 10**12, small.given_data * 10**6, rtol=1e-4)
    else:
        assert np.isclose(large.total, small.total, rtol=1e-5)


@pytest.mark.parametrize(("N", "M"), [(30_000, 2), (30_000, 3), (2_000_000, 76), (70, 400)])
def test_the_sum_of_powers_is_that_of_its_terms(N: int, M: int) -> None:
    j = np.arange(1, N + 1, dtype=np.longdouble)
    direct = float(((j / N) ** (M - 1)).sum() / N)
    assert np.isclose(float(designs.DistinctUnits(M).expected_reciprocal_size(N)), direct, rtol=1e-14)
