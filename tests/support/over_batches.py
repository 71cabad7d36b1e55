"""Gradients of losses of batches over every batch without replacement."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxsgd import estimators
from jaxsgd.designs import WithoutReplacement

F = Fraction
Result = estimators.BatchLossGradient
MAXIMA = (F(7), F(32, 3), F(261, 20), F(221, 15), F(16), F(17))  # the mean of the largest of M of EX_B, M = 1, …, 6


def over(loss: Any, theta: Any, data: Any, M: int, **options: Any) -> Result:
    """Without replacement, all batches of size M."""
    columns = data if isinstance(data, dict) else {"": data}
    arrays = {name: jnp.asarray(np.asarray(column, float)) for name, column in columns.items()}
    data, theta = (arrays if isinstance(data, dict) else arrays[""]), jnp.asarray(np.asarray(theta, float))
    return estimators.batch_loss_gradient(loss, theta, data, WithoutReplacement(M), **options)


def scaled(of_batch: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """θ times a statistic of the batch: loss and gradient at θ = 1 are the statistic."""
    return lambda theta, data: theta * of_batch(data)
