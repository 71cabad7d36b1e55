"""Negative controls of the experiments: changes of what was found that must not pass as the claim.

For each stem a list of (array, change, message): ``check`` must refuse the arrays of a quick run, and those of the full
run that are stored, with that one changed, and name the reason. The speed experiments are held by made-up measurements
in test_speed_experiments instead.
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


def best_steps(steps: np.ndarray, wanted: Any) -> np.ndarray:
    """The same steps for every batch size, target and rate, but for a factor that makes the fewest those wanted."""
    return steps / steps.min(axis=2, keepdims=True) * np.reshape(wanted, (-1, 1, 1))


FOURTHS = 0.25 ** np.arange(20)
SIZES = {3: (2, 16, 256), 8: (1, 2, 4, 8, 16, 32, 128, 512)}  # of critical_batch_size, quick and full

CONTROLS: dict[str, list[Control]] = {
    "adaptive_tests": [
        ("orthogonality", lambda v: v * (1 + 1e-6), "norm = inner product [+] orthogonality must hold"),
        ("squared_norm", lambda v: v * 1.3, "published norm statistics must tend to"),
        ("noise", lambda v: v * 0.8, "published norm statistics must tend to"),
        ("noise_scale", lambda v: v / 20, "standard errors off"),
        ("squared_norm", lambda v: v / 3, "published: .* pass where x > 2"),
        ("unbiased_norm", lambda v: v * 0 + 0.5, "unbiased: .* pass where x > 2"),
        ("asked/inner product", lambda v: v * 20, "the inner-product test must ask for less"),
        ("asked/CABS, loss + 1", lambda v: v * 20, "CABS must change with a constant"),
        ("adascale", lambda v: v * 3, "gain must lie between 1 and S"),
        ("adascale", lambda v: v[::-1], "gain must grow"),
        ("run/sizes", lambda v: np.minimum(v, 512), "batches must grow to all examples"),
        ("run/sizes", lambda v: v[[1, 0, 2]], "the unbiased test must ask for more"),
        ("run/sizes", lambda v: v[[0, 2, 1]], "the inner-product test must ask for less"),
    ],
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
    "critical_batch_size": [
        ("steps", changed((..., 0), lambda v: v * 0 + 1), "the best learning rate must lie inside those tried"),
        ("steps", changed(1, lambda v: v * 3), "steps must be within 20% of the hyperbola"),
        ("steps", lambda v: best_steps(v, 1000 / np.array(SIZES[len(v)])), "equally many examples must be rejected"),
        ("steps", lambda v: best_steps(v, 20.0), "equally many steps must be rejected"),
        ("steps", lambda v: v[:, ::-1], "B_crit must rise as the target falls"),
        ("noise_scales", changed((0, 0), lambda v: v * 10), "must be within a factor of 3 of B_crit"),
        ("noise_scales", changed((0, 1), lambda v: v / 10), "must be within a factor of 3 of B_crit"),
        ("noise_scales", changed((-1, 2), lambda v: v / 1e3), "a run at a quarter of the best rate tells B_crit must"),
        ("quadratic/steps", changed(3, lambda v: v * 2), "the noisy quadratic must be within 15% of a hyperbola"),
        ("quadratic/steps", lambda v: 100 * (1 + 87 * FOURTHS[: len(v)]), "exactly a hyperbola must be rejected"),
        (
            "quadratic/steps",
            lambda v: 100 * (1 + 2 * FOURTHS[: len(v)]) * (1 + 0.05 * (-1) ** np.arange(len(v))),
            "small batches must scale perfectly",
        ),
        (
            "quadratic/steps",
            lambda v: 1e5 * FOURTHS[: len(v)] * (1 + 0.05 * (np.arange(len(v)) == 3)),
            "large batches must be on a plateau",
        ),
        ("quadratic/scales", lambda v: v * 10, "mean noise scales of the noisy quadratic must be within"),
    ],
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
        ("fits/line/gradients", lambda v: v + 1e-9, "at a minimum ḡ must be 0"),
        ("fits/cubic/gradients", lambda v: v + 1e-9 * np.array([[1], [-1], [0], [0]]), "every g_i must be 0"),
        ("fits/line/gradients", np.zeros_like, "at the minimum of the line tr Σ must be 209/100"),
        ("fits/line/residuals", np.zeros_like, "the line must miss the points"),
        ("fits/cubic/excess", changed(-1, lambda v: v + 1e-3), "SGD must converge where all examples are fit"),
        ("fits/cubic/stationary", lambda v: v + 1e-9, "stationary noise of an interpolating fit must be 0"),
        ("fits/line/stationary", lambda v: v * 0, "stationary excess loss must be 15/224"),
        ("fits/line/excess", changed(-1, lambda v: v * 0), "SGD on the line must reach its stationary noise"),
        ("fits/line/drawn", changed((..., 0), lambda v: v * 2), "the mean excess loss of simulated runs is"),
        ("fits/line/drawn", changed((..., 1), lambda v: v * 1e3), "that SGD on the line converges must be rejected"),
    ],
    "exchange": [
        ("drawn_mean", lambda g: g + 1, "drawn gradients and E ∂L are .* standard errors off"),
        ("derivative", lambda d: d + 0.3, "where exchange fails, drawn gradients must miss F'"),
        ("finite_slopes", lambda s: s + 1e-9, "every finite data set must have slope 0 at 0"),
        ("mean_of", lambda m: np.add(m, [0.1, 0]), "derivative 1 of the usual losses: exchange must fail for 0–1"),
        ("mean_of", lambda m: np.add(m, [0, 0.1]), "derivative 2 of the usual losses: exchange must fail for hinge"),
        ("of_mean", lambda m: m * 0, "of the usual losses: exchange must fail for"),
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
    "interval_coverage": [
        (
            "score",
            lambda v: np.minimum(v, 0.85),
            "intervals must hold B in 93% of the batches, got 0.850 of the flat ones",
        ),
        ("score", changed(3, lambda v: v - 0.1), "intervals must hold B in 90% of the batches"),
        ("score", changed(4, lambda v: v / v), "of lognormal norms B must be held less often, got 1.000"),
        ("told", np.zeros_like, "lognormal norms must be told in most batches"),
        ("told", lambda v: v + 0.02, "normal ones must not be told"),
        ("fieller", lambda v: v / v, "the interval fieller must hold B less often"),
        ("jackknife", lambda v: v / v, "the interval jackknife must hold B less often"),
    ],
    "kernel_speed": [],
    "layernorm_noise_scale": [
        ("all", lambda v: -v, "noise scales must be positive"),
        ("all", lambda v: v**0.1, "the noise scale must grow along the run"),
        ("layernorm", lambda v: v[::-1], "noise scales must be positive"),
        ("layernorm", lambda v: np.append(v[:1], v[:0:-1]), "the logarithms must correlate"),
        ("layernorm", lambda v: v**3, "the ratio must stay within a factor of 3"),
        ("num_params", lambda v: v[[0, 0]], "less than a hundredth"),
    ],
    "noise_scale_along_training": [
        ("signal", lambda v: v[0] + 0 * v, "the noise scale must grow tenfold"),
        ("loss", lambda v: v[0] + 0 * v, "the loss must fall by half"),
        ("per_example/trace", lambda v: v * 1.3, "the trace of the per_example form is"),
        ("per_example/signal", lambda v: v + v.std(), "the signal of the per_example form is"),
        ("two_batch/trace", lambda v: v * 3, "the trace of the two_batch form is"),
        ("two_batch/signal", lambda v: v + v.std(), "the signal of the two_batch form is"),
        ("batch_size", lambda m: m // 2, "the plug-in ratio must tend to"),
        ("squared_norm", lambda v: v * 1.3, "the plug-in ratio must tend to"),
        ("low", lambda v: v * 2, "intervals must cover B in 90 % of the batches"),
        ("high", lambda v: np.full_like(v, np.inf), "intervals must end where B < m"),
        ("high", lambda v: np.minimum(v, 1e9), "intervals must be unbounded where B ≫ m"),
        ("two_batch/trace", lambda v: v.mean() + (v - v.mean(axis=1, keepdims=True)) / 4, "is .* standard errors off"),
    ],
    "nonadditive_losses": [
        ("form", lambda f: np.full_like(f, "unbiased"), "the unbiased forms must have no bias"),
        ("batch_size", lambda m: np.where(m == 2, 6, m), "the full batch must have no bias"),
        ("bias", np.zeros_like, "product of means must be biased at M = 2"),
        (
            "bias",
            lambda b: np.where(np.abs(b) < 1e-2, 0, b),
            "only the Wasserstein distance may be unbiased, got .*token",
        ),
        ("bias", lambda b: np.where(np.abs(b) > 1e-3, b - 0.3, b), "centering must shrink the gradient by"),
    ],
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
        ("without/given/law", lambda v: v + 1e-2 * np.arange(len(v)), "without/given is"),
        ("without/total/error", lambda v: v * 1e3, "variance given the data set as the total must be rejected"),
        ("with/total/error", lambda v: v * 1e3, "1/M with replacement must be rejected"),
        ("augmented/error", lambda v: v * 1e3, "no variance from augmentation must be rejected"),
    ],
    "sampling_designs": [
        ("bias", lambda b: b + 1e-9, "every design must be unbiased"),
        ("effect", lambda e: e + 1e-9, "the design effect of systematic at M = 2 must be"),
        ("intraclass", lambda k: k + 1e-6, "the design effect of groups must be 1"),
        ("drawn", lambda d: d + 10, "a drawn variance is"),
        ("standard_error", lambda s: s * 1e3, "the law of independent draws must be rejected somewhere"),
    ],
    "sgd_runs": [
        ("apart/8/SGD", lambda v: v + 1e-16, "sum and mean must agree with SGD at M = 8"),
        ("apart/10/momentum", lambda v: v + 1e-11, "sum and mean must agree with momentum at M = 10"),
        ("apart/10/clipping", changed(1, lambda v: v + 1e-3), "sum and mean must agree with clipping at M = 10"),
        ("apart/10/L2 penalty", changed(0, lambda v: v * 0), "agree with L2 penalty must be rejected"),
        ("apart/10/Adam, ε > 0", changed(0, lambda v: v * 0), "agree with Adam, ε > 0 must be rejected"),
        ("apart/8/same rate", lambda v: v * 0, "that sum and mean agree with one rate must be rejected"),
        ("penalized", lambda v: v[[0, 2, 1]], "least squares must end at 13/14"),
        ("first/sgd", lambda v: v[[0, 1, 2, 2]], "with clipping a quarter as long for the sum"),
        ("first/adam", lambda v: v[[0, 0]], "with ε = 1 Adam must step to"),
        ("SGD/10/losses", lambda v: v / 100, "after equally many steps the loss must fall with M"),
        ("SGD/1797/losses", lambda v: v / 100, "after equally many examples small batches must be ahead"),
        ("SGD/1797/losses", changed((0, -1), lambda v: v * 1.1), "only runs on all data must be equal"),
    ],
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
    "unbiasedness": [
        ("bias", lambda b: b + 1e-12, "the bias must be 0 in rational arithmetic, but not for with replacement"),
        ("bias", np.zeros_like, "every trap must be biased at some batch size"),
        ("slope", lambda s: s + 0.1, "slopes: "),
        ("simulated", lambda v: v + 1, "standard errors off"),
        ("langevin", lambda v: v * 1.2, "standard errors off"),
        ("standard_error", lambda s: s * 1e-9, "standard errors off"),
    ],
    "sweep_speed": [
        ("difference", lambda d: d + 2e-3, "loop and sweep must arrive at the same parameters"),
        ("same_bits", lambda same: ~same, "monitors must change no parameter"),
        ("compilations", lambda c: c + 1, "each batch size must compile once"),
        ("final_loss", lambda loss: loss + 10, "the smallest learning rate must learn"),
    ],
    "variance_reduction": [
        ("bias", lambda b: np.add(b, [1e-9, 0, 0]), "SAGA must be unbiased, got a bias of 1.0e-09"),
        ("bias", lambda b: np.add(b, [0, 0, 1e-9]), "SAG must have the bias"),
        ("bias", lambda b: b * [1, 0, 1], "that SAG is unbiased must be rejected"),
        ("linear", lambda v: v * 2, "on a linear regression SVRG must have the variance of H_i δ"),
        ("between", changed(slice(2), lambda v: v**0.9), "near the snapshot noise must be as δ²"),
        (
            "between",
            changed((0, ..., 0), lambda v: v[0] * 10 ** (np.arange(len(v)) / 2)),
            "noise as δ² far from the snapshot must be rejected",
        ),
        (
            "between",
            changed((1, -1), lambda v: v / 100),
            "that SVRG is never noisier than SGD must be rejected on breast",
        ),
        ("between", changed((..., 1), lambda v: v * 2), "the best coefficient must not add noise"),
        ("ratio", changed((0, 0, 0), lambda v: v / 2), "importance sampling must be useless at initialization"),
        ("ratio", changed((0, -1, 0), lambda _: 0.9), "importance sampling must help later, got 0.90"),
        ("ratio", changed((0, 0, 1), lambda _: 0.8), "stratification must help at initialization, got 0.80"),
        ("ratio", changed((0, -1, 1), lambda _: 0.3), "what stratification does must fade, got 0.30"),
        ("ratio", changed((1, -1, 3), lambda _: 0.2), "SVRG and SAGA must leave little noise at the end, got 0.200"),
        (
            "ratio",
            changed((0, slice(None), 2), lambda v: np.minimum(v, 0.5)),
            "old gradients must add noise while new ones change fast on digits",
        ),
    ],
    "variance_vs_batch_size": [
        ("without_replacement/z_variance", lambda z: z - 10, "the variance without replacement is"),
        ("with_replacement/z_mean", lambda z: z + 10, "the mean with replacement is"),
        ("without_replacement/exact", lambda v: v + 1e-9, "the full batch without replacement must have variance 0"),
        ("without_replacement/drawn", lambda v: v + 1e-3, "drawn full batches must agree to rounding"),
        ("z_wrong_law", lambda z: z * 0, "the 1/M law must be rejected"),
    ],
}
