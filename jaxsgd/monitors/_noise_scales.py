"""Monitors of the noise scale, of all parameters or of groups of them, with what is known of their errors."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from jaxsgd._core import sums, validate
from jaxsgd._core.groups import By, named
from jaxsgd.monitors import _series
from jaxsgd.monitors._terms import Where, batch_noise, chosen_leaves, group_noise, groups_of
from jaxsgd.monitors._transformation import MonitorState, Statistic, as_transformation, terms_of

_SUMS = ("trace_covariance", "squared_mean_norm")


@dataclass(frozen=True, kw_only=True)
class _NoiseScale(Statistic):
    centered: bool
    by: Any
    population_size: int | None
    confidence_level: float
    function = "noise_scale"
    sums = _SUMS

    def __post_init__(self) -> None:
        super().__post_init__()
        validate.fraction(confidence_level=self.confidence_level)
        if self.population_size is not None:
            validate.positive_integer(population_size=self.population_size)

    def zeros(self, params: PyTree) -> dict[str, Any]:
        groups = self.groups(jax.tree.structure(params))
        zeros = super().zeros(params)
        return {name: jnp.zeros(1 + len(groups), zero.dtype) for name, zero in zeros.items()} if groups else zeros

    def series(self, params: PyTree) -> _series.Series:
        dtype = sums.accumulation_dtype(*jax.tree.leaves(params))
        return _series.empty(dtype, tuple(self.groups(jax.tree.structure(params))))

    def groups(self, structure: Any) -> dict[str, list[str]]:
        """The paths of the parameters of each group, of those that are looked at."""
        if self.by is None:
            return {}
        looked_at = self.where or (lambda _: True)
        found = {name: [path for path in paths if looked_at(path)] for name, paths in named(self.by, structure).items()}
        return {name: paths for name, paths in found.items() if paths}

    def measure(self, updates: PyTree, extra: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        if self.population_size is not None and extra.get("group_gradients") is None:
            count = terms_of(extra).gradients.count
            validate.at_most(self.population_size, "population_size,", **{"the number of examples": count})
        S, G = self.noise(extra) if self.by is None else self.noise_of_groups(extra)
        share = 0.0 if self.population_size is None else 1 / self.population_size
        return dict(zip(self.sums, ((1 - share) * S, G + share * S), strict=True))

    def noise(self, extra: Mapping[str, Any]) -> tuple[Array, Array]:
        """Unbiased estimates of tr Σ and ‖ḡ‖² in an infinite population."""
        terms = self.terms(extra)
        return batch_noise(self.gradient(terms, extra), terms, centered=self.centered)

    def noise_of_groups(self, extra: Mapping[str, Any]) -> tuple[Array, Array]:
        """Those of all parameters, which are sums, and then of each group."""
        groups, looked_at = self.groups(self.structure(extra)), self.where or (lambda _: True)
        grouped = {path for paths in groups.values() for path in paths}
        parts: list[Where] = [set(paths).__contains__ for paths in groups.values()]
        others: Where = lambda path: looked_at(path) and path not in grouped  # noqa: E731
        if any(map(others, _paths(self.structure(extra)))):
            parts.append(others)
        if extra.get("group_gradients") is None:
            extra = {**extra, "terms": terms_of(extra)}
        found = [replace(self, by=None, where=part).noise(extra) for part in parts]
        S, G = (jnp.stack([sums.total(each), *each[: len(groups)]]) for each in zip(*found, strict=True))
        return S, G

    def structure(self, extra: Mapping[str, Any]) -> Any:
        """That of the parameters."""
        given = extra.get("group_gradients")
        if given is not None:
            return jax.tree.structure(given)
        gradients = terms_of(extra).gradients
        if not gradients.factors:
            raise ValueError("by must be None where gradients are computed anew, with a memory_limit")
        return gradients.structure

    def follow(self, state: MonitorState, fresh: Mapping[str, Any]) -> Any:
        totals, measured = _pairs(state.totals), _pairs(fresh)
        averages = totals / jnp.where(state.weight > 0, state.weight, 1).astype(totals.dtype)

        def after(series: _series.Series, averages: Array, measured: Array) -> _series.Series:
            return _series.after(series, state.weight, averages, measured.astype(averages.dtype), self.decay)

        return (jax.vmap(after) if state.series.groups else after)(state.series, averages, measured)

    def read(self, state: MonitorState) -> dict[str, Array]:
        def ends(series: _series.Series, averages: Array) -> tuple[Array, ...]:
            return _series.interval(series, state.weight, averages, self.decay, self.confidence_level)

        groups = state.series.groups
        S, G = (state.averages[name] for name in self.sums)
        low, high, number = (jax.vmap(ends) if groups else ends)(state.series, _pairs(state.averages))
        found = {"noise_scale": S / G, "trace_covariance": S, "squared_mean_norm": G}
        found |= {"noise_scale_low": low, "noise_scale_high": high, "num_effective": number}
        if not groups:
            return found
        prefixes = ["", *(f"{group}/" for group in groups)]
        return {prefix + name: value[i] for i, prefix in enumerate(prefixes) for name, value in found.items()}


def _pairs(values: Mapping[str, Array]) -> Array:
    """Estimates of ‖ḡ‖² and tr Σ, along the last axis."""
    return jnp.stack([values["squared_mean_norm"], values["trace_covariance"]], axis=-1)


def _paths(structure: Any) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(structure.unflatten(range(structure.num_leaves)))
    return [jax.tree_util.keystr(path) for path, _ in leaves]


def noise_scale(
    *,
    every: int = 1,
    decay: float = 0.95,
    where: Where | None = None,
    name: str = "",
    centered: bool = False,
    by: By | None = None,
    population_size: int | None = None,
    confidence_level: float = 0.95,
) -> optax.GradientTransformationExtraArgs:
    """The gradient noise scale B = tr Σ/‖ḡ‖² along a run, from per-example gradients, with an interval.

    From the norms of the m terms of a batch, S = (Σ‖h_j‖² − m‖ĝ‖²)/(m − 1) and G = ‖ĝ‖² − S/m are unbiased for tr Σ and
    ‖ḡ‖² if examples are drawn independently. A batch of fewer than two is left out. What the interval is for, and which
    batches make it fail, is said in :mod:`jaxsgd.monitors`.

    Args:
        every: measure at steps that it divides.
        decay: of the weights of former measurements; 0 keeps the last one only. Intervals need more than 1/3.
        where: which parameters to look at, a function of their path such as ``"['norm']['scale']"``.
        name: a prefix of what is read.
        centered: subtract the mean before squaring. Without it, S has a relative rounding error of 1 + 1/B times that
            of a sum, and the cost is that of the norms alone.
        by: groups of parameters that are read too, as that of :func:`jaxsgd.noise_scale`, under ``"<group>/…"``.
        population_size: N, if batches are without replacement. Otherwise S is that of tr S², and G of ‖ḡ‖² − tr S²/N.
        confidence_level: with what probability the interval holds B.

    References:
        S. McCandlish, J. Kaplan, D. Amodei et al., arXiv:1812.06162, 2018.

    >>> from jaxsgd import monitors, per_example_gradients, problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> g = per_example_gradients(loss_fn)(params, data)
    >>> optimizer = optax.chain(noise_scale(), optax.sgd(0.1))
    >>> updates, state = optimizer.update(g.mean(), optimizer.init(params), params, per_example_gradients=g)
    >>> found = monitors.readings(state)
    >>> [round(float(found[name]), 3) for name in ("noise_scale", "noise_scale_low", "num_effective")]
    [-5.25, 0.0, 1.0]
    """
    return as_transformation(
        _NoiseScale(
            every=every,
            decay=decay,
            where=where,
            name=name,
            centered=centered,
            by=tuple(by) if isinstance(by, list) else by,
            population_size=population_size,
            confidence_level=confidence_level,
        )
    )


@dataclass(frozen=True, kw_only=True)
class _TwoBatch(_NoiseScale):
    num_groups: int
    group_size: int | None
    function = "two_batch_noise_scale"
    needs = (*Statistic.needs, "group_gradients")

    def __post_init__(self) -> None:
        super().__post_init__()
        validate.at_least(2, num_groups=self.num_groups)
        if self.group_size is not None:
            validate.positive_integer(group_size=self.group_size)

    def noise(self, extra: Mapping[str, Any]) -> tuple[Array, Array]:
        given, size = extra.get("group_gradients"), self.group_size
        if given is not None:
            if size is None:
                raise ValueError("group_size must be given to two_batch_noise_scale with group_gradients")
            groups: Any = chosen_leaves(given, self.where)
        else:
            terms = self.terms(extra)
            groups, size = groups_of(terms, self.num_groups), terms.gradients.count // self.num_groups
        S, G, _ = group_noise(groups, size)
        return S, G


def two_batch_noise_scale(
    *,
    num_groups: int = 2,
    group_size: int | None = None,
    every: int = 1,
    decay: float = 0.95,
    where: Where | None = None,
    name: str = "two_batch",
    by: By | None = None,
    population_size: int | None = None,
    confidence_level: float = 0.95,
) -> optax.GradientTransformationExtraArgs:
    """The gradient noise scale from the mean gradients of the k equal parts of a batch; no per-example gradients.

    What data-parallel devices and accumulated steps have at hand anyway: the small batch is one device's or one
    micro-batch, the big batch their union. Given to ``update`` as ``group_gradients``, a pytree like the updates with a
    leading axis of k; otherwise the terms of the batch are split.

    With k groups of b examples, S = mean ‖g_k − ĝ‖²/(1/b − 1/(kb)) and G = ‖ĝ‖² − S/(kb): the estimators of McCandlish
    et al. (2018, appendix A.1), without their cancellation. They are unbiased as those of :func:`noise_scale`, whose
    limit k = m they are, with k − 1 degrees of freedom in place of m − 1. One batch with G < 0 is common: average, and
    look at the interval, whose meaning is the same.

    Args:
        num_groups: k, where the batch is to be split.
        group_size: b, the number of examples behind each of the ``group_gradients``.
        every: measure at steps that it divides.
        decay: of the weights of former measurements; 0 keeps the last one only.
        where: which parameters to look at, a function of their path.
        by: groups of parameters that are read too.
        name: a prefix of what is read.
        population_size: N, where batches are drawn without replacement.
        confidence_level: with what probability the interval holds B.

    >>> from jaxsgd import monitors
    >>> optimizer = optax.chain(two_batch_noise_scale(group_size=2), optax.sgd(0.1))
    >>> groups = jnp.asarray([[1.0, 2.0], [3.0, 2.0]])
    >>> updates, state = optimizer.update(groups.mean(axis=0), optimizer.init(groups[0]), group_gradients=groups)
    >>> {name: round(float(value), 4) for name, value in monitors.readings(state).items() if value > 1}
    {'two_batch/trace_covariance': 4.0, 'two_batch/squared_mean_norm': 7.0, 'two_batch/noise_scale_high': inf}
    """
    return as_transformation(
        _TwoBatch(
            num_groups=num_groups,
            group_size=group_size,
            every=every,
            decay=decay,
            where=where,
            name=name,
            centered=True,
            by=tuple(by) if isinstance(by, list) else by,
            population_size=population_size,
            confidence_level=confidence_level,
        )
    )
