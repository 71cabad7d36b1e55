"""Heavy-ball momentum on quadratics: a step of it is an affine map too, of θ and of the last change of θ.

With Δ the change, Δ' = βΔ − ηĝ and θ' = θ + Δ'. Where all H_i are equal, to h for one parameter, and C = Cov ĝ(θ*),

    Var θ = ηC / (h (1 − β) (2 − ηh/(1 + β))),

which is that of SGD at the rate η/(1 − β) to first order in η: ηC/(2h(1 − β)). So is the way there, e^(−ηht/(1 − β)).
"""

from typing import Any

import numpy as np

from jaxsgd._core import validate
from jaxsgd.designs import Design
from jaxsgd.dynamics._affine_map import AffineLaw, floats, numbers
from jaxsgd.dynamics._quadratics import Quadratics, step_law, unmoved


def momentum_law(quadratics: Quadratics, design: Design, learning_rate: Any, momentum: Any) -> AffineLaw:
    """One step of SGD with heavy-ball momentum, as a random affine map of (θ, Δ), shape (2d,), Δ the last change of θ.

    What momentum does to noise: late in a run, with small steps, it is SGD at the rate η/(1 − β), with the progress and
    the stationary law of that, to first order in η. It averages gradients over 1/(1 − β) steps, and multiplies what one
    of them changes by as much. The effective batch is therefore M, not M/(1 − β): against SGD at the same η/(1 − β),
    momentum neither lowers the noise nor moves the batch size from where on it matters, and advice by noise scales
    holds with η/(1 − β) in place of the learning rate. Beyond first order it is quieter: see the module's formula.

    Args:
        quadratics: the losses.
        design: any sampling design; the batches of different steps are independent.
        learning_rate: η; a rational number, with a rational β, keeps the result rational.
        momentum: β, between 0 and 1, as in ``optax.sgd(η, momentum=β)``.

    Raises:
        ValueError: if η is not positive, or β not between 0 and 1.

    References:
        B. T. Polyak, "Some methods of speeding up the convergence of iteration methods", USSR Comput. Math. Math. Phys.
        4, 1964. S. Mandt, M. Hoffman and D. Blei, "Stochastic gradient descent as approximate Bayesian inference", JMLR
        18, 2017, for the rate η/(1 − β).

    >>> from fractions import Fraction
    >>> from jaxsgd import designs
    >>> losses = Quadratics.from_minima([2, 2, 2], [3, 0, -3])
    >>> law = momentum_law(losses, designs.WithReplacement(1), Fraction(1, 10), Fraction(1, 2))
    >>> law.stationary().covariance[0, 0]
    Fraction(9, 7)
    """
    validate.fraction(momentum=momentum)
    law, beta = step_law(quadratics, design, learning_rate), numbers(momentum).item()
    mean, covariance = law.mean, law.covariance
    if mean.dtype != object or isinstance(beta, float):
        mean, covariance, beta, quadratics = floats(mean), floats(covariance), float(beta), quadratics.floats()
    d, zero = len(mean), mean.flat[0] * 0
    of_theta = [*range(d), 2 * d]  # the columns of θ and of 1, between which those of Δ are
    moved = np.full((2 * d, 2 * d + 1), zero, mean.dtype)
    moved[:, of_theta] = np.tile(mean - unmoved(quadratics), (2, 1))
    moved[np.arange(d), np.arange(d)] += zero + 1
    moved[np.arange(2 * d), d + np.arange(2 * d) % d] += beta
    noise = np.full(2 * moved.shape, zero, mean.dtype)
    noise[np.ix_(range(2 * d), of_theta, range(2 * d), of_theta)] = np.tile(covariance, (2, 1, 2, 1))
    return AffineLaw(moved, noise)
