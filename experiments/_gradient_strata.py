"""Strata in the space of gradients: clusters of which one example each estimates the mean gradient best.

One example from each of H strata, weighted by N_h/N, has the variance Σ (N_h/N)² V_h, with V_h the variance of the
gradients in stratum h. N_h² V_h is the sum of ‖g_i − g_j‖² over the pairs of its examples, so that

    N² tr Cov ĝ = the sum of squared distances over all pairs of examples in the same stratum,

which an example lowers most by moving to the stratum that it is nearest to in total. K-means lowers Σ N_h V_h instead.
"""

from collections.abc import Iterable

import jax
import numpy as np
from sklearn.cluster import KMeans

from jaxsgd import PerExampleGradients, designs

ROUNDS = 100


def rows_of(g: PerExampleGradients) -> np.ndarray:
    """The gradients as rows."""
    return np.concatenate([np.asarray(leaf).reshape(g.count, -1) for leaf in jax.tree.leaves(g.materialize())], axis=1)


def stratified(rows: np.ndarray, labels: np.ndarray, count: int, seed: int) -> tuple[designs.Stratified, ...]:
    """Batches of as many examples: by class, by k-means, and by clusters of a lower charge."""
    found = KMeans(count, n_init=1, max_iter=50, random_state=seed).fit_predict(rows)
    clusters = np.unique(found, return_inverse=True)[1]  # numbered without a gap
    lower = lowered(squared_distances(rows), clusters)
    return designs.Stratified.proportional(labels, count), one_from_each(clusters), one_from_each(lower)


def one_from_each(strata: np.ndarray) -> designs.Stratified:
    """One example from every stratum."""
    return designs.Stratified(strata, [1] * (int(strata.max()) + 1))


def by_the_library(rows: np.ndarray, several: Iterable[designs.Stratified]) -> list[float]:
    """The ratios of :func:`ratios`, from the covariances of the weights."""

    def variance(design: designs.SamplingDesign) -> float:
        return float(np.sum(design.weight_covariance(len(rows)).dense(len(rows)) * (rows @ rows.T)))

    return [variance(d) / variance(designs.WithoutReplacement(sum(d.batch_sizes))) for d in several]


def variance(distances: np.ndarray, design: designs.Stratified) -> float:
    """tr Cov ĝ from the squared distances of all gradients, shape (N, N): Σ (N_h/N)² (1 − m_h/N_h) S_h²/m_h."""
    N, member = len(distances), np.eye(len(design.batch_sizes))[np.asarray(design.strata)]
    sizes, drawn = member.sum(axis=0), np.array(design.batch_sizes)
    pairs = np.einsum("ih,ih->h", distances @ member, member) / 2  # N_h (N_h − 1) S_h²
    return float(np.sum((sizes - drawn) / (drawn * np.maximum(sizes - 1, 1)) * pairs) / N**2)


def ratios(rows: np.ndarray, several: Iterable[designs.Stratified]) -> list[float]:
    """The variances over those of simple random samples of as many examples, without replacement."""
    N, distances = len(rows), squared_distances(rows)
    trace = distances.sum() / (2 * N**2)

    def at_random(batch_size: int) -> float:
        return float(designs.WithoutReplacement(batch_size).variance_factor(N)) * trace

    return [variance(distances, d) / at_random(sum(d.batch_sizes)) for d in several]


def squared_distances(rows: np.ndarray) -> np.ndarray:
    """‖g_i − g_j‖², of rows about their mean, so that little cancels."""
    rows = rows - rows.mean(axis=0)
    norms = (rows**2).sum(axis=1)
    return np.maximum(norms[:, None] + norms - 2 * rows @ rows.T, 0)


def lowered(distances: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Strata of a lower charge: example by example moves to where it adds least, until none does."""
    strata = strata.copy()
    to_strata = distances @ np.eye(strata.max() + 1)[strata]
    for _ in range(ROUNDS):
        before = strata.copy()
        for i in range(len(strata)):
            old, new = strata[i], np.argmin(to_strata[i])
            if to_strata[i, new] < to_strata[i, old]:
                to_strata[:, old] -= distances[i]
                to_strata[:, new] += distances[i]
                strata[i] = new
        if np.array_equal(before, strata):
            break
    return strata
