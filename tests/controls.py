"""Negative controls of the experiments: changes of what was found that must not pass as the claim.

For each stem a list of (array, change, message): ``check`` must refuse the quick run's arrays with that one changed,
and name the reason. The speed experiments are held by made-up measurements in test_speed_experiments instead.
"""

from collections.abc import Callable

import numpy as np

Control = tuple[str, Callable[[np.ndarray], np.ndarray], str]

CONTROLS: dict[str, list[Control]] = {
    "kernel_speed": [],
    "population": [
        (
            "exact/without",
            lambda v: np.add(v, [[[1, 0], [0, 0], [0, 0]]]),
            "without replacement, M = 1: the mean must be 2",
        ),
        (
            "exact/with",
            lambda v: np.add(v, [[[0, 0], [1, 0], [0, 0]]]),
            "with replacement, M = 1: given the data must be",
        ),
        ("exact/with", lambda v: np.add(v, [[[0, 0], [0, 0], [1, 0]]]), "with replacement, M = 1: of the data must be"),
        ("without/total/drawn", lambda v: v * 1.3, "without/total is"),
        ("with/total/drawn", lambda v: v * 0.7, "with/total is"),
        ("with/given/law", lambda v: v * 1.2, "with/given is"),
        ("augmented/law", lambda v: v - v[-1] / 2, "augmented is"),
        ("without/given/drawn", lambda v: v + 1e-12, "the full batch must be exact for its data set"),
        ("without/given/law", lambda v: v + 1e-2 * np.arange(30), "without/given is"),
        ("without/total/error", lambda v: v * 1e3, "variance given the data set as the total must be rejected"),
        ("with/total/error", lambda v: v * 1e3, "1/M with replacement must be rejected"),
        ("augmented/error", lambda v: v * 1e3, "no variance from augmentation must be rejected"),
    ],
    "streaming_speed": [],
    "variance_vs_batch_size": [
        ("without_replacement/z_variance", lambda z: z - 10, "the variance without replacement is"),
        ("with_replacement/z_mean", lambda z: z + 10, "the mean with replacement is"),
        ("without_replacement/exact", lambda v: v + 1e-9, "the full batch without replacement must have variance 0"),
        ("without_replacement/drawn", lambda v: v + 1e-3, "drawn full batches must agree to rounding"),
        ("z_wrong_law", lambda z: z * 0, "the 1/M law must be rejected"),
    ],
}
