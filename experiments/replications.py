"""Published rates, and ours beside them: shuffled SGD, momentum at small and large batches, stratified gradients.

Exponents of the error of SGD in the examples n and the epochs K are those that are proved; on the noisy quadratic
momentum does nothing for small batches and moves the critical batch size; one example from each of the clusters charged
as proved estimates the gradient best. On the digits the variance of gradients falls along a run, where others saw it
rise.

Command    python -m experiments replications
Run time   about 2 minutes on two cores
Expected   exponents within 0.05: (−1, −1) for independent examples, (−1, −2) shuffled once, (−1, −3) reshuffled for few
           epochs and (−2, −2) for many; as many steps with momentum as without within 1% at B = 1, and less than a
           tenth for the largest; clusters below k-means, classes and simple random samples at every point of a run

Published are: O(1/T) of SGD and O(1/T² + n³/T³) of reshuffling, T = nK, by J. HaoChen and S. Sra ("Random shuffling
beats SGD after finite epochs", ICML 2019, arXiv:1806.10077, abstract); Ω(1/(nK)² + 1/(nK³)) of reshuffling and Ω(1/(nK²))
of one shuffle by I. Safran and O. Shamir ("How good is SGD with random shuffling?", COLT 2020, arXiv:1908.00261,
abstract); the bound (1 − ημ)^{nK} δ_0² + (2η²/μ) Lnσ²/4 of both by K. Mishchenko, A. Khaled and P. Richtárik ("Random
reshuffling: simple analysis with vast improvements", NeurIPS 2020, arXiv:2006.05988; stated by them for no regularizer in
"Proximal and federated random reshuffling", arXiv:2102.06704, theorems 1 and 2); the stationary risk of momentum, and
that it helps large batches only, by G. Zhang et al. ("Which algorithmic choices matter at which batch sizes?", NeurIPS
2019, arXiv:1907.04164, theorem 1); gradient clustering by F. Faghri, D. Duvenaud, D. Fleet and J. Ba ("A study of
gradient variance in deep learning", arXiv:2007.04532, abstract). Powers of log(nK), which come from the step size, are
divided out. Nothing is drawn but one run of SGD on the digits and the starts of clusters. The noise scale of
normalization layers has an experiment of its own, layernorm_noise_scale.
"""

import dataclasses
from fractions import Fraction
from typing import Any

import jax
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxsgd
from experiments import _gradient_strata, _heavy_ball, _shuffled_rates
from experiments._claims import Claims
from experiments._harness import Arrays, Seeded, progress
from experiments._panels import BLUE, DASHED, ORANGE, mark, note, page_of, panel, reference
from jaxsgd import designs, estimators, problems, training
from jaxsgd.batch_size import fit_tradeoff

INDEPENDENT, ONCE, RESHUFFLED = _shuffled_rates.WAYS
EXPONENTS = {  # of n and K, and the power of log(nK) with the step size 2 log(nK)/(μnK)
    "independent": (INDEPENDENT, "few", (-1, -1), 1),
    "shuffled once": (ONCE, "few", (-1, -2), 2),
    "reshuffled, few epochs": (RESHUFFLED, "few", (-1, -3), 3),
    "reshuffled, many epochs": (RESHUFFLED, "many", (-2, -2), 2),
}
TOLERANCE = 0.05  # of exponents
STRATA = ("by class", "k-means", "clusters", "clusters of the start")
SIMPLE = "without_replacement"
LIMIT = 30_000  # steps that are also made one by one


class Config(Seeded):
    """Settings of the experiment."""

    few: tuple[int, int] = (2048, 1024)
    """The most examples, and the most epochs, where epochs are few; their halves are used too."""
    many: tuple[int, int] = (16, 2**20)
    """The same where epochs are many."""
    dimension: int = 10_000
    """Of the noisy quadratic with curvatures and noise 1/i."""
    target: float = 0.01
    """The loss it is to reach, from 4.9 in 10,000 dimensions."""
    num_sizes: int = 11
    """Batch sizes, the powers of 4 from 1."""
    momenta: tuple[float, ...] = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98)
    """Momenta that are tried, the first of them none."""
    per_octave: int = 4
    """Learning rates between one and its double."""
    num_examples: int = 1797
    """Digits used, in stored order."""
    hidden: int = 16
    """Width of the network on the digits."""
    num_strata: int = 128
    """Clusters, and examples in a batch."""
    learning_rates: tuple[float, ...] = (0.05, 0.2)
    """Of two runs; strata are made along the second."""
    points: tuple[int, ...] = (0, 10, 30, 100, 300, 1000)
    """Steps after which variances are computed."""


