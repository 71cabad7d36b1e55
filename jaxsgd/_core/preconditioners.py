"""What optimizers that divide every coordinate by a number of its own make of a gradient, from their Optax states.

The step is P g for P = diag(1/(√(v_j + a) + b)), with v a second moment of the gradients so far. Which v, which a and
which b depends on the optimizer, of whose settings its state has none, but where they were injected. With D = P², it is
a metric on the space of parameters, ⟨u, v⟩ = Σ_j d_j u_j v_j: lengths of updates are those of gradients in it.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxsgd._core import validate
from jaxsgd._core.sums import accumulated


class Kind(NamedTuple):
    """Where an optimizer keeps its second moments, and what is the default of its settings.

    Attributes:
        moments: the name of v in the state.
        eps: what is added to the root.
        eps_root: what is added under the root.
        injected: which of the two a setting of the name ``eps`` is.
        decay: the name and the default of the rate at which v forgets, where v is divided by 1 − rate^count.
    """

    moments: str
    eps: float
    eps_root: float
    injected: Literal["eps", "eps_root"]
    decay: tuple[str, float] | None = None


KINDS = {
    "ScaleByAdamState": Kind("nu", 1e-8, 0.0, "eps", ("b2", 0.999)),
    "ScaleByAmsgradState": Kind("nu_max", 1e-8, 0.0, "eps"),
    "ScaleByRmsState": Kind("nu", 0.0, 1e-8, "eps_root"),
    "ScaleByRmsWithCountState": Kind("nu", 0.0, 1e-8, "eps_root", ("decay", 0.9)),
    "ScaleByRssState": Kind("sum_of_squares", 0.0, 1e-7, "eps_root"),
}
_WITHOUT_EFFECT = {"ScaleByScheduleState"}  # on the direction of an update


def preconditioner(name: str, state: Any, *, b2: Any = None, eps: Any = None, eps_root: Any = None) -> PyTree:
    """P_j = 1/(√(v_j + ``eps_root``) + ``eps``), a pytree like the parameters; ``b2`` is the rate at which v forgets.

    The state is called ``name`` in errors.

    Raises:
        ValueError: if there is no optimizer that has such a P in the state, more than one, one of some of the
            parameters only, or one that has taken no step.
    """
    node, injected = _only_one(name, state)
    kind = KINDS[type(node).__name__]
    names = {"eps_root": "eps_root"} | {"eps": kind.injected}
    settings = {"eps": kind.eps, "eps_root": kind.eps_root}
    settings |= {names[name]: value for name, value in injected.items() if name in names}
    settings |= {name: value for name, value in (("eps", eps), ("eps_root", eps_root)) if value is not None}
    moments = jax.tree.map(accumulated, getattr(node, kind.moments))
    if kind.decay is not None:
        rate = injected.get(*kind.decay) if b2 is None else b2
        moments = jax.tree.map(lambda v: v / (1 - jnp.asarray(rate, v.dtype) ** node.count.astype(v.dtype)), moments)

    def divided(v: Array) -> Array:
        under, beside = (jnp.asarray(settings[name], v.dtype) for name in ("eps_root", "eps"))
        return 1 / (jnp.sqrt(v + under) + beside)

    return jax.tree.map(divided, moments)


def weights(metric: Any) -> PyTree:
    """The weights of ``metric=``, which are given, or those of the update of an optimizer whose state is given.

    Raises:
        TypeError, ValueError: if they are no floating-point arrays, or one that is known is not positive and finite.
    """
    if any(map(_is_of_optax, jax.tree.leaves(metric, is_leaf=_is_of_optax))):
        metric = jax.tree.map(jnp.square, preconditioner("metric", metric))
    metric = jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, float) else leaf, metric)
    validate.floating_leaves(metric=metric)
    for path, leaf in jax.tree_util.tree_leaves_with_path(metric):
        if isinstance(leaf, jax.core.Tracer):
            continue
        wrong = ~((leaf > 0) & jnp.isfinite(leaf))
        if wrong.any():
            where = tuple(int(i) for i in jnp.argwhere(wrong)[0])
            raise ValueError(
                f"metric must be positive and finite, got {float(leaf[where])} at {where} in "
                f"metric{jax.tree_util.keystr(path)}"
            )
    return metric


def roots(weights: PyTree) -> PyTree:
    """√d."""
    return jax.tree.map(lambda leaf: jnp.sqrt(accumulated(jnp.asarray(leaf))), weights)


def moments_in(metric: Any, mean: PyTree, coordinate_sums: PyTree) -> tuple[PyTree, PyTree]:
    """The mean of √d∘g_i, and the sums of their squared deviations, coordinate by coordinate.

    Raises:
        TypeError, ValueError: as :func:`weights`; if the weights are not like the mean, or there are no such sums.
    """
    if coordinate_sums is None:
        raise ValueError("metric must be None for moments that are not per coordinate: per_coordinate=True")
    given = weights(metric)
    leaves, structure = jax.tree.flatten(mean)
    validate.like_params(structure, [leaf.shape for leaf in leaves], metric=given)

    def times_roots(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf, root: leaf * root.astype(leaf.dtype), tree, roots(given))

    return times_roots(mean), times_roots(times_roots(coordinate_sums))


def _only_one(name: str, state: Any) -> tuple[Any, dict[str, Any]]:
    """The part of the state that has second moments, and the settings that were injected there."""
    found = [*_parts(state, {})]
    kinds = [type(node).__name__ for node, _ in found]
    if "ScaleByLionState" in kinds:
        raise ValueError(
            f"{name} must not be a state of Lion, whose signs depend on variances that it does not hold: pass "
            "metric=noise.sign_metric(g.variance(ddof=1))"
        )
    others = [kind for kind in kinds if kind not in KINDS]
    if others or len(kinds) != 1:
        raise ValueError(
            f"{name} must be the state of one of Adam, AMSGrad, RMSProp and Adagrad, which divide coordinates, got "
            f"{f'a state of {others[0]}' if others else f'a state with {len(kinds)} of them'}"
        )
    ((node, injected),) = found
    moments = jax.tree.leaves(getattr(node, KINDS[kinds[0]].moments), is_leaf=_is_masked)
    if any(map(_is_masked, moments)):
        raise ValueError(f"{name} must be the state of an optimizer of all parameters, got one with some masked")
    if not any(isinstance(v, jax.core.Tracer) or jnp.any(v > 0) for v in moments):
        raise ValueError(f"{name} must be the state of an optimizer after a step: all second moments are 0")
    return node, injected


def _parts(state: Any, injected: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """What scales coordinates in a state, whatever holds it, with the settings that were injected around it."""
    for node in jax.tree.leaves(state, is_leaf=lambda node: _is_injection(node) or _scales(node)):
        if _is_injection(node):
            yield from _parts(node.inner_state, injected | node.hyperparams)
        elif _scales(node):
            yield node, injected


def _is_injection(node: Any) -> bool:
    return _is_of_optax(node) and hasattr(node, "hyperparams") and hasattr(node, "inner_state")


def _scales(node: Any) -> bool:
    name = type(node).__name__
    scaling = name.startswith("ScaleBy") or name == "FactoredState"
    return _is_of_optax(node) and scaling and name not in _WITHOUT_EFFECT


def _is_masked(node: Any) -> bool:
    return _is_of_optax(node) and type(node).__name__ == "MaskedNode"


def _is_of_optax(node: Any) -> bool:
    return type(node).__module__.partition(".")[0] == "optax"
