"""Is this batch loss an average of per-example losses? A diagnosis of any loss of a batch, from the loss itself.

The statements "the gradient of the average is the average of the gradients" and "a minibatch gradient is unbiased"
hold for losses that add over the examples. Many do not: a token mean, a weighted mean, BatchNorm, in-batch
negatives, a maximum. Nothing about the loss is assumed here: it is evaluated on subsets of a batch.
"""

from jaxsgd._core.faces import at_home
from jaxsgd.additivity._check import Additivity, Discrepancy, check_additivity

__all__ = ["Additivity", "Discrepancy", "check_additivity"]

at_home(__name__, __all__)
