"""How a method of gradients becomes one compiled function, whose arguments are checked before."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax

from jaxsgd._core.meshes import on_any_mesh

P = ParamSpec("P")
R = TypeVar("R")


def require_one_batch(g: Any) -> None:
    """Raise if the gradients are those of several batches, with the leading axis of a map over them."""
    axes = getattr(getattr(g, "example_losses", None), "ndim", 1)
    if axes != 1:
        raise ValueError(
            f"statistics are of one batch, and these gradients, a result of jax.vmap or jax.pmap, have losses of shape "
            f"{g.example_losses.shape}: call the statistic inside the map, as in "
            "jax.vmap(lambda g: g.squared_norms())(g)"
        )


def statistic(
    check: Callable[..., None] | None = None, *, per_example: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile a method as a whole: one compilation for all the parameters, where each step alone would take one.

    The gradients and the other arguments are traced, so that nothing of them is static but their structure, shapes and
    dtypes. One statistic that calls another, or is called under ``jax.jit``, becomes part of that program. A class that
    computes a statistic in another way overrides the method, with a decorator of its own.

    Args:
        check: called as ``check(gradients, **arguments)`` with what the caller passed, before anything is traced, to
            raise on arguments that make no sense.
        per_example: whether the result has a first axis of examples, and is to be divided as they are.
    """

    def compiled(method: Callable[P, R]) -> Callable[P, R]:
        program, signature = on_any_mesh(jax.jit(method), per_example=per_example), inspect.signature(method)
        names, defaults = list(signature.parameters), tuple(p.default for p in signature.parameters.values())
        required = defaults.count(inspect.Parameter.empty)

        @functools.wraps(method)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            # All by place, so that an argument passed by name, or left out, compiles nothing anew.
            places: tuple[Any, ...] = (*args, *defaults[len(args) :])
            if kwargs or not required <= len(args) <= len(names):
                bound = signature.bind(*args, **kwargs)
                bound.apply_defaults()
                places = bound.args
            require_one_batch(places[0])
            if check is not None:
                check(places[0], **dict(zip(names[1:], places[1:], strict=True)))
            return program(*places)

        return call

    return compiled
