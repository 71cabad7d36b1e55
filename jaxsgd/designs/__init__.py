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

from jaxsgd._core.faces import at_home
from jaxsgd.designs._base import Design, SamplingDesign, Scale, WeightVector
from jaxsgd.designs._batches import Batches, Draw, batches
from jaxsgd.designs._bernoulli import Bernoulli
from jaxsgd.designs._clusters import Blocks, CircularBlocks, Groups, Systematic
from jaxsgd.designs._conditional_poisson import ConditionalPoisson
from jaxsgd.designs._covariance import (
    CircularCovariance,
    Covariance,
    DenseCovariance,
    DiagonalCovariance,
    ExchangeableCovariance,
    GroupCovariance,
    StratifiedCovariance,
    StructuredCovariance,
)
from jaxsgd.designs._importance import Importance
from jaxsgd.designs._poisson import Hajek, Poisson
from jaxsgd.designs._reshuffling import Reshuffling
from jaxsgd.designs._stratified import Stratified
from jaxsgd.designs._uniform import DistinctUnits, WithoutReplacement, WithReplacement

__all__ = [
    "Batches",
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
    "Draw",
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
    "batches",
]

at_home(__name__, __all__)
