"""Expectation and variance of ĝ from batches really drawn; estimates continue and merge.

With ĝ_r the gradient of draw r, m their mean, and v = Σ E[w_i] g_i the mean that the design states,

    Σ ‖ĝ_r − m‖² = Σ ‖ĝ_r − v‖² − R ‖m − v‖²,

and this over R − 1 is unbiased for tr Cov ĝ, whether or not the stated mean is right. It takes one pass.

How far off it is
-----------------
With e = ĝ − v, C = Cov ĝ and s² the variance of ‖e‖², the variance of that estimate is, for R independent draws,

    s²/R + 2 tr C²/(R (R − 1))

(the first term that of the mean of ‖e_r‖², the second that of the products ⟨e_r, e_s⟩ of different draws in ‖m − v‖²;
W. Hoeffding, Ann. Math. Stat. 19, 1948). The second is all there is where a design draws one of two batches, whose
errors are e and −e: s² is then 0, and the estimate off by tr C (1 − χ²)/R with a χ² of one degree of freedom. Its tail
is longer than a normal one: one value in ten thousand exceeds χ² − 1 = 14.1, which is 10 standard deviations. That 4
standard errors hold this too, the second term is taken (10/4)² = 6.25 times; it is of the order 1/R² all the same.
There tr C² is the mean of ⟨e_r, u⟩² over independent errors u, those of ``_REFERENCES`` draws of their own, the same
for all r, so that estimates still merge.

What stays outside is what the draws do not show: that a batch which is not among R draws, as happens in (1 − p)^R of
all cases if its probability is p, would have changed them. Of 4000 keys, 4 standard errors miss the truth in so many,
at most and on the average over the designs of the tests (populations of 8; the worst is ``Bernoulli`` normalized by the
realized size, with its rare batches of one example):

    R           64     256    1024    4096
    worst      189      30       6       3
    average     34       7     1.5     0.6

With n draws of mean m, variance V and mean squared error q ± s in each of two estimates, Σ‖ĝ_r − m‖² = (n − 1) V gains
‖m₁ − m₂‖² n₁n₂/(n₁ + n₂) over the two sums, and n (n − 1) s² gains (q₁ − q₂)² n₁n₂/(n₁ + n₂) (Chan, Golub and LeVeque,
"Algorithms for computing the sample variance", The American Statistician 37, 1983).

With a checkpoint, Σ (w_r − E w) and the R numbers ‖ĝ_r − v‖² so far are written along the way and when the draws are
interrupted, by Ctrl-C, SIGTERM or SIGHUP (:mod:`jaxsgd.shell`); the same call goes on from there to the same estimate,
bit for bit. A file of other draws, of another design or other gradients, which are named, is refused.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from jaxsgd import designs, kernels, shell
from jaxsgd._core import devices, units, validate
from jaxsgd._core.fingerprints import digest
from jaxsgd._core.meshes import on_any_mesh
from jaxsgd._core.rational import quotient
from jaxsgd._core.state_file import StateFile
from jaxsgd.estimators._contraction import squared_errors
from jaxsgd.estimators._exact import Estimate


@on_any_mesh
def monte_carlo(
    design: designs.Design,
    g: kernels.PerExampleGradients,
    *,
    key: Array,
    num_draws: int,
    chunk_size: int = 256,
    first_draw: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every_seconds: float = 60.0,
) -> Estimate:
    """E ĝ and tr Cov ĝ from batches really drawn.

    The variance is unbiased, whatever mean is stated. Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Args:
        design: a law on w for this population.
        g: the gradients of the whole population.
        key: draw r uses ``fold_in(key, r)``, so results do not depend on ``chunk_size`` but for rounding.
        num_draws: R, at least 2.
        chunk_size: how many draws are held at a time: chunk_size · (N + P) numbers.
        first_draw: the number of the first draw. Draws k, k + 1, … continue an estimate from draws 0, …, k − 1 with the
            same key, and ``merge`` puts the two together.
        checkpoint: a file for what is drawn so far, from which the same call goes on after an interruption.
        checkpoint_every_seconds: how often it is written.

    Returns:
        :class:`Estimate`; ``standard_error`` is the sample standard deviation of the ‖ĝ_r − v‖² over √R, v the stated
        mean, and a term of the order 1/R. Four hold the truth in 999 of 1000 keys from R = 4096 on, 992 at R = 256.

    Raises:
        TypeError: if ``key`` is not a key.
        ValueError: naming what is wrong with an argument, a gradient that is not finite, or the checkpoint.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> g, key = kernels.per_example_gradients(loss_fn)(params, data), jax.random.key(0)
    >>> first = monte_carlo(designs.WithoutReplacement(2), g, key=key, num_draws=100)
    >>> more = monte_carlo(designs.WithoutReplacement(2), g, key=key, num_draws=300, first_draw=100)
    >>> int(merge(first, more).num_draws)
    400
    """
    validate.random_key(key=key)
    validate.at_least(2, num_draws=num_draws)
    validate.at_least(0, first_draw=first_draw)
    validate.at_most(_DRAWS, "what can be folded into a key,", **{"first_draw + num_draws": first_draw + num_draws})
    validate.positive_integer(chunk_size=chunk_size)
    validate.positive(checkpoint_every_seconds=checkpoint_every_seconds)
    kernels.require_finite(g)
    stated = jnp.asarray(design.mean_weights(g.count))
    references = _draw(design, g.count, key, jnp.asarray(REFERENCE_DRAWS)) - stated[None]
    more = partial(_more, design, g, key, stated, _products(g, references), chunk_size, first_draw + num_draws)
    drawn = _Drawn(first_draw, jnp.zeros_like(stated), ())
    if checkpoint is None:
        drawn = _draw_all(more, drawn, first_draw + num_draws)
    else:
        _require_at_hand((g, drawn), checkpoint)
        settings: dict[str, Any] = {"num_draws": num_draws, "first_draw": first_draw, "chunk_size": chunk_size}
        settings |= {"design": repr(design), "key": digest(key), "gradients": _digest_of(g)}
        file = StateFile(checkpoint, settings, checkpoint_every_seconds)
        with shell.interruptible(), file.held():
            drawn = _draw_all(more, _read(file) or drawn, first_draw + num_draws, file)
    terms, products = jnp.concatenate(drawn.errors, axis=1)
    mean_error = squared_errors(g, drawn.total[None] / num_draws)[0]
    covariance_norm = units.root_mean_square(products)
    return Estimate(
        mean=jax.tree.map(jnp.add, g.weighted_sum(stated), g.weighted_sum(drawn.total / num_draws)),
        variance=(terms.mean() - mean_error) * (num_draws / (num_draws - 1)),
        standard_error=units.standard_error(terms, covariance_norm),
        num_draws=num_draws,
        mean_squared_error=terms.mean(),
        covariance_norm=covariance_norm,
    )


@on_any_mesh
def merge(first: Estimate, second: Estimate) -> Estimate:
    """The estimate from the draws of two, as if ``monte_carlo`` had made them all at once, but for rounding.

    Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Args:
        first: from ``monte_carlo``.
        second: from other draws of the same design and gradients.

    Raises:
        ValueError: if one of the two is not from draws.
    """
    for name, estimate in (("first", first), ("second", second)):
        if estimate.mean_squared_error is None:
            raise ValueError(f"{name} must be an estimate from monte_carlo, got one without draws")
    a, b = first.num_draws, second.num_draws
    count = a + b
    distance = units.squared_norm(jax.tree.map(jnp.subtract, first.mean, second.mean))
    change = second.mean_squared_error - first.mean_squared_error
    squares = (a - 1) * first.variance + (b - 1) * second.variance + distance * (a * b / count)
    numbers = [[e.standard_error, e.covariance_norm, e.mean_squared_error] for e in (first, second)]
    unit = units.near(jnp.stack(jax.tree.leaves(numbers)))
    between = (first.covariance_norm / unit) ** 2 * (a / count) + (second.covariance_norm / unit) ** 2 * (b / count)
    spread = sum(
        float(n * (n - 1)) * ((e.standard_error / unit) ** 2 - (units.of_products(e.covariance_norm, n) / unit) ** 2)
        for n, e in ((a, first), (b, second))
    )
    spread = jnp.maximum(spread, 0) + (change / unit) ** 2 * (a * b / count)
    covariance_norm = unit * jnp.sqrt(between)
    of_terms = unit * jnp.sqrt(spread * quotient(1, count * (count - 1)))
    return Estimate(
        mean=jax.tree.map(lambda x, y: x + (y - x) * (b / count), first.mean, second.mean),
        variance=squares / (count - 1),
        standard_error=jnp.hypot(of_terms, units.of_products(covariance_norm, count)),
        num_draws=count,
        mean_squared_error=first.mean_squared_error + change * (b / count),
        covariance_norm=covariance_norm,
    )


_REFERENCES = 8  # errors that those of all draws are multiplied with
_DRAWS = 2**32 - _REFERENCES  # of one key: ``fold_in`` tells 2³² numbers apart, so draw 2³² + r would be draw r again
REFERENCE_DRAWS = np.arange(_DRAWS, 2**32, dtype=np.uint32)


@jax.jit
def _products(g: kernels.PerExampleGradients, deviations: Float[Array, "k n"]) -> Float[Array, "n k"]:
    """⟨g_i, u⟩ for the errors u = Gᵀ d of a few draws."""
    return jax.lax.map(lambda d: g.inner_products(g.weighted_sum(d)), deviations).T


class _Drawn(NamedTuple):
    """What is known from the draws before the next.

    Its number, Σ (w_r − E w), and, chunk by chunk, two rows: ‖ĝ_r − v‖², and the root of the mean of ⟨ĝ_r − v, u⟩².
    """

    next_draw: int
    total: Array
    errors: tuple[Array, ...]


def _draw_all(more: Callable[[_Drawn], _Drawn], drawn: _Drawn, stop: int, file: StateFile | None = None) -> _Drawn:
    """Make the draws up to number ``stop``; what is there is written now and then, when interrupted and at the end."""
    if drawn.next_draw == stop:
        return drawn
    try:
        while drawn.next_draw < stop:
            drawn = more(drawn)
            if file is not None:
                jax.block_until_ready(drawn)  # type: ignore[no-untyped-call] # or an interruption would wait for it
                if file.is_due():
                    _write(file, drawn)
            shell.stop_if_asked()
    except KeyboardInterrupt:
        if file is not None and drawn.errors:
            _write(file, drawn)
        raise
    if file is not None:
        _write(file, drawn)
    return drawn


def _more(
    design: designs.Design,
    g: Any,
    key: Array,
    stated: Array,
    products: Array,
    chunk_size: int,
    stop: int,
    drawn: _Drawn,
) -> _Drawn:
    """One chunk more."""
    draws = jnp.asarray(np.arange(drawn.next_draw, min(drawn.next_draw + chunk_size, stop), dtype=np.uint32))
    deviations = _draw(design, g.count, key, draws) - stated[None]
    crossed = jnp.matmul(deviations.astype(products.dtype), products, precision="highest")
    errors = jnp.stack([squared_errors(g, deviations), units.root_mean_square(crossed, axis=1)])
    return _Drawn(drawn.next_draw + len(draws), drawn.total + deviations.sum(axis=0), (*drawn.errors, errors))


def _write(file: StateFile, drawn: _Drawn) -> None:
    errors = np.concatenate([np.asarray(each) for each in drawn.errors], axis=1)
    file.write({"next_draw": np.asarray(drawn.next_draw), "total": np.asarray(drawn.total), "errors": errors})


def _read(file: StateFile) -> _Drawn | None:
    arrays = file.read()
    if arrays is None:
        return None
    return _Drawn(int(arrays["next_draw"]), jnp.asarray(arrays["total"]), (jnp.asarray(arrays["errors"]),))


def _require_at_hand(tree: Any, checkpoint: str | Path) -> None:
    """Raise unless this process has all the numbers, which it is to write."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.core.Tracer) or devices.is_shared(devices.mesh_of(leaf)):
            raise ValueError(
                f"checkpoint must be None under jax.jit and where several processes share arrays, got {checkpoint}"
            )


def _digest_of(g: kernels.PerExampleGradients) -> str:
    """A hash of the gradients by what they are, not only by what they are computed from."""
    return digest([jax.tree.leaves(g), jax.tree.leaves(g.mean()), g.squared_norms()])


@partial(jax.jit, static_argnums=(0, 1))
def _draw(design: designs.Design, population_size: int, key: Array, draws: Integer[Array, " r"]) -> Float[Array, "r n"]:
    """The weights of draws number ``draws``."""
    return jax.vmap(lambda r: design.weights(jax.random.fold_in(key, r), population_size))(draws)