QUICK = Config(few=(1024, 1024), dimension=300, num_sizes=9, num_examples=400, hidden=8, num_strata=32, points=(0, 30, 300))
SUMMARY = (
    "exponents of SGD within {worst_exponent:.2f} of those proved; momentum saves {saved_by_momentum_at_one:.1%} of the "
    "steps at B = 1 and takes {fewer_steps_at_most:.0f} times fewer at most, with a critical batch size "
    "{critical_ratio:.0f} times as large; clusters leave {least_left_by_clusters:.0%} to {most_left_by_clusters:.0%} of "
    "the variance, classes {least_left_by_class:.0%} to {most_left_by_class:.0%}"
)


def compute(config: Config) -> Arrays:
    """The errors of SGD, steps to the target, and variances along runs."""
    return rates(config) | momentum(config) | strata(config)


def rates(config: Config) -> Arrays:
    """Exact errors at doublings of n and of K, along K, and by the library's laws for six examples."""
    found: dict[str, Any] = {}
    for name, (n, K) in {"few": config.few, "many": config.many}.items():
        for axis, grid in {"n": [(n // 4, K), (n // 2, K), (n, K)], "K": [(n, K // 4), (n, K // 2), (n, K)]}.items():
            rows = [at(*pair) for pair in grid]
            found |= {f"rates/{name}/{axis}/{key}": [row[key] for row in rows] for key in rows[0]}
    n, K = config.few[0] // 4, 2.0 ** np.arange(7, 21)
    found |= {f"rates/along/{key}": value for key, value in at(n, K).items()}
    ours = _shuffled_rates.errors(6, 3, [1 / 20])
    found["rates/six"] = [ours[way][0] for way in _shuffled_rates.WAYS]
    found["rates/six by the library"] = np.array(_shuffled_rates.by_the_library(6, 3, Fraction(1, 20)), dtype=float)
    return found


def at(num_examples: int, epochs: Any) -> dict[str, Any]:
    """The errors at the step size of n and K, the bound on them, and the logarithm in it."""
    K = np.atleast_1d(np.asarray(epochs, float))
    eta = _shuffled_rates.learning_rates(num_examples, K)
    found = _shuffled_rates.errors(num_examples, K, eta)
    found |= {"bound": _shuffled_rates.bound(num_examples, K, eta), "log": np.log(num_examples * K), "epochs": K}
    return {name: value if np.ndim(epochs) else value[0] for name, value in found.items()}


def momentum(config: Config) -> Arrays:
    """The fewest steps at every momentum and batch size; the same one by one; laws of one coordinate."""
    h, sizes = _heavy_ball.curvatures(config.dimension), 4.0 ** np.arange(config.num_sizes)
    found = _heavy_ball.fewest_steps(config.target, sizes, h, config.momenta, (config.per_octave, 2.0**-10))
    best = found["steps"].argmin(axis=0)
    walked = []
    for size, place, of_size in zip(sizes, best, np.arange(len(sizes)), strict=True):
        run = config.target, size, h, found["rates"][place, of_size], config.momenta[place]
        walked.append(_heavy_ball.first_time(*run, LIMIT))
    coordinate = (0.3, 0.7, 0.9)
    return {f"momentum/{name}": value for name, value in found.items()} | {
        "momentum/sizes": sizes,
        "momentum/betas": np.array(config.momenta),
        "momentum/one by one": np.array(walked),
        "momentum/stationary risk": np.array(_heavy_ball.stationary_risk(*coordinate)),
        "momentum/after 7 steps": np.array(_heavy_ball.after(7, *coordinate)),
    }


def strata(config: Config) -> Arrays:
    """tr Σ and ‖ḡ‖² along two runs; along the second, variances of stratified batches over simple random ones."""
    start_key, run_key = jax.random.split(config.key())
    digits = problems.digits_mlp(key=start_key, hidden=config.hidden).take(slice(config.num_examples))
    design = designs.WithReplacement(config.num_strata)
    traces, norms, along = [], [], []
    for rate in progress(config.learning_rates, "runs"):
        run = (optax.sgd(rate), design, config.points[-1], run_key)
        kept = training.run_sgd(*digits, *run, keep_params_at=config.points, gradient="plain").kept_params
        along = [gradients(digits, jax.tree.map(lambda leaf, k=k: leaf[k], kept)) for k in range(len(config.points))]
        grams = [np.asarray(g.gram()) for g in along]
        norms.append([gram.mean() for gram in grams])
        traces.append([gram.trace() / len(gram) - gram.mean() for gram in grams])
    made = [stratified(g, digits.data["y"], config) for g in progress(along, "strata")]
    few = gradients(digits.take(slice(48)), digits.params)
    checked = stratified(few, digits.data["y"][:48], dataclasses.replace(config, num_strata=12))
    return {
        "strata/points": config.points,
        "strata/learning_rates": config.learning_rates,
        "strata/trace": traces,
        "strata/squared_norm": norms,
        "strata/ratio": [of_designs(g, (*here, made[0][-1])) for g, here in zip(along, made, strict=True)],
        "strata/few": of_designs(few, checked),
        "strata/few by the library": [estimators.design_effect(design, few, relative_to=SIMPLE) for design in checked],
    }


def gradients(problem: problems.Problem, params: Any) -> jaxsgd.PerExampleGradients:
    """Of all examples."""
    return jaxsgd.per_example_gradients(problem.loss_fn)(params, problem.data)


def stratified(g: jaxsgd.PerExampleGradients, labels: Any, config: Config) -> tuple[designs.Stratified, ...]:
    """By class, by k-means, and by clusters with a lower charge: batches of as many examples."""
    rows = np.concatenate([np.asarray(leaf).reshape(g.count, -1) for leaf in jax.tree.leaves(g.materialize())], axis=1)
    clusters = _gradient_strata.by_k_means(rows, config.num_strata, config.seed)
    lower = _gradient_strata.weighted(distances_of(g), clusters)
    by_class = designs.Stratified.proportional(np.asarray(labels, int), config.num_strata)
    return by_class, *map(_gradient_strata.one_from_each, (clusters, lower))


def distances_of(g: jaxsgd.PerExampleGradients) -> np.ndarray:
    """‖g_i − g_j‖²."""
    return _gradient_strata.squared_distances(np.asarray(g.gram()))


def of_designs(g: jaxsgd.PerExampleGradients, several: Any) -> list[float]:
    """Their variances over that of simple random sampling."""
    return _gradient_strata.ratios(distances_of(g), several)


def check(results: Arrays) -> Claims:
    """Confirm what was published but for the last case, and reject the rates that others have."""
    return Claims.of(results, check_rates, check_momentum, check_strata, enter_cases)


def exponents(results: Arrays) -> dict[str, tuple[float, float]]:
    """Of n and K, from the last doublings, with the power of log(nK) divided out."""
    found = {}
    for name, (way, regime, _, power) in EXPONENTS.items():
        runs = [{key: results[f"rates/{regime}/{axis}/{key}"] for key in (way, "log")} for axis in "nK"]
        found[name] = tuple(float(np.diff(np.log2(run[way] / run["log"] ** power))[-1]) for run in runs)
    return found


def check_rates(claims: Claims, results: Arrays) -> None:
    """The exponents proved, below the bound, which one shuffle attains; not those of independent examples."""
    library, ours = results["rates/six by the library"], results["rates/six"]
    claims.equal(ours, library, "errors for six examples must be those of the library's laws, got {}", rtol=1e-10, atol=0)
    found, off = exponents(results), []
    for name, (_, _, published, _) in EXPONENTS.items():
        off.append(np.abs(np.subtract(found[name], published)))
        claims.equal(found[name], published, f"exponents, {name}, must be {published}, got {{}}", atol=TOLERANCE)
    claims["worst_exponent"] = np.max(off)
    over = {way: results[f"rates/along/{way}"] / results["rates/along/bound"] for way in (ONCE, RESHUFFLED)}
    claims.below(np.stack(list(over.values())), 1, "errors must be below the bound for shuffling, got {:.3f} of it")
    claims.above(over[ONCE].min() / over[ONCE].max(), 0.9, "one shuffle must have the rate of the bound, got {:.2f}")
    claims.below(over[RESHUFFLED][-1] / over[RESHUFFLED][0], 0.1, "that reshuffling has it must be rejected, got {:.2f}")
    of_epochs = [found[name][1] for name in list(EXPONENTS)[1:]]
    claims.below(of_epochs, -1.5, "that shuffling has the rate of independent examples must be rejected, got K^{:.2f}")
    message = "that the term n³/T³ does not fall with n must be rejected, got n^{:.2f}"
    claims.below(found["reshuffled, few epochs"][0], -0.5, message)
    claims |= {"exponents_of_n_and_K": found, "largest_share_of_bound": over[ONCE].max()}


def check_momentum(claims: Claims, results: Arrays) -> None:
    """Nothing at small batches, a larger critical batch size, the published stationary risk."""
    steps, sizes = results["momentum/steps"], results["momentum/sizes"]
    claims.require(results["momentum/is_inside"].all(), "the best learning rate must lie inside those tried")
    for name in ("stationary risk", "after 7 steps"):
        first, second = results[f"momentum/{name}"]
        claims.equal(first, second, f"{name}: the library's law must be {second}, got {{}}", rtol=1e-12, atol=0)
    fewest = steps.min(axis=0)
    walked = np.where(fewest < LIMIT, fewest, LIMIT)
    message = "one by one it must take the same number of steps to the target, got {}"
    claims.equal(results["momentum/one by one"], walked, message)
    faster = steps[0] / fewest
    message = "at B = 1 momentum must save less than 1% of the steps, got a factor of {:.3f}"
    claims.below(faster[0], 1.01, message)
    claims.above(faster[-1], 3, "that momentum does nothing for large batches must be rejected, got {:.2f} times fewer")
    plain, tuned = (fit_tradeoff(sizes, of_steps).critical_batch_size for of_steps in (steps[0], fewest))
    claims.above(tuned / plain, 2, "momentum must raise the critical batch size, got {:.1f} times", enter="critical_ratio")
    claims |= {"saved_by_momentum_at_one": 1 - 1 / faster[0], "fewer_steps_at_most": faster.max()}
    claims |= {"critical_batch_sizes": [plain, tuned], "best_momenta": results["momentum/betas"][steps.argmin(axis=0)]}


def check_strata(claims: Claims, results: Arrays) -> None:
    """Clusters by the charge that is proved leave least; the variance falls along the run, its ratio to ‖ḡ‖² rises."""
    few = results["strata/few by the library"]
    claims.equal(results["strata/few"], few, "variances for few examples must be the library's, got {}", rtol=1e-8, atol=0)
    by_class, k_means, clusters, kept = results["strata/ratio"].T
    claims.below(clusters / np.minimum(by_class, k_means), 1, "clusters must leave least variance, got {:.3f} times")
    claims.above(kept[-1] / clusters[-1], 1.5, "clusters of the start must be worse at the end, got {:.2f} times")
    for name, ratio in {"clusters": clusters, "class": by_class}.items():
        claims |= {f"least_left_by_{name}": ratio.min(), f"most_left_by_{name}": ratio.max()}
    trace, normalized = results["strata/trace"], results["strata/trace"] / results["strata/squared_norm"]
    claims.below(trace[:, -1] / trace[:, 0], 0.9, "that tr Σ rises along a run must be rejected here, got {:.2f} times")
    claims.above(normalized[:, -1] / normalized[:, 0], 2, "tr Σ/‖ḡ‖² must rise along the run, got {:.1f} times")
    claims.above(trace[0, 1:] / trace[-1, 1:], 1, "a smaller learning rate must have more variance, got {:.2f} times")
    claims |= {"end_over_start_of_trace": trace[:, -1] / trace[:, 0]}
    claims |= {"end_over_start_of_normalized": normalized[:, -1] / normalized[:, 0]}
