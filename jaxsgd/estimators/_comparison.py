"""Designs against each other: design effects, a table, and the probabilities and strata's deviations that are best.

Designs of any kind are compared by what ``exact`` finds of each, in units of simple random sampling.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64, PyTree

from jaxsgd import designs, kernels, moments
from jaxsgd._core import devices, validate
from jaxsgd._core.meshes import on_any_mesh
from jaxsgd.estimators import _contraction
from jaxsgd.estimators._exact import exact

Reference = Literal["with_replacement", "without_replacement"]


@on_any_mesh
def design_effect(
    design: designs.SamplingDesign,
    g: kernels.PerExampleGradients | moments.GradientMoments,
    *,
    relative_to: Reference = "with_replacement",
) -> float:
    """tr Cov ĝ over that of simple random sampling of the same expected size: how many times the noise.

    The reference has the variance tr Σ/M with replacement, and c_M tr Σ without, for M the expected number of draws, at
    the same scale (of a mean, a sum or a total). The convention with replacement is that of Kish's later "deft²", under
    which a design of intraclass correlation ρ has 1 + (M−1)ρ; his "deff" of 1965 is relative to sampling without.
    Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Args:
        design: a design of the package.
        g: the gradients of the whole population; moments are enough for designs that treat all examples alike.
        relative_to: "with_replacement" or "without_replacement".

    Returns:
        The ratio; 1 for the reference itself, and ``nan`` where the reference has no variance to compare with.

    References:
        L. Kish, *Survey Sampling*, Wiley 1965, section 8.2; "Methods for design effects", J. Off. Stat. 11, 1995.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> g = kernels.per_example_gradients(loss_fn)(params, data)
    >>> round(design_effect(designs.WithoutReplacement(2), g), 6)
    0.666667
    """
    return _effect(design, g, float(exact(design, g).variance), relative_to)


@dataclass(frozen=True)
class Comparison:
    """A table of designs; ``print`` shows it.

    Attributes:
        names: one for each design.
        bias: ‖E ĝ − target‖, where the target is ḡ, or M ḡ or N ḡ for designs of another scale, shape (D,).
        variance: tr Cov ĝ, shape (D,).
        design_effect: the variance over that of simple random sampling of the same expected size, shape (D,).
        relative_to: which simple random sampling.
    """

    names: tuple[str, ...]
    bias: Float64[np.ndarray, " d"]
    variance: Float64[np.ndarray, " d"]
    design_effect: Float64[np.ndarray, " d"]
    relative_to: str

    def __str__(self) -> str:
        width = max(len(name) for name in ("design", *self.names))
        head = f"{'design':{width}}  {'bias':>10}  {'variance':>10}  {'effect':>8}"
        rows = [
            f"{name:{width}}  {bias:10.4g}  {variance:10.4g}  {effect:8.4g}"
            for name, bias, variance, effect in zip(
                self.names, self.bias, self.variance, self.design_effect, strict=True
            )
        ]
        return "\n".join([head, *rows])


@on_any_mesh
def compare(
    laws: Mapping[str, designs.SamplingDesign] | Iterable[designs.SamplingDesign],
    g: kernels.PerExampleGradients,
    *,
    relative_to: Reference = "with_replacement",
) -> Comparison:
    """Bias, variance and design effect of many designs on the same gradients, all exact.

    Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Args:
        laws: designs of the package, or a mapping from names to designs; their printed forms are the names otherwise.
        g: the gradients of the whole population.
        relative_to: what design effects are relative to, "with_replacement" or "without_replacement".

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> g = kernels.per_example_gradients(loss_fn)(params, data)
    >>> print(compare([designs.WithoutReplacement(2), designs.Blocks(2), designs.Groups([0, 0, 0, 1], "realized")], g))
    design                                                       bias    variance    effect
    WithoutReplacement(batch_size=2)                                0        5.25    0.6667
    Blocks(batch_size=2)                                            0        0.25   0.03175
    Groups(assignment=(0, 0, 0, 1), normalize='realized')        1.74       12.11     1.538
    """
    named = dict(laws) if isinstance(laws, Mapping) else {str(design): design for design in laws}
    bias, variance, effect = np.zeros((3, len(named)))
    mean = g.mean()
    for i, design in enumerate(named.values()):
        estimate = exact(design, g)
        factor = float(design.scale_factor(g.count))
        bias[i] = _distance(estimate.mean, jax.tree.map(lambda leaf, factor=factor: leaf * factor, mean))
        variance[i] = float(estimate.variance)
        effect[i] = _effect(design, g, variance[i], relative_to)
    return Comparison(tuple(named), bias, variance, effect, relative_to)


@on_any_mesh
def optimal_probabilities(g: kernels.PerExampleGradients) -> Float64[np.ndarray, " n"]:
    """p_i ∝ ‖g_i‖, shape (N,): of all ``designs.Importance`` of a size, the one of least variance.

    tr Cov ĝ = (1/M) ((1/N²) Σ ‖g_i‖²/p_i − ‖ḡ‖²), and by the Cauchy-Schwarz inequality the sum is at least
    (Σ ‖g_i‖)², which these probabilities reach. An example whose gradient is zero has p_i = 0.

    Raises:
        ValueError: if all gradients are zero, or one is not finite.

    References:
        P. Zhao and T. Zhang, "Stochastic optimization with importance sampling", ICML 2015.
    """
    kernels.require_finite(g)
    norms = np.sqrt(devices.on_host(g.squared_norms()).astype(np.float64))
    validate.positive(**{"the largest norm of a gradient": float(norms.max())})
    return norms / norms.sum()


@on_any_mesh
def stratum_deviations(g: kernels.PerExampleGradients, strata: Any) -> Float64[np.ndarray, " h"]:
    """S_h = √tr S_h² with divisor N_h − 1, for ``designs.Stratified.neyman``, shape (H,); 0 in a stratum of one.

    Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Args:
        g: the gradients of the whole population.
        strata: the stratum 0, …, H−1 of every example.
    """
    validate.consecutive_labels(strata=strata)
    validate.one_for_each(g.count, "examples", strata=strata)
    kernels.require_finite(g)
    labels = np.asarray(strata)
    squares = devices.on_host(_contraction.stratum_deviations(g, labels)).astype(np.float64)
    return np.sqrt(squares / np.maximum(np.bincount(labels) - 1, 1))


def _effect(design: designs.SamplingDesign, g: Any, variance: float, relative_to: Reference) -> float:
    validate.one_of(("with_replacement", "without_replacement"), relative_to=relative_to)
    m = moments.of(g)
    N = int(m.count)
    M = design.expected_batch_size(N)
    factor = 1 / M if relative_to == "with_replacement" else (N - M) / (M * max(N - 1, 1))
    reference = float(design.scale_factor(N)) ** 2 * factor * float(m.trace_covariance(ddof=0))
    return variance / reference if reference > 0 else float("nan")


def _distance(a: PyTree, b: PyTree) -> float:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return float(np.sqrt(sum(float(jnp.sum((x - y) ** 2)) for x, y in pairs)))
