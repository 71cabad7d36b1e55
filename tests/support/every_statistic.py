"""Every public function of gradients, called once on one problem: by its name, with the power of gradients it has.

Tests that hold all of them to something go through this table: gradients of any scale, large means, sizes. A name is
that of the function, and after a space which of its ways is taken. ``NOT_OF_GRADIENTS`` has the other public names.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxsgd
from jaxsgd import (
    batch_size,
    designs,
    estimators,
    kernels,
    model_agnostic,
    moments,
    monitors,
    noise,
    signal_to_noise,
    surfaces,
    tails,
    variance_reduction,
)

KEY = jax.random.key(0)
HUGE = 10**11
Loss = Callable[[Any, Any], Any]


class Given:
    """A problem, and what is made of it once."""

    def __init__(self, loss_fn: Loss, params: Any, data: Any) -> None:
        self.loss_fn, self.params, self.data = loss_fn, params, data
        self.n = len(jax.tree.leaves(data)[0])
        self.dtype = jax.tree.leaves(params)[0].dtype
        self.ones, self.strata = jnp.ones(self.n, self.dtype), np.arange(self.n) % 7
        self.metric = jax.tree.map(lambda leaf: 1 + jnp.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape), params)

    def gradients(self, factor: float = 1.0) -> Any:
        params = jax.tree.map(lambda leaf: leaf * factor, self.params)
        return jaxsgd.per_example_gradients(self.loss_fn)(params, self.data)

    @cached_property
    def g(self) -> Any:
        return self.gradients()

    @cached_property
    def h(self) -> Any:
        """Half of these, and not the same half of each."""
        return self.g.scaled(jnp.asarray(0.5 + 0.25 * (np.arange(self.n) % 2), self.dtype))

    @cached_property
    def m(self) -> Any:
        return jaxsgd.gradient_moments(self.loss_fn, self.params, self.data, per_coordinate=True)

    def some(self, rows: slice) -> Any:
        return jax.tree.map(lambda leaf: leaf[rows], self.data)

    def batch_loss(self, params: Any, batch: Any) -> Any:
        return jax.vmap(self.loss_fn, (None, 0))(params, batch).mean()


class Statistic(NamedTuple):
    """A call; its results are the gradients to a power, by which they are told apart.

    Attributes:
        call: a function of the problem.
        max_count: of how many examples at most, where a matrix of all pairs is held or every batch gone through.
        draws: its random numbers are others in another dtype: (estimate, standard error), and no number of its own.
    """

    call: Callable[[Given], dict[int, Any]]
    max_count: int = 10**9
    draws: bool = False


def _noise_scale(s: Any) -> dict[int, Any]:
    return {0: (s.value, s.low, s.high), 2: (s.trace_covariance, s.squared_mean_norm), 4: s.covariance[1, 1]}


def _estimate(e: Any) -> dict[int, Any]:
    return {1: e.mean, 2: (e.variance, e.standard_error)}


def _merged(c: Given) -> Any:
    third = c.n // 3
    return moments.merge(
        *(jaxsgd.gradient_moments(c.loss_fn, c.params, c.some(s)) for s in (slice(third), slice(third, None)))
    )


def _two_batches(c: Given) -> dict[int, Any]:
    means = (c.g.take(slice(c.n // 2)).mean(), c.g.mean())
    found = noise.two_batch_noise_scale(*means, small_size=c.n // 2, big_size=c.n, population_size=HUGE)
    return {2: found.squared_mean_norm}


def _monte_carlo(c: Given, design: Any, num_draws: int = 64, first: int = 0) -> Any:
    return estimators.monte_carlo(design, c.g, key=KEY, num_draws=num_draws, first_draw=first)


def _merged_draws(c: Given) -> dict[int, Any]:
    design = designs.WithoutReplacement(c.n // 4)
    return _estimate(estimators.merge(_monte_carlo(c, design, 16), _monte_carlo(c, design, 8, 16)))


def _curve(c: Given, design: Any) -> dict[int, Any]:
    sizes = [1, 3, c.n // 2]
    found = estimators.monte_carlo_curve(c.g, sizes, key=KEY, num_draws=8, design=design)
    return {2: (found.variance, found.standard_error)}


def _law(c: Given) -> dict[int, Any]:
    found = estimators.squared_error_law(c.g, [1, 3, c.n // 2])
    return {2: found.mean, 4: (found.variance, found.squared_covariance)}


def _batch_loss(c: Given) -> dict[int, Any]:
    found = estimators.batch_loss_gradient(
        c.batch_loss, c.params, c.data, designs.WithoutReplacement(5), key=KEY, num_draws=16
    )
    return {1: (found.mean, found.mean_standard_error), 2: (found.variance, found.standard_error)}


def _random_signs(c: Given) -> dict[int, Any]:
    found = model_agnostic.random_sign_moments(c.loss_fn, c.params, c.data, key=KEY, num_draws=16)
    return {2: (found.trace_covariance, found.trace_standard_error)}


def _sizes_of_variance(c: Given) -> dict[int, Any]:
    laws = [designs.WithoutReplacement(5), designs.Blocks(2), designs.Stratified(c.strata, [2] * 7)]
    found = estimators.compare(laws, c.g)
    return {2: found.variance, 0: found.design_effect}


def _probabilities(c: Given) -> tuple[Any, Any]:
    """Of c.n examples out of twice as many, without replacement; in float64, as large means multiply what they lack."""
    joint = c.n * (c.n - 1) / (2 * c.n * (2 * c.n - 1))
    return np.full(c.n, 0.5), np.full((c.n, c.n), joint)


def _estimator(make: Any) -> Callable[[Given], dict[int, Any]]:
    def call(c: Given) -> dict[int, Any]:
        estimator = make(c)
        state = estimator.init(KEY, jax.tree.map(lambda leaf: leaf * 0.5, c.params), c.data)
        v, state = estimator.estimate(c.params, state, c.data)
        return {1: v, 2: estimator.law(c.params, state, c.data).variance}

    return call


def _monitor(make: Any, *names: str) -> Callable[[Given], dict[int, Any]]:
    def call(c: Given) -> dict[int, Any]:
        optimizer = make()
        _, state = optimizer.update(c.g.mean(), optimizer.init(c.params), c.params, terms=monitors.Terms(c.g), step=0)
        readings = monitors.readings(state)
        return {0: [readings[name] for name in names]}

    return call


def _tests(t: Any) -> dict[int, Any]:
    return {0: (t.norm, t.inner_product, t.unbiased_norm, t.unbiased_inner_product)}


def _curvature(c: Given) -> dict[int, Any]:
    law = noise.hessian_noise_scale(c.loss_fn, c.params, c.data)
    return {0: law.value, 3: (law.gradient_curvature, law.noise_curvature)}


def _check(c: Given) -> dict[int, Any]:
    assert jaxsgd.check_per_example(c.loss_fn, c.params, c.data).passed
    return {}


def _additivity(c: Given) -> dict[int, Any]:
    assert jaxsgd.check_additivity(c.batch_loss, c.params, c.some(slice(8))).unbiased
    return {}


def _accumulation(c: Given) -> dict[int, Any]:
    def step(params: Any, batch: Any) -> Any:
        parts = [jax.tree.map(lambda leaf, s=s: leaf[s], batch) for s in (slice(4), slice(4, 8))]
        return jax.tree.map(lambda a, b: (a + b) / 2, *(jax.grad(c.batch_loss)(params, part) for part in parts))

    assert jaxsgd.check_accumulation(step, c.batch_loss, c.params, c.some(slice(8)), num_microbatches=2).passed
    return {}


EVERY: dict[str, Statistic] = {
    "PerExampleGradients.mean": Statistic(lambda c: {1: c.g.mean()}),
    "PerExampleGradients.precise_mean": Statistic(lambda c: {1: c.g.precise_mean()}),
    "PerExampleGradients.squared_norms": Statistic(lambda c: {2: c.g.squared_norms()}),
    "PerExampleGradients.squared_deviations": Statistic(lambda c: {2: c.g.squared_deviations()}),
    "PerExampleGradients.inner_products": Statistic(lambda c: {1: c.g.inner_products(c.params)}),
    "PerExampleGradients.centered_products": Statistic(lambda c: {1: c.g.centered_products(c.params)}),
    "PerExampleGradients.weighted_sum": Statistic(lambda c: {1: c.g.weighted_sum(c.ones)}),
    "PerExampleGradients.scaled": Statistic(lambda c: {2: c.h.total_deviation()}),
    "PerExampleGradients.times": Statistic(lambda c: {2: c.g.times(0.5).total_deviation()}),
    "PerExampleGradients.minus": Statistic(lambda c: {2: c.g.minus(c.h).squared_norms()}),
    "PerExampleGradients.stretched": Statistic(lambda c: {2: c.g.stretched(c.metric).squared_deviations()}),
    "PerExampleGradients.in_metric": Statistic(lambda c: {2: c.g.in_metric(c.metric).total_deviation()}),
    "PerExampleGradients.second_moment": Statistic(lambda c: {2: c.g.second_moment()}),
    "PerExampleGradients.total_deviation": Statistic(lambda c: {2: c.g.total_deviation()}),
    "PerExampleGradients.weighted_deviation": Statistic(lambda c: {2: c.g.weighted_deviation(c.ones)}),
    "PerExampleGradients.variance": Statistic(lambda c: {2: c.g.variance(ddof=1)}),
    "PerExampleGradients.gram": Statistic(lambda c: {2: c.g.gram()}, 2048),
    "PerExampleGradients.centered_gram": Statistic(lambda c: {2: c.g.centered_gram()}, 2048),
    "PerExampleGradients.materialize": Statistic(lambda c: {1: c.g.materialize()}),
    "PerExampleGradients.only": Statistic(lambda c: {2: c.g.only(lambda path: True).squared_norms()}),
    "PerExampleGradients.take": Statistic(lambda c: {2: c.g.take(np.arange(5)).squared_norms()}),
    "kernels.centered_gram": Statistic(lambda c: {2: kernels.centered_gram(c.g)}, 2048),
    "kernels.require_finite": Statistic(lambda c: kernels.require_finite(c.g) or {}),
    "moments.gradient_moments": Statistic(lambda c: {1: c.m.mean, 2: (c.m.trace_covariance(), c.m.variance())}),
    "moments.gradient_moments in chunks": Statistic(
        lambda c: {
            2: jaxsgd.gradient_moments(c.loss_fn, c.params, c.data, chunk_size=c.n // 3 + 1).trace_covariance(ddof=1)
        }
    ),
    "moments.of": Statistic(lambda c: {2: moments.of(c.g).squared_norms_mean}),
    "moments.merge": Statistic(lambda c: {2: _merged(c).trace_covariance()}),
    "noise.noise_scale": Statistic(lambda c: _noise_scale(noise.noise_scale(c.g))),
    "noise.noise_scale fieller": Statistic(
        lambda c: _noise_scale(noise.noise_scale(c.g, population_size=10 * c.n, interval="fieller"))
    ),
    "noise.noise_scale jackknife": Statistic(lambda c: _noise_scale(noise.noise_scale(c.g, interval="jackknife"))),
    "noise.noise_scale in a metric": Statistic(lambda c: _noise_scale(noise.noise_scale(c.g, metric=c.metric))),
    "noise.noise_scale of all": Statistic(lambda c: {0: noise.noise_scale(c.g, population_size=c.n).value}),
    "noise.noise_scale of moments": Statistic(lambda c: {0: noise.noise_scale(c.m, population_size=HUGE).value}),
    "noise.noise_scale_law": Statistic(
        lambda c: (lambda law: {0: law.variance, 2: law.squared_mean_norm})(noise.noise_scale_law(c.g, c.n // 2))
    ),
    "noise.two_batch_noise_scale": Statistic(_two_batches),
    "noise.hessian_noise_scale": Statistic(_curvature),
    "noise.mean_fourth_power": Statistic(
        lambda c: (
            kernels.require_finite(c.g) or {0: noise.mean_fourth_power(noise.pair_sums(c.g, kernels.unit(c.g)))[1]}
        )
    ),
    "batch_size.gradient_tests": Statistic(lambda c: _tests(batch_size.gradient_tests(c.g))),
    "batch_size.cabs_batch_size": Statistic(
        lambda c: {1: batch_size.cabs_batch_size(c.m.trace_covariance(), c.m.mean_loss, 0.1)}
    ),
    "signal_to_noise.coordinate_snr": Statistic(
        lambda c: {0: signal_to_noise.coordinate_snr(c.g, population_size=HUGE)}
    ),
    "signal_to_noise.early_stopping_evidence": Statistic(
        lambda c: {0: signal_to_noise.early_stopping_evidence(c.m)}, 2048
    ),
    "estimators.exact": Statistic(lambda c: _estimate(estimators.exact(designs.WithoutReplacement(c.n // 2), c.g))),
    "estimators.exact stratified": Statistic(
        lambda c: _estimate(estimators.exact(designs.Stratified(c.strata, [2] * 7), c.g))
    ),
    "estimators.exact groups": Statistic(lambda c: _estimate(estimators.exact(designs.Blocks(2), c.g))),
    "estimators.exact windows": Statistic(lambda c: _estimate(estimators.exact(designs.CircularBlocks(c.n // 4), c.g))),
    "estimators.exact diagonal": Statistic(
        lambda c: _estimate(estimators.exact(designs.Importance(np.full(c.n, 1 / c.n), 4), c.g))
    ),
    "estimators.exact matrix": Statistic(
        lambda c: _estimate(estimators.exact(designs.ConditionalPoisson(np.linspace(1, 2, c.n), 5), c.g)), 300
    ),
    "estimators.enumerate_batches": Statistic(
        lambda c: _estimate(estimators.enumerate_batches(designs.Blocks(c.n // 2), c.g))
    ),
    "estimators.descent_probability": Statistic(
        lambda c: {0: float(estimators.descent_probability(designs.Blocks(c.n // 2), c.g))}
    ),
    "estimators.monte_carlo": Statistic(lambda c: _estimate(_monte_carlo(c, designs.WithoutReplacement(c.n // 4)))),
    "estimators.merge": Statistic(_merged_draws),
    "estimators.monte_carlo_curve": Statistic(lambda c: _curve(c, "without_replacement")),
    "estimators.variance_curve": Statistic(lambda c: {2: estimators.variance_curve(c.m, [1, 3, c.n // 2]).variance}),
    "estimators.variance_curve metric": Statistic(
        lambda c: {2: estimators.variance_curve(c.m, [3], metric=c.metric).variance}
    ),
    "estimators.squared_error_law": Statistic(_law),
    "estimators.batch_loss_gradient": Statistic(_batch_loss),
    "estimators.compare": Statistic(_sizes_of_variance),
    "estimators.design_effect": Statistic(lambda c: {0: estimators.design_effect(designs.Blocks(2), c.g)}),
    "estimators.optimal_probabilities": Statistic(lambda c: {0: estimators.optimal_probabilities(c.g)}),
    "estimators.stratum_deviations": Statistic(lambda c: {1: estimators.stratum_deviations(c.g, c.strata)}),
    "estimators.with_replacement_variance": Statistic(lambda c: {2: estimators.with_replacement_variance(c.g)}),
    "estimators.without_replacement_variance": Statistic(
        lambda c: {2: estimators.without_replacement_variance(c.g, population_size=HUGE)}
    ),
    "estimators.horvitz_thompson_variance": Statistic(
        lambda c: {
            2: estimators.horvitz_thompson_variance(c.g, *_probabilities(c), population_size=2 * c.n),
        },
        2048,
    ),
    "estimators.sen_yates_grundy_variance": Statistic(
        lambda c: {2: estimators.sen_yates_grundy_variance(c.g, *_probabilities(c), population_size=2 * c.n)}, 2048
    ),
    "estimators.without_replacement_central_moments": Statistic(
        lambda c: (lambda found: {3: found.third, 4: found.fourth})(
            estimators.without_replacement_central_moments(c.g, batch_size=c.n // 3)
        )
    ),
    "model_agnostic.random_sign_moments": Statistic(_random_signs, draws=True),
    "model_agnostic.inner_products": Statistic(
        lambda c: {1: model_agnostic.inner_products(c.loss_fn, c.params, c.data, c.params)}
    ),
    "surfaces.principal_directions": Statistic(lambda c: {2: surfaces.principal_directions(c.g, count=1).variances}),
    "surfaces.losses_along": Statistic(
        lambda c: {
            1: surfaces.losses_along(
                c.loss_fn, c.params, c.data, jax.tree.map(lambda leaf: leaf[None], c.params), jnp.ones((2, 1), c.dtype)
            )
        }
    ),
    "variance_reduction.exact": Statistic(
        lambda c: _estimate(variance_reduction.exact(designs.WithoutReplacement(5), c.g, c.h))
    ),
    "variance_reduction.optimal_coefficient": Statistic(
        lambda c: {0: variance_reduction.optimal_coefficient(designs.WithoutReplacement(5), c.g, c.h).value}
    ),
    "variance_reduction.SVRG": Statistic(
        _estimator(lambda c: variance_reduction.SVRG(c.loss_fn, designs.WithoutReplacement(5), 10))
    ),
    "variance_reduction.SAGA": Statistic(
        _estimator(lambda c: variance_reduction.SAGA(c.loss_fn, designs.WithoutReplacement(5)))
    ),
    "variance_reduction.SAG": Statistic(
        _estimator(lambda c: variance_reduction.SAG(c.loss_fn, designs.WithoutReplacement(5)))
    ),
    "tails.stable_index": Statistic(
        lambda c: {0: tails.stable_index(c.g.inner_products(c.params)[: c.n // 4 * 4], block_size=4)}
    ),
    "tails.hill_index": Statistic(
        lambda c: {0: tails.hill_index(jnp.abs(c.g.inner_products(c.params)), num_largest=5)}
    ),
    "monitors.noise_scale": Statistic(_monitor(lambda: monitors.noise_scale(centered=True), "noise_scale")),
    "monitors.gradient_snr": Statistic(_monitor(monitors.gradient_snr, "gradient_snr")),
    "monitors.gradient_tests": Statistic(
        _monitor(monitors.gradient_tests, "norm_statistic", "orthogonality_statistic")
    ),
    "checks.check_per_example": Statistic(_check),
    "additivity.check_additivity": Statistic(_additivity),
    "additivity.check_accumulation": Statistic(_accumulation),
}

_OF_RUNS = ["steps_to_target", "fit_tradeoff", "measure_critical", "branched_critical"]
NOT_OF_GRADIENTS = {
    "PerExampleGradients.losses": "the losses",
    "kernels.per_example_gradients": "in every call",
    "kernels.trace_batch": "in every call",
    "kernels.unit": "of gradients that were found to be finite",
    "noise.variance_factor": "of two sizes",
    "noise.pair_sums": "in the call of noise.mean_fourth_power",
    "noise.optimizer_metric": "of the state of an optimizer",
    "noise.sign_metric": "of variances that are given",
    "noise.expected_sign": "of means and variances that are given",
    **dict.fromkeys([f"batch_size.{name}" for name in _OF_RUNS], "of runs, or their curves"),
    "estimators.enumerate_data_sets": "of rational numbers",
    "estimators.population_factors": "of a design",
    "tails.kesten_index": "of curvatures",
    "monitors.noise_moments": "of three sums, whose difference it is",
    **dict.fromkeys(["monitors.full_gradient_cosine", "monitors.two_batch_noise_scale"], "of gradients of a run"),
}
_SIZES = ["batch_size.adascale_gain", "batch_size.critical_batch_size", "batch_size.relative_cost"]
NOT_OF_GRADIENTS |= dict.fromkeys(_SIZES, "of a noise scale that is given")
_OTHERS = ["PerExampleGradients.explain", "kernels.is_cheaply_factored", "kernels.with_keys"]
_OTHERS += [f"monitors.{name}" for name in ("observe", "observed", "readings")]
NOT_OF_GRADIENTS |= dict.fromkeys(_OTHERS, "makes or describes, and computes no statistic")
MODULES = ["kernels", "moments", "noise", "batch_size", "signal_to_noise", "estimators", "model_agnostic", "surfaces"]
MODULES += ["variance_reduction", "tails", "monitors", "checks", "additivity"]
MODULES_WITHOUT_GRADIENTS = {"sweeps": "runs", "training": "runs", "tracking": "files", "shell": "signals"}
MODULES_WITHOUT_GRADIENTS |= {"problems": "losses and data", "sources": "data", "designs": "laws on the weights"}
MODULES_WITHOUT_GRADIENTS |= {"batch_losses": "losses", "exchange": "derivatives and integrals of functions"}
MODULES_WITHOUT_GRADIENTS |= {"dynamics": "of curvatures and noises that are given", "report": "of what others find"}
MODULES_WITHOUT_GRADIENTS |= {"noise_scale": "noise by another name"}


def public_modules() -> set[str]:
    return {m.name for m in pkgutil.iter_modules(jaxsgd.__path__) if not m.name.startswith("_")}


def public_functions() -> set[str]:
    """The public functions of the modules that meet gradients, the statistics of gradients, and the estimators."""
    found = set()
    for module in MODULES:
        face = importlib.import_module(f"jaxsgd.{module}")
        found |= {f"{module}.{name}" for name in face.__all__ if _is_function(getattr(face, name))}
    methods = {name for name, each in vars(kernels.PerExampleGradients).items() if callable(each) and name[0] != "_"}
    estimators_to_train_with = {f"variance_reduction.{name}" for name in ("SVRG", "SAGA", "SAG")}
    return found | {f"PerExampleGradients.{name}" for name in methods} | estimators_to_train_with


def _is_function(value: Any) -> bool:
    return inspect.isfunction(value) or isinstance(value, jax.stages.Wrapped)
