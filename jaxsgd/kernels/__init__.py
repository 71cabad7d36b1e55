"""Per-example gradients of any JAX loss.

``per_example_gradients(loss_fn)`` is a transformation, like ``jax.grad``: it gives a function of
``(params, batch)`` that returns a :class:`PerExampleGradients`. Every statistic of the batch is a method of
that object, compiled as a whole, which keeps no more than the statistic needs.

A gradient is not kept as it is where something smaller determines it: for a dense layer the layer's input and the
gradient of its output, for an embedding a few rows. ``explain()`` says what is kept for each parameter and what the
statistics cost. Where nothing smaller is found the gradients themselves are kept: slower, never wrong. Where that is
more than memory holds, ``memory_limit`` has every statistic compute them anew, a few examples at a time.

What rounding takes: gradients of mean ḡ and deviations of size σ are known to ε‖ḡ‖, so that statistics of deviations
(variances, noise scales, laws of estimators) are off by some ε mean/noise = ε‖ḡ‖/σ of themselves, 1e-7 ‖ḡ‖/σ in
float32, and by no multiple of its square: deviations are formed before they are multiplied. Their scale takes nothing:
products of four gradients are taken in a unit near their size, and what float32 cannot hold is refused by name.

The arrays may be split over the devices of a mesh; JAX's runtime then does the distributing. Inside ``jax.shard_map``
beware of ``jax.grad``: with respect to parameters that are the same on all devices, it is, without a word, the sum of
the gradients of all devices, unless they were cast by ``jax.lax.pcast(params, axis, to="varying")`` first. The
functions here cast them: g_i is the gradient of example i alone, and sums over devices are the caller's to make.
"""

from jaxsgd._core.faces import at_home
from jaxsgd.kernels._gradients import Loss, PerExampleGradients, trace_batch
from jaxsgd.kernels._loss import WithoutAux, with_keys
from jaxsgd.kernels._recomputed import ScaledLoss
from jaxsgd.kernels._transform import centered_gram, is_cheaply_factored, per_example_gradients, require_finite, unit

__all__ = [
    "Loss",
    "PerExampleGradients",
    "ScaledLoss",
    "WithoutAux",
    "centered_gram",
    "is_cheaply_factored",
    "per_example_gradients",
    "require_finite",
    "trace_batch",
    "unit",
    "with_keys",
]

at_home(__name__, __all__)
