"""The noise scale of a batch, of several along a run, and of groups of parameters."""

from collections.abc import Sequence
from typing import Any, Literal, overload

from jaxtyping import PyTree

from jaxsgd import kernels
from jaxsgd._core import validate
from jaxsgd._core.groups import By, named
from jaxsgd._core.meshes import on_any_mesh
from jaxsgd.noise._estimate import Gradients, NoiseScale, estimated, require_examples
from jaxsgd.noise._groups import NoiseScales


@overload
def noise_scale(
    gradients: Gradients | Sequence[Gradients],
    *,
    population_size: int | None = None,
    confidence_level: float = 0.95,
    interval: Literal["score", "fieller", "jackknife"] = "score",
    by: None = None,
    metric: PyTree | None = None,
) -> NoiseScale: ...
@overload
def noise_scale(
    gradients: Gradients | Sequence[Gradients],
    *,
    population_size: int | None = None,
    confidence_level: float = 0.95,
    interval: Literal["score", "fieller", "jackknife"] = "score",
    by: By,
    metric: PyTree | None = None,
) -> NoiseScales: ...
@on_any_mesh
def noise_scale(
    gradients: Gradients | Sequence[Gradients],
    *,
    population_size: int | None = None,
    confidence_level: float = 0.95,
    interval: Literal["score", "fieller", "jackknife"] = "score",
    by: By | None = None,
    metric: PyTree | None = None,
) -> NoiseScale | NoiseScales:
    """Estimate the noise scale of the population that m examples were drawn from, at one θ or along a run.

    Both parts are unbiased, for tr Σ and ‖ḡ‖². Where the m examples are all there is, m = N, it is exact. The interval
    reaches up to B = ∞ where ‖ḡ‖² is not significantly above 0. Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Args:
        gradients: of the examples, independent draws or ``population_size`` without replacement; moments give an
            estimate without an interval. A list of several, each at a θ of its own with examples of its own, gives the
            ratio of their averages, which is less noisy than any one of them.
        population_size: N, the size of the population that the examples are from without replacement; infinite by
            default. ``population_size=g.count``: they are the population.
        confidence_level: with what probability the interval holds B, or more; :mod:`jaxsgd.noise` says of which laws.
        interval: "score"; or, for comparison, "fieller" or "jackknife" of a single batch, which hold B as often as they
            should from a multiple of B examples on.
        by: groups of parameters, of which :class:`NoiseScales` has one each: how many parts of paths such as
            "encoder/norm/scale" tell groups apart, a list of prefixes, or a function from paths to names, or None.
        metric: D, a pytree like ``params`` of positive weights, for tr DΣ/ḡᵀDḡ with its interval: noise as an optimizer
            that divides coordinates feels it. The Optax state of one stands for ``optimizer_metric(state)``.

    Raises:
        TypeError, ValueError: if there are fewer than two examples (of a population of more than one), or more than
            ``population_size``; if another argument is out of its range; if a gradient is not finite.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> g = kernels.per_example_gradients(loss_fn)(params, data)
    >>> round(float(noise_scale(g, population_size=4).value), 4)
    12.6
    >>> print(noise_scale(g))
    noise scale -5.25, between 0.1053 and inf, from 4 examples: the mean gradient cannot be told from 0
    """
    validate.one_of(("score", "fieller", "jackknife"), interval=interval)
    validate.fraction(confidence_level=confidence_level)
    several: list[Any] = [*gradients] if isinstance(gradients, list | tuple) else [gradients]
    if not several or (len(several) > 1 and interval != "score"):
        raise ValueError(f'gradients must be of one batch, or of several with interval="score", got {len(several)}')
    for each in several:
        if callable(getattr(each, "count", len)):  # that of a string or of a list is a method
            raise TypeError(f"gradients must be per-example gradients, their moments or lists of these, got {each!r}")
        require_examples(each, population_size)
    if metric is not None:
        several = [each.in_metric(metric) for each in several]
        for each in several:
            require_examples(each, population_size)
    total = estimated(several, population_size, confidence_level, interval)
    if by is None:
        return total
    if not all(isinstance(each, kernels.PerExampleGradients) for each in several):
        raise TypeError("gradients must be those of single examples for groups of parameters, got moments")
    groups = {
        name: estimated(
            [each.only(paths.__contains__) for each in several], population_size, confidence_level, interval
        )
        for name, paths in named(by, several[0].structure).items()
    }
    return NoiseScales(groups, total)
