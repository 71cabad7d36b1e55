"""The stationary law of stochastic gradient Langevin dynamics for a Gaussian mean: why the factor N/M matters.

One scalar recursion with noise of its own: it needs the law of a design's weights and no affine maps.
"""

from typing import Any

import numpy as np

from jaxsgd import designs
from jaxsgd._core import validate
from jaxsgd._core.rational import as_array, as_number, as_numbers


def langevin_variance(design: designs.SamplingDesign, examples: Any, step_size: Any) -> Any:
    """The stationary variance of θ' = θ + (ε/2) Σ w_i (x_i − θ) + N(0, ε), exactly.

    The posterior of the mean of N examples x_i with unit variance, under a flat prior, is N(x̄, 1/N), and N x̄ − Nθ is
    its score. With the total weight W = Σ w_i of a design that draws a fixed one, θ' = (1 − εW/2) θ + noise of variance
    (ε²/4) Var(Σ w_i x_i) + ε, so

        Var θ = [ε + (ε²/4) Var(Σ w_i x_i)] / [1 − (1 − εW/2)²]  →  1/W  as ε → 0:

    the posterior for ``scale="total"`` (W = N), and otherwise a posterior that is tempered: by N for a mean (W = 1), by
    N/M for a sum (W = M).

    Args:
        design: a law on w whose total weight is the same for every batch.
        examples: x_i, shape (N,).
        step_size: ε, with 0 < εW < 4.

    Returns:
        The variance, a ``Fraction`` where everything is rational.

    Raises:
        ValueError: if the total weight is random, or the step size leaves no stationary law.

    References:
        M. Welling and Y. W. Teh, "Bayesian learning via stochastic gradient Langevin dynamics", ICML 2011.

    >>> from fractions import Fraction
    >>> langevin_variance(designs.WithoutReplacement(2, scale="total"), [0, 1, 3, 4], Fraction(1, 10))
    Fraction(10, 27)
    """
    x, step = as_array(as_numbers(examples=examples)), as_number(step_size)
    entries = design.weight_covariance(len(x)).entries(len(x))
    if abs(float(entries.sum())) > 1e-12 * float(np.abs(entries).sum()):
        raise ValueError(f"design must draw batches of one total weight, got {design}")
    contraction = 1 - step * design.scale_factor(len(x)) / 2
    validate.positive(**{"1 − (1 − εW/2)², with ε the step_size and W the total weight,": 1 - contraction**2})
    return (step + step**2 / 4 * (x @ entries @ x)) / (1 - contraction**2)
