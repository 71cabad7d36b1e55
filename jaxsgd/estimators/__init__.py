"""Expectation and variance of minibatch gradients: the only place where a design meets gradients.

A batch is a random weight vector w, and ĝ = Σ w_i g_i with every g_i taken at the same θ. The proof for 1 < M ≤ N:

    1   E ĝ = Σ E[w_i] g_i                           a finite sum: linearity, nothing else
    2   E ĝ = ḡ for every data set ⇔ E w_i = 1/N     the g_i can be any vectors
    3   w_i = n_i/M, Σ E n_i = M                      the mean of M draws, n_i of them example i
    4   E n_i = M/N, so E w_i = 1/N                   no example is preferred, whatever M is

Neither independence nor distinctness is used. Both enter the variance only:

    5   Cov ĝ = Gᵀ Cov(w) G, tr Cov ĝ = Σ_ij Cov(w)_ij ⟨g_i, g_j⟩
    6   without replacement Cov w = c_M (I/N − 11ᵀ/N²), so Cov ĝ = c_M Σ, c_M = (N−M)/(M(N−1))
    7   with replacement Cov w = (1/M)(I/N − 11ᵀ/N²), so Cov ĝ = Σ/M

:func:`exact` evaluates this, :func:`enumerate_batches` sums over every batch, :func:`monte_carlo` draws batches;
the three agree, exactly or within the standard errors they carry. The curves do the same for every batch size.
"""

from jaxsgd._core.faces import at_home
from jaxsgd.estimators._batch_loss import BatchLossGradient, batch_loss_gradient
from jaxsgd.estimators._comparison import Comparison, compare, design_effect, optimal_probabilities, stratum_deviations
from jaxsgd.estimators._curves import (
    DesignName,
    SquaredErrorLaw,
    VarianceCurve,
    monte_carlo_curve,
    squared_error_law,
    variance_curve,
)
from jaxsgd.estimators._enumeration import (
    PopulationVariance,
    descent_probability,
    enumerate_batches,
    enumerate_data_sets,
)
from jaxsgd.estimators._exact import Estimate, exact
from jaxsgd.estimators._monte_carlo import merge, monte_carlo
from jaxsgd.estimators._one_batch import (
    CentralMoments,
    horvitz_thompson_variance,
    sen_yates_grundy_variance,
    with_replacement_variance,
    without_replacement_central_moments,
    without_replacement_variance,
)
from jaxsgd.estimators._superpopulation import PopulationFactors, population_factors

__all__ = [
    "BatchLossGradient",
    "CentralMoments",
    "Comparison",
    "DesignName",
    "Estimate",
    "PopulationFactors",
    "PopulationVariance",
    "SquaredErrorLaw",
    "VarianceCurve",
    "batch_loss_gradient",
    "compare",
    "descent_probability",
    "design_effect",
    "enumerate_batches",
    "enumerate_data_sets",
    "exact",
    "horvitz_thompson_variance",
    "merge",
    "monte_carlo",
    "monte_carlo_curve",
    "optimal_probabilities",
    "population_factors",
    "sen_yates_grundy_variance",
    "squared_error_law",
    "stratum_deviations",
    "variance_curve",
    "with_replacement_variance",
    "without_replacement_central_moments",
    "without_replacement_variance",
]

at_home(__name__, __all__)
