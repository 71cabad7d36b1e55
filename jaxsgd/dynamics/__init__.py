"""Constant-step SGD on quadratic losses, exactly: stationary laws, stability thresholds, random and fixed orders.

On L_i(θ) = ½ (θ − c_i)ᵀH_i(θ − c_i) a step of SGD is a random affine map of θ, and so is an epoch. Two moments of the
map give the mean and the covariance of θ after any number of steps and in the stationary state, with the noise that
grows with the distance from the minimum (H_B differs between batches) included.

    step_law          independent batches of any design
    reshuffled_law    an epoch in a random order, a short last batch included
    fixed_order_law   an epoch in a given order
    momentum_law      as step_law, with heavy-ball momentum

The approximations of the field stand beside them, to be compared: ``additive_noise`` (the noise of θ* everywhere) and
``ornstein_uhlenbeck`` (that, and continuous time). ``langevin_variance`` is the stationary variance of Langevin
dynamics, and ``NoisyQuadratic`` a model of training with such noise, in closed form.
"""

from jaxsgd._core.faces import at_home
from jaxsgd.dynamics._affine_map import AffineLaw, StateLaw
from jaxsgd.dynamics._approximations import additive_noise, ornstein_uhlenbeck, reshuffling_bias, stability_threshold
from jaxsgd.dynamics._langevin import langevin_variance
from jaxsgd.dynamics._momentum import momentum_law
from jaxsgd.dynamics._noisy_quadratic import NoisyQuadratic
from jaxsgd.dynamics._quadratics import Quadratics, fixed_order_law, reshuffled_law, step_law
from jaxsgd.dynamics._simulation import simulate_epochs, simulate_steps

__all__ = [
    "AffineLaw",
    "NoisyQuadratic",
    "Quadratics",
    "StateLaw",
    "additive_noise",
    "fixed_order_law",
    "langevin_variance",
    "momentum_law",
    "ornstein_uhlenbeck",
    "reshuffled_law",
    "reshuffling_bias",
    "simulate_epochs",
    "simulate_steps",
    "stability_threshold",
    "step_law",
]

at_home(__name__, __all__)
