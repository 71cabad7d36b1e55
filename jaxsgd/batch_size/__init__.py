"""What batch size is worth it: measured by branches, or told by the noise scale; tests that let a batch grow.

The noise scale B = tr Σ/‖ḡ‖² is :func:`jaxsgd.noise_scale`'s, or, with curvature, :func:`jaxsgd.hessian_noise_scale`'s.
The functions here take numbers or arrays of them, so they can be applied to ``estimate.value``, ``.low`` and ``.high``
alike.
"""

from jaxsgd._core.faces import at_home
from jaxsgd.batch_size._advice import RelativeCost, adascale_gain, cabs_batch_size, critical_batch_size, relative_cost
from jaxsgd.batch_size._branches import BranchedBatchSize, branched_critical
from jaxsgd.batch_size._gradient_tests import GradientTests, gradient_tests
from jaxsgd.batch_size._measured import MeasuredTradeoff, Trial, measure_critical
from jaxsgd.batch_size._tradeoff import Tradeoff, fit_tradeoff, steps_to_target

__all__ = [
    "BranchedBatchSize",
    "GradientTests",
    "MeasuredTradeoff",
    "RelativeCost",
    "Tradeoff",
    "Trial",
    "adascale_gain",
    "branched_critical",
    "cabs_batch_size",
    "critical_batch_size",
    "fit_tradeoff",
    "gradient_tests",
    "measure_critical",
    "relative_cost",
    "steps_to_target",
]

at_home(__name__, __all__)
