"""Negative controls of the experiments: changes of what was found that must not pass as the claim.

For each stem a list of (array, change, message): ``check`` must refuse the quick run's arrays with that one changed,
and name the reason. The speed experiments are held by made-up measurements in test_speed_experiments instead.
"""

from collections.abc import Callable

import numpy as np

Control = tuple[str, Callable[[np.ndarray], np.ndarray], str]

CONTROLS: dict[str, list[Control]] = {
    "kernel_speed": [],
    "streaming_speed": [],
    "variance_vs_batch_size": [
        ("without_replacement/z_variance", lambda z: z - 10, "the variance without replacement is"),
        ("with_replacement/z_mean", lambda z: z + 10, "the mean with replacement is"),
        ("without_replacement/exact", lambda v: v + 1e-9, "the full batch without replacement must have variance 0"),
        ("without_replacement/drawn", lambda v: v + 1e-3, "drawn full batches must agree to rounding"),
        ("z_wrong_law", lambda z: z * 0, "the 1/M law must be rejected"),
    ],
}
