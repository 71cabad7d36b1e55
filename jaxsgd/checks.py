"""For those who do not want to take the engine on trust: every statistic against the plain loop over examples."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxsgd._core import arrays, devices, loss_functions, units, validate
from jaxsgd._core.meshes import on_any_mesh
from jaxsgd._core.sums import accumulation_dtype
from jaxsgd._core.tables import si, table
from jaxsgd.kernels import Loss, PerExampleGradients, WithoutAux, trace_batch, with_keys

__all__ = ["ParameterCheck", "PerExampleCheck", "check_per_example"]


@dataclass(frozen=True)
class ParameterCheck:
    """What was found for one parameter.

    Attributes:
        path: where it is in ``params``.
        shape: its shape.
        rule: the primitives by which its gradient is kept in factored form, or "none".
        kept_as: what is kept of the gradients of the whole batch.
        bytes_kept: how many bytes that takes.
        flops: predicted floating-point operations for the mean and the squared norms of the whole batch.
        errors: for every statistic, the largest error of this parameter's part of it, relative to the largest entry
            that it could have: the largest |g_i| for what is linear in g, the largest square for what is quadratic.
    """

    path: str
    shape: tuple[int, ...]
    rule: str
    kept_as: str
    bytes_kept: int
    flops: int
    errors: dict[str, float]

    @property
    def worst(self) -> str:
        """The statistic with the largest error."""
        return max(self.errors, key=self.errors.__getitem__)


@dataclass(frozen=True)
class PerExampleCheck:
    """The outcome of :func:`check_per_example`; ``print`` shows it as a table.

    Attributes:
        parameters: one :class:`ParameterCheck` for each leaf of ``params``.
        num_examples: how many examples were differentiated one by one.
        tolerance: the largest relative error that rounding explains; see :func:`check_per_example`.
    """

    parameters: tuple[ParameterCheck, ...]
    num_examples: int
    tolerance: float

    @property
    def largest_error(self) -> float:
        """The largest relative error of any statistic of any parameter."""
        return max(parameter.errors[parameter.worst] for parameter in self.parameters)

    @property
    def passed(self) -> bool:
        """Whether every statistic equals the loop's up to rounding."""
        return self.largest_error <= self.tolerance

    def __str__(self) -> str:
        verdict = "equals" if self.passed else "DIFFERS FROM"
        rows: list[tuple[str, ...]]
        rows = [("parameter", "rule", "kept as", "bytes", "FLOPs: mean + norms", "largest relative error")]
        for p in self.parameters:
            error = f"{p.errors[p.worst]:.1e} ({p.worst.replace('_', ' ')})"
            rows.append((f"{p.path} {p.shape}", p.rule, p.kept_as, si(p.bytes_kept), si(p.flops), error))
        return (
            f"{table(rows)}\nevery statistic {verdict} the loop over {self.num_examples} examples: "
            f"relative error {self.largest_error:.1e}, rounding allows {self.tolerance:.1e}"
        )


@on_any_mesh
def check_per_example(
    loss_fn: Callable[..., Any],
    params: PyTree,
    batch: PyTree,
    *,
    num_examples: int = 4,
    key: Array | None = None,
    has_aux: bool = False,
) -> PerExampleCheck:
    """Compare every statistic with ``jax.grad(loss_fn)``, called for one example after the other.

    The loop's gradients are reduced in float64 by NumPy, parameter by parameter, and compared with what jaxsgd finds
    from the same examples. Agreement means: to two thirds of the digits of the gradient's dtype, ε^(2/3), which is
    2.4e-5 in float32, 3.7e-11 in float64 and 0.04 in bfloat16, where the loop itself rounds to 8 bits.

    Args:
        loss_fn: the loss of ONE example, ``loss_fn(params, example) -> scalar``.
        params: a pytree of floating-point arrays.
        batch: a pytree of arrays with n examples along the first axis of each. Costs are stated for all of them.
        num_examples: how many of them are compared, spread evenly over the batch.
        key: for ``loss_fn(params, example, key)``; example i has the key fold_in(key, i).
        has_aux: whether the loss returns ``(scalar, aux)``, of which the second is left out.

    Raises:
        TypeError, ValueError: as :func:`jaxsgd.per_example_gradients`; if ``num_examples`` is less than 1, the loss
            differs between two calls, or a gradient is not finite, or too small or large to be squared.

    >>> from jaxsgd import problems
    >>> check = check_per_example(*problems.digits_mlp(key=jax.random.key(0)))
    >>> check.passed, [parameter.rule for parameter in check.parameters if len(parameter.shape) == 2]
    (True, ['dot_general', 'dot_general'])
    """
    validate.positive_integer(num_examples=num_examples)
    validate.floating_leaves(params=params)
    batch = arrays.readable(batch=batch)
    count = validate.leading_axis(batch=batch)
    loss_functions.require_scalar(loss_fn, params, batch, key=key, has_aux=has_aux)
    loss_fn, batch = with_keys(loss_fn, batch, key)
    loss_fn = WithoutAux(loss_fn) if has_aux else loss_fn
    loss_functions.require_deterministic(loss_fn, params, batch)
    chosen = np.unique(np.linspace(0, count - 1, num_examples).astype(int))
    few = jax.tree.map(lambda leaf: leaf[chosen], batch)
    whole: PerExampleGradients = jax.eval_shape(partial(trace_batch, loss_fn), params, batch)
    found = _statistics_of_parameters(trace_batch(loss_fn, params, few))
    truth = _rows_by_loop(loss_fn, params, few, len(chosen))
    checks = []
    for (path, leaf), factor, rule, mine, rows in zip(
        jax.tree_util.tree_leaves_with_path(params), whole.factors, whole.rules, found, truth, strict=True
    ):
        validate.finite_rows(chosen, f"params{jax.tree_util.keystr(path)}", gradients=rows)
        checks.append(
            ParameterCheck(
                path=jax.tree_util.keystr(path),
                shape=tuple(leaf.shape),
                rule=rule,
                kept_as=factor.describe(),
                bytes_kept=sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(factor)),
                flops=factor.flops().mean + factor.flops().squared_norms,
                errors={name: _relative_error(mine[name], *_STATISTICS[name](rows)) for name in mine},
            )
        )
    like = jax.tree.leaves(params)
    units.require_squares(
        "gradients", [jnp.asarray(r, accumulation_dtype(p)) for p, r in zip(like, truth, strict=True)]
    )
    coarsest = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(params))  # type: ignore[no-untyped-call]
    return PerExampleCheck(tuple(checks), len(chosen), coarsest ** (2 / 3))


