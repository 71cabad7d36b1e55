"""Is this batch loss an average of per-example losses? A diagnosis of any loss of a batch, from the loss itself.

The statements "the gradient of the average is the average of the gradients" and "a minibatch gradient is unbiased"
hold for losses that add over the examples. Many do not: a token mean, a weighted mean, BatchNorm, in-batch
negatives, a maximum. Nothing about the loss is assumed here: the loss and its gradient are evaluated on subsets S of a
batch, and the values F(S) are compared with each of these forms:

    mean           |S| F(S) = Σ a_i: the mean of per-example losses. A penalty R(θ) is part of each a_i.
    sum            F(S) = R + Σ a_i. Fixed divisors and weights are part of a_i; R is reported.
    weighted_sum   a sum whose every part is proportional to one number per example, a float leaf of shape
                   (n,) of the batch (found by doubling it; its path is reported); or c(|S|) Σ a_i with
                   a factor of the size alone other than 1 and 1/|S|. Weights inside a mean leave it a mean.
    ratio          F(S) = (R + Σ a_i) / (C + Σ b_i) with unequal b_i: token means, weighted means, Dice.
    pairwise       c(|S|) F(S) = R + Σ a_i + Σ_{i<j} a_ij with c = m(m−1) (a mean over pairs), m² (such as
                   the square of a mean) or 1; or Σ a_ij / Σ b_ij ("counted pairs", such as an AUC loss).
    coupled        none of these: BatchNorm, InfoNCE, maximum, CVaR, log-mean-exp, product.

The first form of the table that holds is the answer, so a ratio whose b_i are all equal in this batch is a mean. A loss
that is its own special case on this batch cannot be told from it: the diagnosis proves the form for the subsets
evaluated, up to rounding, and refutes it for all batches; it is no theorem about other batches.

:func:`check_accumulation` asks the same of a step that is there already: whether what it does with the microbatches of
a batch, or with the devices' parts of it, amounts to the gradient of the whole.
"""

from jaxsgd._core.faces import at_home
from jaxsgd.additivity._accumulation import Accumulation, check_accumulation
from jaxsgd.additivity._check import Additivity, Discrepancy, check_additivity

__all__ = ["Accumulation", "Additivity", "Discrepancy", "check_accumulation", "check_additivity"]

at_home(__name__, __all__)
