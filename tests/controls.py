"""Negative controls of the experiments: changes of what was found that must not pass as the claim.

For each stem a list of (array, change, message): ``check`` must refuse the quick run's arrays with that one changed,
and name the reason. The speed experiments are held by made-up measurements in test_speed_experiments instead.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Control = tuple[str, Callable[[np.ndarray], np.ndarray], str]


def changed(at: Any, change: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], np.ndarray]:
    """A change of some entries only."""

    def apply(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[at] = change(values[at])
        return values

    return apply


CONTROLS: dict[str, list[Control]] = {
    "error_surface": [
        ("line/gradients", lambda v: -v, "the gradients at .1, 1. are off"),
        ("line/gradient_of_mean", lambda v: v * [1, -1], "−ḡ and the way to the minimum must have cosine"),
        ("line/gradient_of_mean", lambda v: v * 4, "the mean of gradients must be"),
        ("line/elsewhere", lambda v: v * 0 + [-1, -0.5], "gradients at different θ must not average"),
        ("line/not_descending", lambda v: v[[0, 0, 2, 3]], "batches must fail to descend with probability"),
        ("line/change", lambda v: v[::-1], "steps on one example must change the mean loss by"),
        ("line/losses", lambda v: v[:, [0, 0, 2, 3]], "the mean of the surfaces must be that of the mean"),
        ("line/losses", lambda v: v * 0 + v.mean(axis=1, keepdims=True), "examples share one surface must be rejected"),
        ("quadratics/minima", lambda v: v * 0, "the minima must be 3, 0, −1"),
        ("quadratics/minimum_of_mean", lambda v: v + 2 / 3, "the mean of the minima, 2/3, must be rejected"),
        ("quadratics/minimum_of_mean", lambda v: v - 0.1, "the minimum of the mean must be 0"),
        ("quadratics/losses", lambda v: v[:, [0, 0, 0]], "the mean surface must be lowest at 0"),
        ("network/mean", lambda v: v * (1 + 1e-9), "the mean of the examples' surfaces must be"),
        (
            "network/slopes",
            lambda v: v * 0 + v.mean(axis=1, keepdims=True),
            "all examples have one slope must be rejected",
        ),
        ("network/differences", lambda v: v[::-1], "slopes of the surfaces must be those of the gradients"),
        ("network/slope_of_mean", lambda v: v * 200, "the slope of the mean must be the mean slope"),
        ("network/variances", lambda v: v * 200 / 199, "variances along the plane must be"),
    ],
    "gradient_of_mean": [
        ("programs", lambda v: v + 2e-5, "programs differ by 2.*e-05 Σ.* in float32"),
        ("programs", lambda v: v + 1e-13, "programs differ by 1.*e-13 Σ.* in float64"),
        ("programs", changed((0, 0, 1), lambda v: np.nan), "all programs must have been run"),
        ("rounding", changed((..., 0, -1), lambda v: v * 1e4), "the rounding error of the sum one by one"),
        ("rounding", changed((..., 1, -1), lambda v: v + 1e-5), "the rounding error of the sum pairwise"),
        ("rounding", changed((..., 2, 0), lambda v: v + 1e-5), "the rounding error of the sum XLA's mean"),
        ("rounding", changed((..., 0, -1), lambda v: v / 1e3), "the pairwise bound must be rejected"),
        ("rounding", lambda v: v[:, [1, 1, 1]], "equality of two orders bit by bit must be rejected"),
        ("mean_residual", lambda v: v * 0 - 13, "the mean residual must have gradients"),
        ("mean_residual/additive", lambda v: v + 1, "the mean of squares must have the gradient −13"),
        ("sequential", lambda v: v * 0, "that sequential steps end at the same place must be rejected"),
        ("sequential", changed(0, lambda v: v * 2), "the gap at η = 1/20 must be"),
        ("sequential", changed(slice(1, None), lambda v: v * 1.01), "the gap must be 12η² .* 504η³"),
        ("slopes", lambda v: v[[0, 0]], "must equal the derivative at 0 and 1 only"),
        ("slopes", lambda v: v * 2, "at x = 2 the two must be 10 and 16"),
        ("scales", lambda v: v[[0, 0, 2]], "the batch sum must have means"),
        ("scales", lambda v: v[[0, 1, 1]], "the batch total must have means"),
    ],
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
