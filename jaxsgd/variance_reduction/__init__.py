"""Gradient estimators that use old gradients against noise, under any sampling design: SVRG, SAGA and SAG.

All three are one control variate. With h_i an old gradient of example i, and w the weights of a batch,

    v = Σ w_i (g_i − h_i) + h̄

    SVRG   h_i are the gradients at one older θ̃, the snapshot; h̄ is the full gradient there
    SAGA   h_i are the rows of a table, each from when example i was last in a batch; unbiased as SVRG is
    SAG    the table of SAGA, and I_i/N in place of w_i, where I_i tells whether i is in the batch: biased

so ĝ of the differences g_i − h_i is all there is to know: :func:`exact` gives E v and tr Cov v of each, for every
design, :func:`optimal_coefficient` the best multiple of h, and ``estimators.enumerate_batches(design, g.minus(h))``
sums over every batch. :class:`SVRG`, :class:`SAGA` and :class:`SAG` are the estimators to train with, in front of any
Optax optimizer and inside ``jit`` and ``lax.scan``:

    state = estimator.init(key, params, data)
    gradient, state = estimator.estimate(params, state, data)       # at every step

Unequal probabilities and strata reduce variance too, and combine with these: ``estimators.optimal_probabilities`` with
``designs.Importance``, and ``designs.Stratified``.
"""

from jaxsgd._core.faces import at_home
from jaxsgd.variance_reduction._control_variates import Inclusion, OptimalCoefficient, exact, optimal_coefficient
from jaxsgd.variance_reduction._estimators import SAG, SAGA, SVRG, SnapshotState, TableState

__all__ = [
    "SAG",
    "SAGA",
    "SVRG",
    "Inclusion",
    "OptimalCoefficient",
    "SnapshotState",
    "TableState",
    "exact",
    "optimal_coefficient",
]

at_home(__name__, __all__)
