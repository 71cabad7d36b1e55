"""Published rates, and ours beside them: shuffled SGD, momentum at small and large batches, stratified gradients.

The error of SGD falls with the examples n and the epochs K as is proved. On the noisy quadratic momentum does nothing
for small batches and makes the critical batch size larger. One example from each cluster of gradients estimates their
mean best if clusters are weighted as is proved. One thing is not found again: on the digits the variance of gradients
falls along a run, where others saw it rise.

Command    python -m experiments replications
Run time   about 2 minutes on two cores
Expected   exponents within 0.05: (−1, −1) for independent examples, (−1, −2) shuffled once, (−1, −3) reshuffled for few
           epochs and (−2, −2) for many; with momentum as many steps as without, within 1%, at B = 1, and 39 times fewer
           for the largest batches; clusters below k-means, classes and random samples at every point of a run

Published: O(1/T) of SGD and O(1/T² + n³/T³) of reshuffling, T = nK, by J. HaoChen and S. Sra ("Random shuffling beats
SGD after finite epochs", ICML 2019, arXiv:1806.10077, abstract); Ω(1/(nK)² + 1/(nK³)) of reshuffling and Ω(1/(nK²))
of one shuffle by I. Safran and O. Shamir ("How good is SGD with random shuffling?", COLT 2020, abstract); of both the
bound (1 − ημ)^{nK} δ_0² + (2η²/μ) Lnσ²/4 by K. Mishchenko, A. Khaled and P. Richtárik ("Random reshuffling: simple
analysis with vast improvements", NeurIPS 2020; as they restate it in arXiv:2102.06704, theorems 1 and 2); what momentum
does by G. Zhang et al. ("Which algorithmic choices matter at which batch sizes?", NeurIPS 2019, arXiv:1907.04164), who
have curvatures and noise 1/i; clusters, and the variance along runs, by F. Faghri, D. Duvenaud, D. Fleet and J. Ba ("A
study of gradient variance in deep learning", arXiv:2007.04532, abstract). Powers of log(nK), which come from the step
size, are divided out. All numbers are exact; on the digits, of one run at each learning rate. What G. Gray et al. say
of normalization layers has an experiment of its own, layernorm_noise_scale.
"""

import itertools
from typing import Any

import jax
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxsgd
from experiments import _gradient_strata, _heavy_ball, _published, _shuffled_rates
from experiments._claims import Claims
from experiments._harness import Arrays, Seeded, progress, table
from experiments._panels import DASHED, mark, page_of, panel, reference, series
from jaxsgd import designs, problems, training
from jaxsgd.batch_size import fit_tradeoff

WAYS = INDEPENDENT, ONCE, RESHUFFLED = _shuffled_rates.WAYS
EXPONENTS = {  # of n and K, and the power of log(nK) with the step size 2 log(nK)/(μnK)
    "independent": (INDEPENDENT, "few", (-1, -1), 1),
    "shuffled once": (ONCE, "few", (-1, -2), 2),
    "reshuffled, few epochs": (RESHUFFLED, "few", (-1, -3), 3),
    "reshuffled, many epochs": (RESHUFFLED, "many", (-2, -2), 2),
}
TOLERANCE = 0.05  # of exponents
STRATA = ("classes", "k-means", "weighted clusters", "those of the start")
LIMIT = 30_000  # steps that are also made one by one
ONE = (0.3, 0.7, 0.9)  # a coordinate: h, α and β
FEW = 48  # digits, for variances by the library


class Config(Seeded):
    """Settings of the experiment."""

    few: tuple[int, int] = (2048, 512)
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


QUICK = Config(
    momenta=(0.0, 0.8, 0.98),
    per_octave=2,
    few=(1024, 256),
    dimension=300,
    num_sizes=9,
    num_examples=400,
    hidden=8,
    num_strata=32,
    points=(0, 30, 300),
)
SUMMARY = (
    "exponents of SGD within {worst_exponent:.2f} of those proved; momentum saves {saved_at_one:.2%} of the "
    "steps at B = 1 and takes {fewer_steps_at_most:.0f} times fewer at most, with a critical batch size "
    "{critical_ratio:.0f} times as large; weighted clusters leave {left_by[weighted clusters][0]:.0%} to "
    "{left_by[weighted clusters][1]:.0%} of the variance of gradients, k-means {left_by[k-means][0]:.0%} to "
    "{left_by[k-means][1]:.0%}"
)


