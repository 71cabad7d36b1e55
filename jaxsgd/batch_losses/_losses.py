"""The losses, each with what is known of its bias, and the unbiased form where there is one.

They are functions of arrays over the batch alone; evaluating a loss of a batch on parts of it is ``_sub_batches``'.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsgd._core import validate


def product_of_means(a: Float[Array, " m"], b: Float[Array, " m"]) -> Float[Array, ""]:
    """â b̂, with mean ā b̄ + c_M Cov(a, b): unbiased only if a and b do not correlate.

    >>> float(product_of_means(jnp.array([1.0, 2.0]), jnp.array([3.0, 1.0])))
    3.0
    """
    return a.mean() * b.mean()


def product_of_means_unbiased(a: Float[Array, " m"], b: Float[Array, " m"], population_size: int) -> Float[Array, ""]:
    """(N−1)/(NM(M−1)) Σ_{i≠j} a_i b_j + 1/(NM) Σ a_i b_i, whose mean is ā b̄: M ≥ 2 examples, counted in pairs.

    Raises:
        ValueError: if there are fewer than two examples.
    """
    M, N = len(a), population_size
    validate.at_least(2, **{"the number of examples": M})
    diagonal = jnp.sum(a * b)
    pairs = jnp.sum(a) * jnp.sum(b) - diagonal
    return (N - 1) / (N * M * (M - 1)) * pairs + diagonal / (N * M)


def product_of_losses(losses: Float[Array, " m"]) -> Float[Array, ""]:
    """Π L_i, with mean e_M(L)/C(N, M), an elementary symmetric polynomial: no batch but the full one will do.

    Its logarithm is a sum, and so is that one's gradient.
    """
    return jnp.prod(losses)


def log_mean_exp(values: Float[Array, " m"]) -> Float[Array, ""]:
    """log (1/M) Σ e^{a_i}, too low on average, by ½ c_M Var(e^a)/(mean e^a)² to first order.

    References:
        Y. Burda, R. Grosse, R. Salakhutdinov, "Importance weighted autoencoders", ICLR 2016; S. Nowozin, ICLR 2018.
    """
    return jax.scipy.special.logsumexp(values) - jnp.log(float(len(values)))


def log_mean_exp_bound(values: Float[Array, " m"], level: Float[Array, ""]) -> Float[Array, ""]:
    """t + (1/M) Σ e^{a_i − t} − 1 ≥ log mean e^a, a mean over examples, tight at t = log mean e^a of all data."""
    return level + jnp.exp(values - level).mean() - 1


def cvar(losses: Float[Array, " m"], alpha: float) -> Float[Array, ""]:
    """The mean of the largest αM losses (rounded up), which grows with M on average.

    References:
        D. Levy, Y. Carmon, J. Duchi, A. Sidford, "Large-scale methods for distributionally robust optimization",
        NeurIPS 2020.

    >>> float(cvar(jnp.array([1.0, 5.0, 3.0, 2.0]), 0.5))
    4.0
    """
    largest = -int(-alpha * len(losses) // 1)
    return jnp.sort(losses)[len(losses) - largest :].mean()


def cvar_bound(losses: Float[Array, " m"], level: Float[Array, ""], alpha: float) -> Float[Array, ""]:
    """t + (1/αM) Σ (L_i − t)₊ ≥ CVaR_α, a mean over examples, tight where t is the (1−α)-quantile of all losses.

    References:
        R. T. Rockafellar and S. Uryasev, "Optimization of conditional value-at-risk", J. of Risk 2, 2000.
    """
    return level + jax.nn.relu(losses - level).mean() / alpha


def centered_squared_error(slope: Float[Array, ""], x: Float[Array, " m"], y: Float[Array, " m"]) -> Float[Array, ""]:
    """(1/M) Σ (θ (x_i − x̄_B) − y_i)²: batch normalization without the scale.

    The expected gradient is 1 − c_M times that of the full data: the same minimum, too small a step, none at M = 1.
    """
    return jnp.mean((slope * (x - x.mean()) - y) ** 2)


def normalized_squared_error(slope: Float[Array, ""], x: Float[Array, " m"], y: Float[Array, " m"]) -> Float[Array, ""]:
    """(1/M) Σ (θ (x_i − x̄_B)/σ_B − y_i)²: batch normalization, whose minimum moves with M. It takes two examples.

    References:
        X. Lian and J. Liu, "Revisit batch normalization: new understanding and refinement via composition
        optimization", AISTATS 2019.
    """
    return jnp.mean((slope * (x - x.mean()) / jnp.std(x) - y) ** 2)


def info_nce(similarity: Float[Array, "m m"]) -> Float[Array, ""]:
    """−(1/M) Σ_i log(e^{s_ii}/Σ_j e^{s_ij}): the other examples of the batch are the negatives; 0 at M = 1.

    References:
        A. van den Oord, Y. Li, O. Vinyals, arXiv:1807.03748, 2018; Z. Yuan et al., "Provable stochastic optimization
        for global contrastive learning: small batch does not harm performance", ICML 2022.
    """
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(similarity)))


def auc_loss(
    scores: Float[Array, " m"],
    positive: Float[Array, " m"],
    *,
    num_pairs: float | None = None,
    pair_loss: Callable[[Any], Any] = lambda difference: (1 - difference) ** 2,
) -> Float[Array, ""]:
    """The mean of a loss over pairs of a positive and a negative example, and 0 where one of them is missing.

    Args:
        scores: s_i.
        positive: 1 for positive examples, 0 for negative ones.
        num_pairs: what the sum over pairs is divided by. By default their number in the batch, which multiplies the
            expectation by the probability of both classes; the expected number, n₊n₋M(M−1)/(N(N−1)), is unbiased.
        pair_loss: of s_i − s_j.
    """
    counted = positive[:, None] * (1 - positive[None, :])
    total = jnp.sum(counted * pair_loss(scores[:, None] - scores[None, :]))
    return total / (jnp.maximum(jnp.sum(counted), 1) if num_pairs is None else num_pairs)


def soft_dice(p: Float[Array, " m"], y: Float[Array, " m"]) -> Float[Array, ""]:
    """2 Σ p_i y_i/(Σ p_i + Σ y_i): a ratio of sums, of a_i = 2 p_i y_i and b_i = p_i + y_i.

    With R = ā/b̄ of all data, its bias is c_M [R Var(b) − Cov(a, b)]/b̄² to first order.
    """
    return 2 * jnp.sum(p * y) / (jnp.sum(p) + jnp.sum(y))


def token_mean(losses: Float[Array, " m"], tokens: Float[Array, " m"]) -> Float[Array, ""]:
    """Σ losses/Σ tokens over sequences: long ones count more in small batches than in large ones.

    Divided by M times the mean number of tokens of *all* sequences it would be unbiased.
    """
    return jnp.sum(losses) / jnp.sum(tokens)


def all_pairs(values: Float[Array, " m"], kernel: Callable[[Any, Any], Any]) -> Float[Array, ""]:
    """(1/M²) Σ_ij h(a_i, a_j), a V-statistic, with mean ((M−1)/M) U_N + (1/M) mean h(a_i, a_i).

    U_N is the mean of h over the pairs of different examples of all data.
    """
    return jnp.mean(kernel(values[:, None], values[None, :]))


def different_pairs(values: Float[Array, " m"], kernel: Callable[[Any, Any], Any]) -> Float[Array, ""]:
    """(1/(M(M−1))) Σ_{i≠j} h(a_i, a_j), unbiased for M ≥ 2: a U-statistic.

    Raises:
        ValueError: if there are fewer than two examples.

    References:
        W. Hoeffding, "A class of statistics with asymptotically normal distribution", Ann. Math. Stat. 19, 1948.
    """
    M = len(values)
    validate.at_least(2, **{"the number of examples": M})
    pairs = kernel(values[:, None], values[None, :])
    return (jnp.sum(pairs) - jnp.trace(pairs)) / (M * (M - 1))


def wasserstein_to_bernoulli(p: Float[Array, ""], draws: Float[Array, " m"]) -> Float[Array, ""]:
    """|p − p̂|, the Wasserstein distance of Bernoulli laws: the expected sign of its gradient can be the wrong one.

    The squared distance (p − p̂)² of Cramér has the unbiased gradient 2(p − p̂).

    References:
        M. G. Bellemare et al., "The Cramér distance as a solution to biased Wasserstein gradients", arXiv:1705.10743.
    """
    return jnp.abs(p - draws.mean())
