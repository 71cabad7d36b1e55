"""Sums over every batch that a design can draw: the oracles for small populations.

Nothing about the design is used but its support and the probabilities, so these are the answers that formulas and draws
are held against. A support of S batches costs S N numbers: larger ones are refused before any work.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd import designs, kernels
from jaxsgd._core import devices, validate
from jaxsgd._core.meshes import on_any_mesh
from jaxsgd.estimators._contraction import squared_errors
from jaxsgd.estimators._exact import Estimate


@on_any_mesh
def descent_probability(
    design: designs.Design, g: kernels.PerExampleGradients, *, max_batches: int = 100_000
) -> Fraction:
    """P(⟨ĝ, ḡ⟩ > 0), the probability that −ĝ is a descent direction of the mean loss, by summing over every batch.

    The mean loss changes by −η⟨ĝ, ḡ⟩ + O(η²) in a step −ηĝ. A batch with ⟨ĝ, ḡ⟩ = 0 counts as not descending. The signs
    are those of the inner products as rounded, each a sum of w_i ⟨g_i, ḡ⟩ without further rounding.

    Args:
        design: a law on w for this population.
        g: the gradients of the whole population.
        max_batches: refuse, before any work, where the design can draw more.

    Raises:
        ValueError: if the support is larger than ``max_batches``, or a gradient is not finite.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> g = kernels.per_example_gradients(loss_fn)(params, data)
    >>> [str(descent_probability(designs.WithoutReplacement(batch_size=M), g)) for M in (1, 2, 3, 4)]
    ['1/2', '2/3', '3/4', '1']
    """
    validate.positive_integer(max_batches=max_batches)
    kernels.require_finite(g)
    validate.enough(design.support_size(g.count), f"enumerate {design}", max_batches=max_batches)
    unit = kernels.unit(g)  # which changes no sign, and keeps the products from vanishing
    direction = jax.tree.map(lambda leaf: leaf / unit.astype(leaf.dtype), g.mean())
    slopes = [Fraction(float(slope)) for slope in devices.on_host(g.inner_products(direction))]
    downhill = Fraction(0)
    for probability, weights in design.support(g.count):
        if sum(w * slope for w, slope in zip(weights, slopes, strict=True) if w) > 0:
            downhill += Fraction(probability)
    return downhill


@on_any_mesh
def enumerate_batches(
    design: designs.Design, g: kernels.PerExampleGradients, *, max_batches: int = 100_000
) -> Estimate:
    """E ĝ and tr Cov ĝ by summing over every batch the design can draw: the oracle for small populations.

    Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Args:
        design: a law on w for this population.
        g: the gradients of the whole population.
        max_batches: refuse, before any work, where the support is larger.

    Raises:
        ValueError: if the support is larger than ``max_batches``, or its probabilities do not sum to one.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> g = kernels.per_example_gradients(loss_fn)(params, data)
    >>> round(float(enumerate_batches(designs.WithoutReplacement(batch_size=2), g).variance), 6)
    5.25
    """
    validate.positive_integer(max_batches=max_batches)
    kernels.require_finite(g)
    validate.enough(design.support_size(g.count), f"enumerate {design}", max_batches=max_batches)
    support = list(design.support(g.count))
    probabilities = np.array([float(probability) for probability, _ in support])
    validate.probabilities(**{f"the support of {design}": probabilities})
    weights = np.array([[float(w) for w in vector] for _, vector in support])
    mean_weights = probabilities @ weights
    errors = squared_errors(g, jnp.asarray(weights - mean_weights))
    variance = jnp.sum(jnp.asarray(probabilities, errors.dtype) * errors)
    return Estimate(
        mean=g.weighted_sum(jnp.asarray(mean_weights)),
        variance=variance,
        standard_error=jnp.zeros_like(variance),
        num_draws=0,
    )


@dataclass(frozen=True)
class PopulationVariance:
    """Mean and variance of a scalar ĝ over data sets and batches, as rational numbers.

    Attributes:
        mean: E ĝ.
        given_data: E Var(ĝ | data).
        of_data: Var E(ĝ | data).
    """

    mean: Fraction
    given_data: Fraction
    of_data: Fraction

    @property
    def total(self) -> Fraction:
        """Var ĝ = E Var(ĝ | data) + Var E(ĝ | data)."""
        return self.given_data + self.of_data


def enumerate_data_sets(
    design: designs.Design,
    values: Sequence[Fraction | int],
    population_size: int,
    *,
    probabilities: Sequence[Fraction] | None = None,
    max_batches: int = 1_000_000,
) -> PopulationVariance:
    """Mean and variance of a scalar ĝ over every data set and every batch, exactly: the oracle for small N.

    Args:
        design: a law on w for a data set of N.
        values: the gradients that one example can have, K of them.
        population_size: N; there are K^N data sets.
        probabilities: of the values; all equal by default.
        max_batches: refuse, before any work, to go through more data sets times batches than this.

    Raises:
        ValueError: if there are too many, or the probabilities are not as many as the values or do not sum to one.

    >>> drawn = enumerate_data_sets(designs.WithoutReplacement(batch_size=2), [0, 1, 5], 3)
    >>> drawn.total, drawn.given_data, drawn.of_data                          # the values have variance 14/3
    (Fraction(7, 3), Fraction(7, 9), Fraction(14, 9))
    """
    validate.positive_integer(max_batches=max_batches, population_size=population_size)
    points = [Fraction(value) for value in values]
    chances = [Fraction(1, len(points))] * len(points) if probabilities is None else list(map(Fraction, probabilities))
    validate.vector(len(points), probabilities=np.asarray(chances, dtype=np.float64))
    validate.probabilities(probabilities=chances)
    size = len(points) ** population_size * design.support_size(population_size)
    validate.enough(size, f"enumerate {design}", max_batches=max_batches)
    support = list(design.support(population_size))
    mean = square = given_data = Fraction(0)
    for chosen in itertools.product(range(len(points)), repeat=population_size):
        probability, data = Fraction(1), [points[k] for k in chosen]
        for k in chosen:
            probability *= chances[k]
        batches = [
            (p, sum((w * x for w, x in zip(weights, data, strict=True) if w), Fraction(0))) for p, weights in support
        ]
        center = sum((p * value for p, value in batches), Fraction(0))
        given_data += probability * sum(p * (value - center) ** 2 for p, value in batches)
        mean += probability * center
        square += probability * center**2
    return PopulationVariance(mean, given_data, square - mean**2)
