"""What the same key and data give again: the same bits, or the same number up to roundings that are stated here.

    two processes           figures, reports, runs and sweeps: every byte (here, and in ``test_faults``)
    chunks of steps         runs and what is watched on the way: every bit (``test_training``)
    chunks of examples      moments: 1e-13 of the largest gradient, or of its square, in float64 (here)
    devices                 statistics 1e-12, runs of 40 steps 1e-9, relative (``eight_devices``)
    processes with one mesh 1e-10 relative (``one_of_two``)
    dtypes                  float32 against float64: 8 ε times the scale that each statistic has (here)

A sum of N numbers in another order is off by about √N ε of their size, at most by N ε: 1e-13 is the latter for 450
examples. Nothing else depends on chunks or devices.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd import problems
from tests.support.fault_jobs import Nursery
from tests.support.models import QUICK
from tests.support.registry import PROBLEMS
from tests.support.twins import flat

EPS = float(np.finfo(np.float32).eps)
FACTOR = 8  # of the roundings of a gradient: of its data, of the loss, and of residuals that cancel two digits
KEY = jax.random.key(0)


TABLE = {name: build for name, build in PROBLEMS.items() if name != "odd_leaves"}  # which draws noise of its dtype
TABLE |= {
    "quadratics": problems.quadratics,
    "digits_mlp": lambda: problems.digits_mlp(key=KEY, hidden=16),
    "diabetes_regression": problems.diabetes_regression,
    "breast_cancer_logistic": problems.breast_cancer_logistic,
}


@pytest.mark.slow
def test_the_same_figure_in_two_processes(tmp_path):
    nursery = Nursery()
    jobs = [nursery.start("experiment", tmp_path / name) for name in "ab"]
    assert [nursery.wait(job) for job in jobs] == [0, 0], (tmp_path / "a/output").read_text()
    nursery.close()
    for path in (tmp_path / "a/figures").iterdir():
        if path.suffix != ".json":  # which says how long it took
            assert path.read_bytes() == (tmp_path / "b/figures" / path.name).read_bytes(), path.name


def test_chunks_of_examples_change_no_more_than_roundings():
    """N = 442; a chunk of 100 leaves a rest of 42."""
    problem = TABLE["diabetes_regression"]()
    whole = jaxsgd.gradient_moments(*problem, per_coordinate=True)
    largest = float(jnp.sqrt(whole.squared_norms_mean))
    found = jaxsgd.gradient_moments(*problem, per_coordinate=True, chunk_size=100)
    assert np.abs(flat(found.mean) - flat(whole.mean)).max() <= 1e-13 * largest
    assert np.abs(flat(found.variance()) - flat(whole.variance())).max() <= 1e-13 * largest**2
    assert abs(float(found.trace_covariance()) - float(whole.trace_covariance())) <= 1e-13 * largest**2


# The dtype.

FEW = ["line_fit", "line_fit_at_optimum"]


def measures(problem, dtype, through=None):
    """ḡ, variances, norms and tr Σ/‖ḡ‖² with parameters and data of a dtype, rounded to another one before."""

    def cast(leaf):
        return leaf.astype(through or dtype).astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    def compute(params, data):
        g = jaxsgd.per_example_gradients(problem.loss_fn)(params, data)
        return g.mean(), g.variance(), g.squared_norms(), g.total_deviation() / g.count

    params, data = jax.tree.map(cast, (problem.params, jax.tree.map(jnp.asarray, problem.data)))
    mean, variance, squares, trace = jax.jit(compute, compiler_options=QUICK)(params, data)
    assert squares.dtype == trace.dtype == dtype
    mean = flat(mean)
    signal = float(np.sum(mean**2))
    return mean, flat(variance), np.sqrt(np.asarray(squares, np.float64)), float(trace) / signal if signal else np.inf


def errors_in_float32(problem, through=None):
    """By statistic: the error in float32 against float64, relative to what rounding every g_i by itself makes of it.

    Rounding every g_i by δ‖g_i‖ moves ḡ and the norms by δ of the largest norm L, variances and tr Σ by 2δ L², and so
    tr Σ/‖ḡ‖² by 2δ (1 + L/‖ḡ‖) L²/‖ḡ‖²: where ḡ is small, few digits are left.
    """
    mean, variance, norms, noise = measures(problem, jnp.float64)
    found = measures(problem, jnp.float32, through)
    largest, signal = norms.max(), np.linalg.norm(mean)
    errors = {
        "mean": np.abs(found[0] - mean).max() / largest,
        "variance": np.abs(found[1] - variance).max() / (2 * largest**2),
        "norms": np.abs(found[2] - norms).max() / largest,
    }
    if signal > 1e-6 * largest:
        errors["noise scale"] = abs(found[3] - noise) * (signal / largest) ** 2 / (2 * (1 + largest / signal))
    return errors


@pytest.mark.parametrize("name", FEW)
def test_float32_is_off_by_roundings(name):
    assert max(errors_in_float32(TABLE[name]()).values()) <= FACTOR * EPS


def test_a_coarser_dtype_on_the_way_is_found_out():
    """The control: data and parameters that were bfloat16 for a moment."""
    errors = errors_in_float32(TABLE["line_fit_at_optimum"](), jnp.bfloat16)
    assert min(errors.values()) > FACTOR * EPS


@pytest.mark.slow
def test_float32_on_all_problems(capsys):
    table = {name: errors_in_float32(build()) for name, build in TABLE.items()}
    with capsys.disabled():
        print("\nfloat32 against float64, in units of eps = 1.2e-7:")
        for name, errors in table.items():
            print(f"  {name:24}" + "  ".join(f"{what} {error / EPS:.2f}" for what, error in errors.items()))
    assert max(max(errors.values()) for errors in table.values()) <= FACTOR * EPS
