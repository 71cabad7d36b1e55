"""Minibatch gradients of a data set that is itself a sample: variance given the data, and variance of the data.

N independent examples of a population of mean μ and covariance Σ_P have

    Cov ĝ = E‖w‖² Σ_P + Var(Σ w_i) μμᵀ,    E‖w‖² = tr Cov w + ‖E w‖²,

since ĝ = Σ w_i g_i is, given w, a sum of independent terms. The first part of E‖w‖² is the variance given the data set
(its expectation over data sets), the second the variance of the data set itself. Without replacement

    1/M = (N−M)/(M(N−1)) · (N−1)/N + 1/N:

M of N independent examples are M independent examples, and the full batch, exact for its data, has Σ_P/N left. With
replacement the sum is 1/N + (N−1)/(NM).

The same E‖w‖² multiplies noise of an example's own. If every example of a batch is augmented anew, independently, so
that g_i becomes g_i + ε_i with E ε_i = 0 and W̄ = (1/N) Σ Cov ε_i, and all E w_i² are equal, then given the data

    Cov ĝ = Gᵀ Cov(w) G + E‖w‖² W̄,

without replacement c_M Σ + W̄/M, which is not 0 at M = N.
"""

from dataclasses import dataclass

import numpy as np

from jaxsgd import designs


@dataclass(frozen=True)
class PopulationFactors:
    """What multiplies Σ_P and μμᵀ in Cov ĝ, where N examples are drawn from a population of mean μ and covariance Σ_P.

    Attributes:
        given_data: tr Cov w: E Cov(ĝ | data) = given_data · Σ_P + of_mean · μμᵀ.
        of_data: ‖E w‖²: Cov E(ĝ | data) = of_data · Σ_P.
        of_mean: Var Σ w_i; 0 for a batch whose weights sum to 1.
    """

    given_data: float
    of_data: float
    of_mean: float

    @property
    def total(self) -> float:
        """E‖w‖²: Cov ĝ = total · Σ_P + of_mean · μμᵀ."""
        return self.given_data + self.of_data


def population_factors(design: designs.Design, population_size: int) -> PopulationFactors:
    """How the variance of ĝ splits where the data set, too, is a sample: N independent examples of a population.

    With mean μ and covariance Σ_P of the population, Cov ĝ = (tr Cov w + ‖E w‖²) Σ_P + Var(Σ w_i) μμᵀ. The law of w
    must not depend on the data, as importance probabilities from their gradients would. For data at hand,
    ``trace_covariance(ddof=1)`` is an unbiased estimate of tr Σ_P.

    Args:
        design: a law on w for a data set of N.
        population_size: N, the size of the data set; for designs that treat all examples alike, as large as you like.

    Raises:
        TypeError, ValueError: if the design is not one for N examples.

    References:
        W. G. Cochran, *Sampling Techniques*, 3rd ed., Wiley 1977, section 10.2 (two-stage sampling).

    >>> factors = population_factors(designs.WithoutReplacement(batch_size=2), 4)
    >>> factors.given_data, factors.of_data, factors.total
    (0.25, 0.25, 0.5)
    >>> population_factors(designs.WithReplacement(batch_size=2), 4).total
    0.625
    """
    covariance = design.weight_covariance(population_size)
    if isinstance(covariance, designs.ExchangeableCovariance):
        a, c = covariance
        trace, of_mean = population_size * (a - c), population_size * (a - population_size * c)
    else:
        entries = covariance.entries(population_size)
        trace, of_mean = np.trace(entries), entries.sum()
    if isinstance(design, designs.SamplingDesign):
        of_data = design.squared_norm_of_mean(population_size)
    else:
        of_data = float(np.sum(design.mean_weights(population_size) ** 2))
    return PopulationFactors(float(trace), of_data, float(of_mean))
