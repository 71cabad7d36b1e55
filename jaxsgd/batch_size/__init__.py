"""What batch size is worth it: advice from the noise scale, and the tests that let a batch grow along a run.

The noise scale B = tr Σ/‖ḡ‖² is :func:`jaxsgd.noise_scale`'s, or, with curvature, :func:`jaxsgd.hessian_noise_scale`'s.
The functions here take numbers or arrays of them, so they can be applied to ``estimate.value``, ``.low`` and ``.high``
alike.
"""

from jaxsgd._core.faces import at_home
from jaxsgd.batch_size._advice import RelativeCost, adascale_gain, cabs_batch_size, critical_batch_size, relative_cost
from jaxsgd.batch_size._gradient_tests import GradientTests, gradient_tests
from jaxsgd.batch_size._tradeoff import Tradeoff, fit_tradeoff, steps_to_target

__all__ = [
    "GradientTests",
    "RelativeCost",
    "Tradeoff",
    "adascale_gain",
    "cabs_batch_size",
    "critical_batch_size",
    "fit_tradeoff",
    "gradient_tests",
    "relative_cost",
    "steps_to_target",
]

at_home(__name__, __all__)