def _weights(count: int) -> np.ndarray:
    return np.cos(np.arange(1.0, count + 1))


@jax.jit
def _statistics_of_parameters(g: PerExampleGradients) -> list[dict[str, Any]]:
    """Every statistic of every parameter alone."""
    return [
        {
            "materialize": factor.materialize(),
            "mean": factor.mean(),
            "weighted_sum": factor.weighted_sum(jnp.asarray(_weights(g.count), g.example_losses.dtype)),
            "inner_products": factor.inner_products(jnp.ones(factor.shape, g.example_losses.dtype)),
            "squared_norms": factor.squared_norms(),
            "squared_deviations": factor.squared_deviations(),
            "second_moment": factor.second_moment(),
            "variance": factor.coordinate_deviations() / g.count,
            "gram": factor.gram(factor),
        }
        for factor in g.factors
    ]


def _rows_by_loop(loss_fn: Loss, params: PyTree, batch: PyTree, count: int) -> list[np.ndarray]:
    """For every parameter, the gradients of one example after the other as rows."""
    gradient = jax.jit(jax.grad(loss_fn))
    each = [jax.tree.leaves(gradient(params, jax.tree.map(lambda leaf, i=i: leaf[i], batch))) for i in range(count)]
    return [
        np.stack([devices.on_host(leaf).astype(np.float64).reshape(-1) for leaf in leaves])
        for leaves in zip(*each, strict=True)
    ]


def _linear(statistic: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], tuple[np.ndarray, float]]:
    return lambda rows: (statistic(rows), np.abs(rows).max(initial=0))


def _quadratic(statistic: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], tuple[np.ndarray, float]]:
    return lambda rows: (statistic(rows), (rows**2).max(initial=0))


def _summed(statistic: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], tuple[np.ndarray, float]]:
    return lambda rows: (statistic(rows), (rows**2).sum(axis=1).max(initial=0))


# From rows to the statistic and the size of what it could be.
_STATISTICS: dict[str, Callable[[np.ndarray], tuple[np.ndarray, float]]] = {
    "materialize": _linear(lambda rows: rows),
    "mean": _linear(lambda rows: rows.mean(axis=0)),
    "weighted_sum": _linear(lambda rows: _weights(len(rows)) @ rows),
    "inner_products": lambda rows: (rows.sum(axis=1), np.abs(rows).sum(axis=1).max(initial=0)),
    "squared_norms": _summed(lambda rows: (rows**2).sum(axis=1)),
    "squared_deviations": _summed(lambda rows: ((rows - rows.mean(axis=0)) ** 2).sum(axis=1)),
    "second_moment": _quadratic(lambda rows: (rows**2).mean(axis=0)),
    "variance": _quadratic(lambda rows: rows.var(axis=0)),
    "gram": _summed(lambda rows: rows @ rows.T),
}


def _relative_error(found: Any, truth: np.ndarray, scale: float) -> float:
    difference = np.abs(devices.on_host(found).astype(np.float64).reshape(truth.shape) - truth).max(initial=0)
    if np.isnan(difference) or (scale == 0 and difference > 0):
        return float("inf")
    return float(difference / scale) if scale > 0 else 0.0
