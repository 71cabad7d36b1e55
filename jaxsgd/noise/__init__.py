"""The gradient noise scale, with an interval: how many examples until the noise of their mean gradient is its length.

    B = tr Σ / ‖ḡ‖²

is the batch size at which an independent batch has E‖ĝ − ḡ‖² = ‖ḡ‖² (McCandlish, Kaplan, Amodei et al., "An empirical
model of large-batch training", arXiv:1812.06162, 2018). N Σ‖g_i‖²/‖Σ g_i‖², the gradient diversity of Yin et al.
(AISTATS 2018), is 1 + B. It does not change with the scale of the loss or an orthogonal change of the parameters; at a
minimum of the mean loss it is infinite.

An interval of 95 % holds B in 93 % of batches of normal, t₈ and Laplace gradients with equal variances from 8 examples
on, and in 90 % of normal ones with variances 1/k (``experiments/interval_coverage.py``). It is wider than it need be
where the noise along the mean gradient is smaller than elsewhere, up to 1.5 times, and then holds B nearly always.

An optimizer that takes another step than ĝ itself has noise of its own: ``optimizer_metric`` has the metric of one that
divides every coordinate by a number, for ``metric=``, and ``sign_metric`` that of signs. Momentum is no metric, and
leaves B as it is: see :func:`jaxsgd.dynamics.momentum_law`.
"""

from jaxsgd._core.faces import at_home
from jaxsgd.noise._curvature import HessianNoiseScale, hessian_noise_scale
from jaxsgd.noise._estimate import NoiseScale
from jaxsgd.noise._groups import NoiseScales
from jaxsgd.noise._law import NoiseScaleLaw, noise_scale_law
from jaxsgd.noise._noise_scale import noise_scale
from jaxsgd.noise._optimizers import optimizer_metric
from jaxsgd.noise._signs import expected_sign, sign_metric
from jaxsgd.noise._two_batches import two_batch_noise_scale, variance_factor
from jaxsgd.noise._u_statistics import mean_fourth_power, pair_sums

__all__ = [
    "HessianNoiseScale",
    "NoiseScale",
    "NoiseScaleLaw",
    "NoiseScales",
    "expected_sign",
    "hessian_noise_scale",
    "mean_fourth_power",
    "noise_scale",
    "noise_scale_law",
    "optimizer_metric",
    "pair_sums",
    "sign_metric",
    "two_batch_noise_scale",
    "variance_factor",
]

at_home(__name__, __all__)