def compute(config: Config) -> Arrays:
    """The errors of SGD, steps to the target, and variances along runs."""
    return rates(config) | momentum(config) | strata(config)


def rates(config: Config) -> Arrays:
    """Exact errors at doublings of n and of K, along K, and for six examples those of the library's laws."""
    found: dict[str, Any] = {}
    for name, (n, K) in {"few": config.few, "many": config.many}.items():
        for axis, grid in {"n": [(n // 2, K), (n, K)], "K": [(n, K // 2), (n, K)]}.items():
            found |= table([_shuffled_rates.at(*pair) for pair in grid], prefix=f"rates/{name}/{axis}/")
    along = _shuffled_rates.at(config.few[0] // 4, 2.0 ** np.arange(7, 21))
    found |= {f"rates/along/{name}": value for name, value in along.items()}
    ours, library = _shuffled_rates.for_six()
    return found | {"rates/six": ours, "rates/six by the library": library}


def momentum(config: Config) -> Arrays:
    """The fewest steps at every momentum and batch size; the same one by one; laws of one coordinate."""
    h, sizes = _heavy_ball.curvatures(config.dimension), 4.0 ** np.arange(config.num_sizes)
    found = _heavy_ball.fewest_steps(config.target, sizes, h, config.momenta, (config.per_octave, 2.0**-10))
    best, of_sizes = found["steps"].argmin(axis=0), np.arange(len(sizes))
    runs = zip(sizes, found["rates"][best, of_sizes], np.array(config.momenta)[best], strict=True)
    walked = [_heavy_ball.first_time(config.target, B, h, alpha, beta, LIMIT) for B, alpha, beta in runs]
    found |= {"sizes": sizes, "betas": np.array(config.momenta), "one by one": np.array(walked)}
    found |= {"stationary risk": _heavy_ball.stationary_risk(*ONE), "after 7 steps": _heavy_ball.after(7, *ONE)}
    return {f"momentum/{name}": np.asarray(value) for name, value in found.items()}


def strata(config: Config) -> Arrays:
    """tr Σ and ‖ḡ‖² along the runs; along the last, variances of stratified batches over simple random ones."""
    start_key, run_key = jax.random.split(config.key())
    digits = problems.digits_mlp(key=start_key, hidden=config.hidden).take(slice(config.num_examples))
    design, points = designs.WithReplacement(config.num_strata), range(len(config.points))
    several = {"learning_rates": config.learning_rates, "keep_params_at": config.points, "gradient": "plain"}
    kept = training.run_sgd(*digits, optax.sgd, design, config.points[-1], run_key, **several).kept_params
    measure, labels = jaxsgd.per_example_gradients(digits.loss_fn), np.asarray(digits.data["y"], int)
    moments, ratios, made = [], [], []
    for run, point in progress(list(itertools.product(range(len(config.learning_rates)), points)), "points"):
        rows = _gradient_strata.rows_of(
            measure(jax.tree.map(lambda leaf, at=(run, point): leaf[at], kept), digits.data)
        )
        moments.append([rows.var(axis=0).sum(), np.sum(rows.mean(axis=0) ** 2)])
        if run == len(config.learning_rates) - 1:
            made.append(_gradient_strata.stratified(rows, labels, config.num_strata, config.seed))
            ratios.append(_gradient_strata.ratios(rows, (*made[-1], made[0][-1])))
    few = _gradient_strata.stratified(rows[:FEW], labels[:FEW], FEW // 4, config.seed)
    return {
        "strata/points": np.array(config.points),
        "strata/moments": np.reshape(moments, (-1, len(points), 2)),
        "strata/ratio": np.array(ratios),
        "strata/few": np.array(_gradient_strata.ratios(rows[:FEW], few)),
        "strata/few by the library": np.array(_gradient_strata.by_the_library(rows[:FEW], few)),
    }


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
    """The exponents proved, below the bound, which one shuffle attains; a lead over independent examples that grows."""
    library, ours = results["rates/six by the library"], results["rates/six"]
    claims.equal(
        ours, library, "errors for six examples must be those of the library's laws, got {}", rtol=1e-10, atol=0
    )
    found, off = exponents(results), []
    for name, (_, _, published, _) in EXPONENTS.items():
        off.append(np.abs(np.subtract(found[name], published)))
        claims.equal(found[name], published, f"exponents, {name}, must be {published}, got {{}}", atol=TOLERANCE)
    independent, once, reshuffled, bound = (results[f"rates/along/{name}"] for name in (*WAYS, "bound"))
    claims.below(
        [once / bound, reshuffled / bound], 1, "errors must be below the bound for shuffling, got {:.3f} of it"
    )
    steady = np.max(once / bound) / np.min(once / bound)
    claims.below(steady, 1.05, "one shuffle must have the rate of the bound, got a factor of {:.2f} between epochs")
    left = (reshuffled / bound)[-1] / (reshuffled / bound)[0]
    claims.below(left, 0.1, "that reshuffling has no better rate than the bound must be rejected, got {:.2f}")
    lead = independent / np.maximum(once, reshuffled)
    claims.above(lead, 1, "shuffling must be better than independent examples, got {:.2f} times")
    claims.above(lead[-1] / lead[0], 100, "that it leads by a constant factor must be rejected, got {:.1f} times")
    claims |= {"worst_exponent": np.max(off), "share_of_bound": np.max(once / bound), "exponents_of_n_and_K": found}


def check_momentum(claims: Claims, results: Arrays) -> None:
    """Nothing at small batches, a larger critical batch size, the published stationary risk."""
    steps, sizes = results["momentum/steps"], results["momentum/sizes"]
    claims.require(results["momentum/is_inside"].all(), "the best learning rate must lie inside those tried")
    for name in ("stationary risk", "after 7 steps"):
        first, second = results[f"momentum/{name}"]
        claims.equal(first, second, f"{name}: must be {second} by the library's law, got {{}}", rtol=1e-12, atol=0)
    fewest = steps.min(axis=0)
    early = np.minimum(fewest, LIMIT) / results["momentum/one by one"]
    claims.above(early, 1 - 1e-12, "one by one it must not take more steps to the target, got {:.3f} times as many")
    claims.below(early, 1.01, "one by one it must take nearly as many steps to the target, got {:.3f} times as many")
    faster = steps[0] / fewest
    claims.below(faster[0], 1.01, "at B = 1 momentum must save less than 1% of the steps, got a factor of {:.3f}")
    plain, tuned = (fit_tradeoff(sizes, of_steps).critical_batch_size for of_steps in (steps[0], fewest))
    claims.above(
        tuned / plain, 2, "momentum must raise the critical batch size, got {:.1f} times", enter="critical_ratio"
    )
    claims.above(faster[-1], 3, "that momentum does little for large batches must be rejected, got {:.2f} times fewer")
    claims |= {"saved_at_one": 1 - 1 / faster[0], "fewer_steps_at_most": faster.max()}
    claims |= {"critical_batch_sizes": [plain, tuned], "best_momenta": results["momentum/betas"][steps.argmin(axis=0)]}


def check_strata(claims: Claims, results: Arrays) -> None:
    """Clusters weighted as is proved leave least; along a run the variance falls, and its ratio to ‖ḡ‖² rises."""
    few = results["strata/few by the library"]
    claims.equal(
        results["strata/few"], few, "variances for few examples must be {}, as the library's", rtol=1e-8, atol=0
    )
    by_class, k_means, clusters, kept = results["strata/ratio"].T
    claims.below(clusters / np.minimum(by_class, k_means), 1, "clusters must leave least variance, got {:.3f} times")
    claims.below(clusters, 0.5, "that clusters are no better than random samples must be rejected, got {:.2f}")
    claims.above(kept[-1] / clusters[-1], 1.5, "clusters of the start must be worse at the end, got {:.2f} times")
    claims["left_by"] = {
        name: [row.min(), row.max()] for name, row in zip(STRATA, results["strata/ratio"].T, strict=True)
    }
    trace, norm = np.moveaxis(results["strata/moments"], -1, 0)
    grown, normalized = trace[:, -1] / trace[:, 0], (trace / norm)[:, -1] / (trace / norm)[:, 0]
    claims.below(grown, 0.9, "that tr Σ rises along a run must be rejected here, got {:.2f} times")
    claims.above(normalized, 2, "tr Σ/‖ḡ‖² must rise along a run, got {:.1f} times")
    claims.above(trace[0, 1:] / trace[-1, 1:], 1, "a smaller learning rate must have more variance, got {:.2f} times")
    claims |= {"growth_of_trace": grown, "growth_of_trace_over_squared_norm": normalized}


def enter_cases(claims: Claims, results: Arrays) -> None:  # noqa: ARG001
    """What was published, what is found here, and what was changed; by case."""
    claims["cases"] = _published.cases(claims)


def draw(results: Arrays) -> Figure:
    """Errors along K, exponents beside those proved, steps to the target, variances along a run."""
    return page_of(results, draw_errors, draw_exponents, draw_steps, draw_strata, nrows=2, ratio=0.62)


def draw_errors(axes: Any, results: Arrays) -> None:
    """E δ² along the epochs, and the bound on shuffling."""
    K = results["rates/along/epochs"]
    n = round(np.exp(results["rates/along/log"][0]) / K[0])
    series(axes, K, {way: results[f"rates/along/{way}"] for way in WAYS})
    axes.plot(K, results["rates/along/bound"], color="gray", linestyle=DASHED, label="bound on shuffling")
    labels = {"x": "epochs $K$", "y": r"$\mathbb{E}\,\delta^2$"}
    panel(axes, f"quadratics, $n={n}$", **labels, log="xy", legend="upper right", ylim=(1e-17, 1e5))


def draw_exponents(axes: Any, results: Arrays) -> None:
    """A row for each law: a bar where the exponent that is proved is, a point where ours is."""
    found = exponents(results)
    rows = [(name, axis, k) for name in EXPONENTS for k, axis in enumerate("nK")]
    for place, (name, _, k) in enumerate(rows):
        published, ours = EXPONENTS[name][2][k], found[name][k]
        axes.plot([published, published], [place - 0.35, place + 0.35], color="black", linewidth=2, alpha=0.5)
        axes.plot(ours, place, **mark(k, line="none"))
    axes.set_yticks(range(len(rows)), [f"{name}, ${axis}$" for name, axis, _ in rows])
    axes.invert_yaxis()
    panel(
        axes, "exponents: bars proved, points ours", x="exponent of the error", xlim=(-3.4, -0.6), xticks=[-3, -2, -1]
    )


def draw_steps(axes: Any, results: Arrays) -> None:
    """Steps to the target against the batch size."""
    steps, sizes = results["momentum/steps"], results["momentum/sizes"]
    series(axes, sizes, {"SGD": steps[0], "tuned momentum": steps.min(axis=0)})
    axes.plot(sizes, steps[0, 0] / sizes, color="gray", linestyle=DASHED, label="$\\propto 1/B$")
    limits = {"ylim": (steps.min() / 3, 2 * steps.max())}
    panel(
        axes, "noisy quadratic", x="batch size $B$", y="steps to the target", log="xy", legend="upper right", **limits
    )


def draw_strata(axes: Any, results: Arrays) -> None:
    """Variances over those of simple random sampling."""
    series(axes, 1 + results["strata/points"], dict(zip(STRATA, results["strata/ratio"].T, strict=True)))
    reference(axes, y=1)
    y = "variance $\\div$ at random"
    panel(axes, "digits, stratified batches", x="1 + step", y=y, log="xy", legend="upper left", ylim=(0.03, 20))
