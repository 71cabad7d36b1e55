"""What one step along a minibatch gradient does to the mean loss, from Hessian-vector products.

It stands apart from the noise scale without curvature, which needs no second derivative of the loss.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from jaxsgd import kernels
from jaxsgd._core import sums, units, validate
from jaxsgd._core.meshes import on_any_mesh


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HessianNoiseScale:
    """The second-order law of a step θ − εĝ; a registered pytree of scalars.

    For a batch with E ĝ = ḡ and Cov ĝ = cΣ, to second order in ε, and exactly for quadratics,

        E L̄(θ − εĝ) = L̄ − ε‖ḡ‖² + ½ε² (ḡᵀHḡ + c tr HΣ).

    Attributes:
        mean_loss: L̄(θ).
        squared_mean_norm: ‖ḡ‖².
        gradient_curvature: ḡᵀHḡ, H the Hessian of L̄.
        noise_curvature: tr HΣ.
        standard_error: of ``noise_curvature``; 0 where it is exact.
        population_size: N.
    """

    mean_loss: Any
    squared_mean_norm: Any
    gradient_curvature: Any
    noise_curvature: Any
    standard_error: Any
    population_size: Any

    @property
    def value(self) -> Any:
        """The quotient tr HΣ/ḡᵀHḡ, the batch size at which half of the best decrease is lost to noise."""
        return self.noise_curvature / self.gradient_curvature

    @property
    def max_learning_rate(self) -> Any:
        """‖ḡ‖²/ḡᵀHḡ, the best ε without noise."""
        return self.squared_mean_norm / self.gradient_curvature

    def learning_rate(self, batch_size: Any) -> Any:
        """The best ε at batch size M without replacement: that without noise, divided by 1 + c_M tr HΣ/ḡᵀHḡ."""
        return self.max_learning_rate / (1 + self._factor(batch_size) * self.value)

    def decrease(self, batch_size: Any) -> Any:
        """By how much the mean loss falls on the average in the best step, ½ε‖ḡ‖²."""
        return self.learning_rate(batch_size) * self.squared_mean_norm / 2

    def expected_loss(self, batch_size: Any, learning_rate: Any) -> Any:
        """E L̄(θ − εĝ), to second order in ε."""
        curvature = self.gradient_curvature + self._factor(batch_size) * self.noise_curvature
        return self.mean_loss - learning_rate * self.squared_mean_norm + learning_rate**2 * curvature / 2

    def _factor(self, batch_size: Any) -> Any:
        """c_M = (N − M)/(M(N − 1)); 0 for a population of one."""
        validate.positive_if_known(batch_size=batch_size)
        N = jnp.asarray(self.population_size, self.noise_curvature.dtype)  # whose products integers may not hold
        return (N - batch_size) / batch_size / jnp.maximum(N - 1, 1)


@on_any_mesh
def hessian_noise_scale(
    loss_fn: kernels.Loss,
    params: PyTree,
    data: PyTree,
    *,
    num_probes: int | None = None,
    key: Array | None = None,
    memory_limit: int | None = None,
) -> HessianNoiseScale:
    """The noise scale with curvature, B = tr HΣ/ḡᵀHḡ, and what it says of a step at each batch size.

    B equals tr Σ/‖ḡ‖² where H is a multiple of the identity. With d_i = g_i − ḡ, tr HΣ = (1/N) Σ d_iᵀHd_i, exactly from
    N Hessian-vector products, or, as Σ_j e_jᵀH(Σe_j), from one for each of P parameters; the fewer are taken. With
    probes, u = Σ s_i d_i/√N for random signs s has E uuᵀ = Σ, so the mean of uᵀHu is unbiased for it (M. F. Hutchinson,
    "A stochastic estimator of the trace", Commun. Stat. Simul. Comput. 18, 1989).
    Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Args:
        loss_fn: the loss of ONE example, twice differentiable.
        params: θ, a pytree of floating-point arrays.
        data: a pytree of arrays with N examples along the first axis of each.
        num_probes: how many probes, at least 2; None for the exact trace.
        key: of the random signs.
        memory_limit: how many bytes the factored gradients may take; beyond, they are computed anew.

    Raises:
        TypeError, ValueError: as :func:`jaxsgd.per_example_gradients`; if ``num_probes`` comes without a ``key``, a
            gradient is not finite, or float32 does not hold a curvature.

    References:
        S. McCandlish, J. Kaplan, D. Amodei et al., "An empirical model of large-batch training", arXiv:1812.06162,
        2018, section 2.2.

    >>> from jaxsgd import problems
    >>> law = hessian_noise_scale(*problems.line_fit())
    >>> round(float(law.value), 4), round(float(law.max_learning_rate), 4), round(float(law.learning_rate(2)), 4)
    (12.3333, 0.119, 0.0233)
    """
    if num_probes is not None:
        validate.at_least(2, num_probes=num_probes)
        validate.random_key(key=key)
    g = kernels.per_example_gradients(loss_fn, memory_limit=memory_limit)(params, data)
    kernels.require_finite(g)
    unit = kernels.unit(g)
    curvature, quadratics = _curvatures(loss_fn, num_probes, params, data, g.times(1 / unit), key)
    noise, error = quadratics.mean(), jnp.zeros_like(curvature)
    if num_probes is not None:
        error = units.standard_deviation(quadratics, ddof=1) / num_probes**0.5
    if any(units.leaves_range(each, unit, 2) for each in (curvature, noise)):
        raise ValueError(
            f"curvatures along gradients leave {unit.dtype}: scale the loss so that norms are near 1, got some near "
            f"{float(unit):.3g}, or use float64 parameters"
        )
    return HessianNoiseScale(
        mean_loss=g.losses().mean(),
        squared_mean_norm=sums.squared_norm(g.mean()),
        gradient_curvature=curvature * unit**2,
        noise_curvature=noise * unit**2,
        standard_error=error * unit**2,
        population_size=jnp.asarray(g.count),
    )


@partial(jax.jit, static_argnums=(0, 1))
def _curvatures(
    loss_fn: kernels.Loss,
    num_probes: int | None,
    params: PyTree,
    data: PyTree,
    g: kernels.PerExampleGradients,
    key: Any,
) -> tuple[Float[Array, ""], Float[Array, " k"]]:
    """ḡᵀHḡ, and numbers of mean tr HΣ."""
    product, mean = partial(_hessian_product, loss_fn, params, data), g.mean()
    quadratics = _exact(g, product) if num_probes is None else _probed(g, product, num_probes, key)
    return sums.inner(mean, product(mean)), quadratics


def _exact(g: kernels.PerExampleGradients, product: Any) -> Float[Array, " k"]:
    """Numbers whose mean is tr HΣ, one for each example or, where those are fewer, for each parameter."""
    if g.num_params <= g.count:
        return g.num_params * _by_coordinate(g, product)
    mean = g.mean()

    def along(weights: Float[Array, " n"]) -> Float[Array, ""]:
        deviation = jax.tree.map(jnp.subtract, g.weighted_sum(weights), mean)
        return sums.inner(deviation, product(deviation))

    return jax.lax.map(lambda i: along(jax.nn.one_hot(i, g.count, dtype=g.losses().dtype)), jnp.arange(g.count))


def _by_coordinate(g: kernels.PerExampleGradients, product: Any) -> Float[Array, " p"]:
    """e_jᵀH(Σe_j) for every parameter j."""
    mean = g.mean()
    flat, unflatten = ravel_pytree(mean)

    def along(j: Array) -> Float[Array, ""]:
        unit = unflatten(jax.nn.one_hot(j, flat.size, dtype=flat.dtype))
        coordinates = g.inner_products(unit)
        column = g.weighted_sum((coordinates - coordinates.mean()) / g.count)
        return sums.inner(unit, product(column))

    return jax.lax.map(along, jnp.arange(flat.size))


def _probed(g: kernels.PerExampleGradients, product: Any, num_probes: int, key: Any) -> Float[Array, " k"]:
    """uᵀHu for every probe."""

    def along(key: Array) -> Float[Array, ""]:
        signs = jax.random.rademacher(key, (g.count,), dtype=g.losses().dtype)
        noise = g.weighted_sum((signs - signs.mean()) / g.count**0.5)
        return sums.inner(noise, product(noise))

    return jax.lax.map(along, jax.random.split(key, num_probes))


def _hessian_product(loss_fn: kernels.Loss, params: PyTree, data: PyTree, vector: PyTree) -> PyTree:
    """H v for the mean loss, forward over reverse."""

    def mean_loss(params: PyTree) -> Array:
        return jax.vmap(loss_fn, in_axes=(None, 0))(params, data).mean()

    tangent = jax.tree.map(lambda v, p: v.astype(p.dtype), vector, params)
    return jax.jvp(jax.grad(mean_loss), (params,), (tangent,))[1]
