"""The metrics of optimizers that divide every coordinate by a number of its own, for noise scales under them."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxsgd._core import preconditioners, validate


def optimizer_metric(
    state: Any,
    *,
    of: Literal["update", "decrease"] = "update",
    b2: Any = None,
    eps: Any = None,
    eps_root: Any = None,
) -> PyTree:
    """The metric of Adam, AMSGrad, RMSProp or Adagrad, from its Optax state, for ``metric=``.

    The update is Pĝ for P = diag(1/(√(v + eps_root) + eps)), and two questions have two metrics. Neither noise scale is
    "the" one of the optimizer, and P is made of past gradients: it depends on the batch size that they had.

    Args:
        state: of the optimizer, alone or in ``chain``, ``MultiSteps``, ``inject_hyperparams`` and others that hold it.
            Those of Adamax and LAMB, whose P are others, are not told from Adam's: give the weights themselves.
        of: "update", D = P²: how noisy is the update itself, E‖P(ĝ − ḡ)‖² against ‖Pḡ‖²? "decrease", D = P: how much of
            the decrease of the loss does noise take, to second order in the step, where the Hessian is near P⁻¹?
        b2: the rate at which Adam's, or a bias-corrected RMSProp's, v forgets: what was injected, else 0.999 or 0.9.
        eps: beside the root: what was injected, else 1e-8 for Adam and AMSGrad, 0 for others.
        eps_root: under the root: what was injected, else 1e-8 for RMSProp, 1e-7 for Adagrad, 0 for others.

    Returns:
        The weights D, a pytree like ``params``.

    Raises:
        ValueError: if there is no such optimizer in the state, more than one, one of some of the parameters only, one
            that has taken no step, or another whose updates have no such metric, as Lion's.

    >>> import optax
    >>> rmsprop, g = optax.rmsprop(0.1, decay=0.75), jnp.asarray([2.0, 4.0])
    >>> [round(float(weight), 4) for weight in optimizer_metric(rmsprop.update(g, rmsprop.init(g))[1])]
    [1.0, 0.25]
    """
    validate.one_of(("update", "decrease"), of=of)
    P = preconditioners.preconditioner("state", state, b2=b2, eps=eps, eps_root=eps_root)
    return jax.tree.map(jnp.square, P) if of == "update" else P
