"""Sampling designs: laws on the weight vector w of a minibatch gradient ĝ = Σ w_i g_i.

A design knows no gradients. It draws w, states its mean and covariance exactly, and lists its support where that is
finite and small. ``estimators`` does the rest, the same way for every design, since E ĝ = Gᵀ E[w] and
tr Cov ĝ = ⟨Cov w, K⟩ for the gradient matrix G and K = G Gᵀ.

    size of the batch   all examples alike                        not alike
    fixed               WithReplacement, WithoutReplacement,      Importance, ConditionalPoisson, Stratified
                        Reshuffling
    random              DistinctUnits, Bernoulli                  Poisson, Hajek
    from a fixed list                                             Groups, Systematic, Blocks, CircularBlocks

Designs are frozen dataclasses: hashable (static arguments of ``jit``) and printable (captions of figures). Their
methods take the population size N, and draws have shape (N,), whatever the size of the batch. Numbers given as
``Fraction`` (or integers) stay rational, in covariances too.
"""

from collections.abc import Iterator
from fractions import Fraction
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Float64

from jaxsgd._bernoulli import Bernoulli
from jaxsgd._conditional_poisson import ConditionalPoisson
from jaxsgd._covariances import (
    CircularCovariance,
    Covariance,
    DenseCovariance,
    DiagonalCovariance,
    ExchangeableCovariance,
    GroupCovariance,
    StratifiedCovariance,
    StructuredCovariance,
)
from jaxsgd._groups import Blocks, CircularBlocks, Groups, Systematic
from jaxsgd._importance import Importance
from jaxsgd._independent import Hajek, Poisson
from jaxsgd._law import SamplingDesign, Scale, WeightVector
from jaxsgd._reshuffling import Reshuffling
from jaxsgd._stratified import Stratified
from jaxsgd._uniform import DistinctUnits, WithoutReplacement, WithReplacement

__all__ = [
    "Bernoulli",
    "Blocks",
    "CircularBlocks",
    "CircularCovariance",
    "ConditionalPoisson",
    "Covariance",
    "DenseCovariance",
    "Design",
    "DiagonalCovariance",
    "DistinctUnits",
    "ExchangeableCovariance",
    "GroupCovariance",
    "Groups",
    "Hajek",
    "Importance",
    "Poisson",
    "Reshuffling",
    "SamplingDesign",
    "Scale",
    "Stratified",
    "StratifiedCovariance",
    "StructuredCovariance",
    "Systematic",
    "WeightVector",
    "WithReplacement",
    "WithoutReplacement",
]


@runtime_checkable
class Design(Protocol):
    """What ``estimators`` needs of a law on w; anything with these methods is a design."""

    def weights(self, key: Array, population_size: int) -> Float[Array, " n"]:
        """One draw of w, shape (N,)."""

    def mean_weights(self, population_size: int) -> Float64[np.ndarray, " n"]:
        """E w, shape (N,)."""

    def weight_covariance(self, population_size: int) -> Covariance:
        """Cov w, exactly, in structured form."""

    def support_size(self, population_size: int) -> int:
        """How many values w can take."""

    def support(self, population_size: int) -> Iterator[tuple[Fraction, WeightVector]]:
        """Every value of w with its probability, as exact rational numbers."""
