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
    "autodiff_at_kinks": [
        ("returned", lambda r: r + 0.1, "JAX returns something else than is listed for relu"),
        (
            "averages",
            lambda a: np.add(a, [[0, 0.1], [0, 0]]),
            "the gradient of the mean must be the mean of the gradients",
        ),
        ("averages", lambda a: a + 0.5, "the mean θ/2 must show that both can be wrong"),
        ("truth", lambda t: np.full_like(t, [-np.inf, np.inf]), "some programs must be wrong"),
        ("one_by_one", np.zeros_like, "one example must spoil the batch"),
        ("batch", np.ones_like, "one example must spoil the batch"),
    ],
    "exchange": [
        ("drawn_mean", lambda g: g + 1, "standard errors from E ∂L"),
        ("derivative", lambda d: d + 0.3, "where exchange fails, drawn gradients must miss F'"),
        ("finite_slopes", lambda s: s + 1e-9, "every finite data set must have slope 0 at 0"),
        ("mean_of", lambda m: np.add(m, [0.1, 0]), "derivative 1 of the usual losses: exchange must fail for 0–1"),
        ("mean_of", lambda m: np.add(m, [0, 0.1]), "derivative 2 of the usual losses: exchange must fail for hinge"),
        ("of_mean", lambda m: m * 0, "of the usual losses: exchange must fail for"),
    ],
    "kernel_speed": [],
    "shuffling": [
        ("cross/exact", lambda v: v + 1e-9, "batches must have covariance -6.2"),
        ("cross/drawn", lambda v: v + 3, "drawn covariances of batches are"),
        ("cross/error", lambda v: v * 30, "independence of an epoch's batches must be rejected"),
        ("stored/exact", lambda v: v[[1, 0, 2, 3, 4, 5, 6]], "covariances in stored order are"),
        ("stored/exact", changed(-1, lambda v: -6.2), "blocks of two must have covariance"),
        ("stored/drawn", changed(1, lambda error: error * 30), "the law of shuffling must be rejected in stored order"),
        ("short/exact", changed(1, lambda v: v * 5 / 6), "31/5 and 62/75 must be"),
        ("short/by_example", lambda v: v + 1e-3, "the average of an epoch must not vary"),
        ("short/drawn", changed(0, lambda v: v + 0.2), "drawn epochs with a short batch are"),
        ("short/drawn", changed(2, lambda v: v * 1.2), "drawn epochs with a short batch are"),
        ("short/drawn", changed(3, lambda v: v * 100), "averages to ḡ must be rejected"),
        ("short/stored_order", lambda v: v * 0 + 6.2, "the average in stored order must be rejected"),
        ("fixed/mean", lambda v: v[:, ::-1], "the six orders must end at"),
        ("fixed/drawn", lambda v: v + 1e-4, "epochs in a fixed order must end where they should"),
        ("independent/square", lambda v: v * 0.9, "independent batches: simulated runs"),
        ("random/mean", lambda v: v * 0, "random batches: simulated runs"),
        ("random/square", lambda v: v * 1.3, "random batches: simulated runs"),
        ("random/drawn", changed((..., 1), lambda v: v * 100), "end at the minimum on average must be rejected"),
        ("random/drawn", changed((..., 3), lambda v: v * 1000), "the law of independent batches must be rejected"),
        ("independent/square", changed(-1, lambda v: v * 0.9), "E δ² must be of order η, got"),
        ("random/square", changed(-1, lambda v: v * 0.5), "random order: E δ² must be of order η², got"),
        ("fixed/mean", changed(-1, lambda v: v * 2), "fixed order: E δ² must be of order η², got"),
        ("random/mean", changed(-1, lambda v: v * 1.1), "reshuffled epochs must end at −η/2 on average"),
    ],
    "stationary_noise": [
        ("small/runs", changed((1, 5), lambda v: v - 1 / 34), "at η = 1/4 got"),
        ("small/runs", changed((3, 2), lambda v: v * 1.2), "small: the excess loss is"),
        ("diabetes/runs", changed((0, 4), lambda v: v * 2), "diabetes: the excess loss is"),
        ("diabetes/runs", changed((1, 8), lambda v: v + 10), "diabetes: a variance is"),
        ("diabetes/runs", changed((0, 5), lambda v: v * 1.1), "diabetes: runs must be stationary"),
        ("diabetes/runs", changed((..., 3), lambda v: v * 50), "the diffusion approximation must be rejected"),
        ("small/runs", changed((3, 6), lambda v: 1.8), "small: additive noise must be rejected"),
        ("small/threshold", lambda v: v * 0 + 1, "the threshold of the three quadratics must be 6/7"),
        ("threshold/radius", lambda v: v * 1.001, "at the threshold the spectral radius must be 1"),
        ("threshold/without", lambda v: v[::-1], "the threshold must rise with the batch size"),
        ("threshold/descent", lambda v: v * 1.01, "at M = N it must be"),
        ("threshold/with", lambda v: v * 1.1, "with replacement the threshold must be lower"),
        (
            "threshold/without",
            changed(slice(0, -1), lambda v: 0.4 + v / 10),
            "2/λ_max must be rejected as the threshold",
        ),
        ("scaling/size", changed(0, lambda v: v * 0 + 1), "must be that of ηc_M"),
        ("scaling/sizes", lambda v: v * 0 + 300, "for small steps the noise along η/M"),
        ("scaling/population", lambda v: v * 2, "for small steps the noise along η/M"),
        ("scaling/size", changed(1, lambda v: np.nan_to_num(v, nan=9.0)), "linear scaling must lead into instability"),
        ("scaling/size", changed(1, lambda v: v * 0 + 1), "noise must grow towards the threshold"),
    ],
    "streaming_speed": [],
    "sweep_speed": [
        ("difference", lambda d: d + 2e-3, "loop and sweep must arrive at the same parameters"),
        ("same_bits", lambda same: ~same, "monitors must change no parameter"),
        ("compilations", lambda c: c + 1, "each batch size must compile once"),
        ("final_loss", lambda loss: loss + 10, "the smallest learning rate must learn"),
        ("hold_to_speed", lambda _: np.array(True), "the loop must take 5 times as long|watching every"),
    ],
    "variance_vs_batch_size": [
        ("without_replacement/z_variance", lambda z: z - 10, "the variance without replacement is"),
        ("with_replacement/z_mean", lambda z: z + 10, "the mean with replacement is"),
        ("without_replacement/exact", lambda v: v + 1e-9, "the full batch without replacement must have variance 0"),
        ("without_replacement/drawn", lambda v: v + 1e-3, "drawn full batches must agree to rounding"),
        ("z_wrong_law", lambda z: z * 0, "the 1/M law must be rejected"),
    ],
}
