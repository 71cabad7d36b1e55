"""Gradient statistics for JAX: how noisy is a minibatch gradient, exactly, for every batch size and design.

Symbols, the same in code, docstrings and figures:

    N, M, P   population_size, batch_size, num_params: sizes of the data set, the batch, the parameters
    θ         params, a pytree
    g_i       the gradient of the loss of example i, all at the same θ
    ḡ         mean, (1/N) Σ g_i
    Σ         the population covariance of the g_i, divisor N; S² has divisor N−1
    tr Σ      trace_covariance(ddof=0); tr S² is trace_covariance(ddof=1)
    K         gram, K_ij = ⟨g_i, g_j⟩
    w         weights, the random weight vector of a sampling design; ĝ = Σ w_i g_i
    c_M       variance_factor, (N−M)/(M(N−1)): without replacement, Cov ĝ = c_M Σ

You ask … → look in …

    the gradients of my loss, one per example              kernels: per_example_gradients and its statistics
    mean and variance over a data set larger than memory   moments, sources
    are these gradients right?                             checks; model_agnostic, where there are no factors
    how is a batch drawn, with what probabilities?         designs
    bias and variance of its gradient                      estimators: exact, by enumeration, from draws, as curves in M
    how noisy is my gradient?                              noise_scale, of the module noise; signal_to_noise
    what batch size is worth it?                           batch_size
    is my batch loss an average of losses?                 check_additivity; batch_losses are those that are not
    does my accumulated step apply its gradient?           check_accumulation
    may gradient and expectation be exchanged?             exchange
    a run of SGD, many runs, a grid of them                training, monitors, tracking, sweeps
    does old gradients' knowledge reduce the noise?        variance_reduction
    where does SGD with a constant step end up?            dynamics; tails, of heavy-tailed noise
    what do losses look like around here?                  surfaces
    losses and data to try all this on                     problems
    all of it for my model, from a terminal                report
    to be stopped by SIGTERM without losing anything       shell

Importing this package changes no configuration of JAX.
"""

import jaxsgd._core.libraries  # first, so that a file that hides one of them is named
import jaxsgd.noise_scale  # noqa: F401 - loaded before the function of this name, which it would replace
from jaxsgd import (
    additivity,
    batch_losses,
    batch_size,
    checks,
    designs,
    dynamics,
    estimators,
    exchange,
    kernels,
    model_agnostic,
    moments,
    monitors,
    noise,
    problems,
    report,
    shell,
    signal_to_noise,
    sources,
    surfaces,
    sweeps,
    tails,
    tracking,
    training,
    variance_reduction,
)
from jaxsgd.additivity import check_accumulation, check_additivity
from jaxsgd.checks import check_per_example
from jaxsgd.kernels import PerExampleGradients, per_example_gradients
from jaxsgd.moments import GradientMoments, gradient_moments
from jaxsgd.noise import HessianNoiseScale, NoiseScale, hessian_noise_scale, noise_scale, two_batch_noise_scale
from jaxsgd.problems import Problem

__version__ = "0.1.0"

__all__ = [
    "GradientMoments",
    "HessianNoiseScale",
    "NoiseScale",
    "PerExampleGradients",
    "Problem",
    "__version__",
    "additivity",
    "batch_losses",
    "batch_size",
    "check_accumulation",
    "check_additivity",
    "check_per_example",
    "checks",
    "designs",
    "dynamics",
    "estimators",
    "exchange",
    "gradient_moments",
    "hessian_noise_scale",
    "kernels",
    "model_agnostic",
    "moments",
    "monitors",
    "noise",
    "noise_scale",
    "per_example_gradients",
    "problems",
    "report",
    "shell",
    "signal_to_noise",
    "sources",
    "surfaces",
    "sweeps",
    "tails",
    "tracking",
    "training",
    "two_batch_noise_scale",
    "variance_reduction",
]


def __dir__() -> list[str]:
    """Public names only, also in what an editor completes."""
    return sorted(__all__)
