"""How likely a minibatch gradient is to point downhill; ``estimators`` re-exports the public name."""

from fractions import Fraction

from jaxsgd import _sharding, _validate, designs, kernels


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
    _validate.positive_integer(max_batches=max_batches)
    kernels.require_finite(g)
    _validate.enumerable(max_batches=max_batches, size=design.support_size(g.count), design=design)
    slopes = [Fraction(float(slope)) for slope in _sharding.on_host(g.inner_products(g.mean()))]
    downhill = Fraction(0)
    for probability, weights in design.support(g.count):
        if sum(w * slope for w, slope in zip(weights, slopes, strict=True) if w) > 0:
            downhill += Fraction(probability)
    return downhill
