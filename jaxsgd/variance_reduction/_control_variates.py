"""Control variates under a sampling design: their law, the best coefficient, and which examples a batch has seen.

With d_i = g_i − β h_i, v = ĝ − β (ĥ − h̄) is Σ w_i d_i + β h̄, so that the law of a minibatch gradient is its law too:

    E v = Σ E[w_i] d_i + β h̄,    Cov v = Dᵀ Cov(w) D,

which is E v = ḡ for every β where E w_i = 1/N. Without replacement Cov v = c_M Cov(d): the noise is that of the
differences, and none is left where they are all equal. The differences are kept in factored form.

tr Cov v = A − 2 β B + β² C is a parabola, of A = tr Cov ĝ, C = tr Cov ĥ and 2B = A + C − tr Cov(ĝ − ĥ). At β* = B/C it
is A (1 − ρ²) with ρ² = B²/(A C), never more than without control, whereas SVRG's β = 1 has more where 2B < C. Under
designs that treat all examples alike and draw a fixed number of them, β* does not depend on the number.

This is about one batch at fixed gradients; what is carried from step to step is in ``_estimators``.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from jaxsgd import designs, estimators, kernels
from jaxsgd._core import validate
from jaxsgd._core.meshes import on_any_mesh


@on_any_mesh
def exact(
    design: designs.Design,
    g: kernels.PerExampleGradients,
    control: kernels.PerExampleGradients,
    *,
    coefficient: Any = 1.0,
) -> estimators.Estimate:
    """E v and tr Cov v of v = ĝ − β (ĥ − h̄), exactly, for one batch from which both ĝ and ĥ are.

    v is unbiased for every β where E w_i = 1/N, and its noise is that of the differences g_i − β h_i. For SVRG, h are
    the gradients at the snapshot; for SAGA, those of its table. For SAG, they are those of the table too, with the
    design ``Inclusion(design)``. Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Args:
        design: a law on w for this population. Of one whose scale is not that of a mean, h̄ has that scale too.
        g: the gradients of the whole population.
        control: h, gradients of the same parameters and examples, in the same order.
        coefficient: β, one number.

    Raises:
        ValueError: if the two are not gradients of the same parameters and of as many examples, or are computed anew
            under a ``memory_limit``; and what ``estimators.exact`` raises.

    References:
        R. Johnson and T. Zhang, NeurIPS 2013, for SVRG. A. Defazio, F. Bach and S. Lacoste-Julien, NeurIPS 2014, for
            SAGA.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.quadratics()
    >>> g, h = (kernels.per_example_gradients(loss_fn)(params + at, data) for at in (1.0, 0.5))
    >>> law = exact(designs.WithoutReplacement(1), g, h)
    >>> float(law.mean), round(float(law.variance), 6)
    (2.0, 0.166667)
    """
    law = estimators.exact(design, g.minus(control, coefficient))
    return dataclasses.replace(law, mean=with_mean(design, law.mean, control.mean(), coefficient, g.count))


def with_mean(design: Any, difference: Any, mean: Any, coefficient: Any, population_size: int) -> Any:
    """Σ w_i d_i + β h̄, at the scale of the design."""
    scale = design.scale_factor(population_size) if isinstance(design, designs.SamplingDesign) else 1
    factor = coefficient * float(scale)
    return jax.tree.map(lambda d, h: d + jnp.asarray(factor).astype(h.dtype) * h, difference, mean)


class OptimalCoefficient(NamedTuple):
    """The best multiple of a control variate, and what is left of the variance with it.

    Attributes:
        value: β*, which may be negative, and above 1.
        variance: tr Cov v at β*.
    """

    value: Any
    variance: Any


@on_any_mesh
def optimal_coefficient(
    design: designs.Design, g: kernels.PerExampleGradients, control: kernels.PerExampleGradients
) -> OptimalCoefficient:
    """β* = tr Cov(ĝ, ĥ) / tr Cov(ĥ), of all coefficients the one of least variance, exactly.

    With it the variance is never more than without control, whereas SVRG's β = 1 may have more.
    Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Args:
        design: a law on w for this population.
        g: the gradients of the whole population.
        control: h, gradients of the same parameters and examples, in the same order.

    Raises:
        ValueError: if ĥ has no variance under this design; and what ``estimators.exact`` raises.

    References:
        S. Asmussen and P. W. Glynn, *Stochastic Simulation*, Springer 2007, chapter V, for scalars.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.quadratics()
    >>> g, h = (kernels.per_example_gradients(loss_fn)(params + at, data) for at in (1.0, 0.5))
    >>> round(float(optimal_coefficient(designs.WithoutReplacement(1), g, h).value), 6)
    1.142857
    """
    own, of_control, of_difference = (
        estimators.exact(design, each).variance for each in (g, control, g.minus(control))
    )
    if not isinstance(of_control, jax.core.Tracer):
        validate.positive(**{f"the variance of control under {design}": float(of_control)})
    best = (own + of_control - of_difference) / (2 * of_control)
    return OptimalCoefficient(best, estimators.exact(design, g.minus(control, best)).variance)


@dataclass(frozen=True)
class Inclusion:
    """The law of u_i = I_i/N, where I_i tells whether example i is in a batch of another design.

    SAG replaces the rows of its table that the batch contains, and steps along the mean of the new table,
    h̄ + Σ u_i (g_i − h_i). So its law is that of SAGA with u in place of w:

        E u_i = π_i/N,    Cov(u_i, u_j) = (π_ij − π_i π_j)/N²,    E v − ḡ = −(1/N) Σ (1 − π_i)(g_i − h_i),

    which is −(1 − M/N)(ḡ − h̄) where each example has the same chance π_i = M/N: biased unless the batch is full, with
    M²/N² of SAGA's variance. Designs of which all examples are alike need two numbers; others the N² numbers π_ij, and
    refuse populations of more than 4096.

    Args:
        design: a design of the package.

    References:
        N. Le Roux, M. Schmidt and F. Bach, "A stochastic gradient method with an exponential convergence rate for
        finite training sets", NeurIPS 2012.

    >>> Inclusion(designs.WithoutReplacement(2)).mean_weights(4).tolist()
    [0.125, 0.125, 0.125, 0.125]
    """

    design: designs.SamplingDesign

    def weights(self, key: Array, population_size: int) -> Float[Array, " n"]:
        """One draw of u, shape (N,)."""
        drawn = self.design.weights(key, population_size)
        return (drawn != 0).astype(drawn.dtype) / population_size

    def mean_weights(self, population_size: int) -> Float64[np.ndarray, " n"]:
        """E u = π/N, shape (N,)."""
        return self.design.inclusion_probabilities(population_size) / population_size

    def weight_covariance(self, population_size: int) -> designs.Covariance:
        """Cov u."""
        N, of_design = population_size, self.design.weight_covariance(population_size)
        pi = self.design.inclusion_probabilities(N)
        if isinstance(of_design, designs.ExchangeableCovariance) and np.ptp(pi) == 0:
            mean = float(self.design.mean_weights(N)[0])
            variance = float(of_design.identity - of_design.common)
            if abs(variance - mean**2 * (1 / pi[0] - 1)) <= 1e-12 * mean**2 / pi[0]:  # w_i is 0 or E[w_i]/π_i
                return of_design.scaled(float(pi[0]) / (N * mean))
        if N > _MAX_DENSE:
            raise ValueError(
                f"population_size must be at most {_MAX_DENSE} for the covariance of {self}, which has no structure, "
                f"got {N}: use estimators.monte_carlo"
            )
        matrix = self.design.joint_inclusion_probabilities(N) - np.outer(pi, pi)
        return designs.DenseCovariance(matrix, np.full(N, 1 / N), matrix.sum(axis=1))

    def support_size(self, population_size: int) -> int:
        """How many values w can take; u may take fewer, some of them more than once."""
        return self.design.support_size(population_size)

    def support(self, population_size: int) -> Iterator[tuple[Fraction, designs.WeightVector]]:
        """Every value of w with its probability, as u."""
        seen, missed = Fraction(1, population_size), Fraction(0)
        for probability, weights in self.design.support(population_size):
            yield probability, tuple(seen if w else missed for w in weights)


_MAX_DENSE = 4096  # examples; N × N numbers
