"""Losses of a batch that are no average of losses of examples, and what makes their minibatch gradients unbiased.

Each is a function of arrays over the batch, to be called in a ``batch_loss_fn(params, batch)``. With M examples drawn
without replacement from N, â and so on are means of the batch, ā those of all N, and c_M = (N−M)/(M(N−1)); the mean of
a smooth function is E φ(â) = φ(ā) + ½ c_M tr(φ''(ā) Σ_a) + O(1/M²), so the bias of the gradient is of the order c_M
too, and 0 for the full batch. Where there is an unbiased form it stands beside.
"""

from jaxsgd._core.faces import at_home
from jaxsgd.batch_losses._losses import (
    all_pairs,
    auc_loss,
    centered_squared_error,
    cvar,
    cvar_bound,
    different_pairs,
    info_nce,
    log_mean_exp,
    log_mean_exp_bound,
    normalized_squared_error,
    product_of_losses,
    product_of_means,
    product_of_means_unbiased,
    soft_dice,
    token_mean,
    wasserstein_to_bernoulli,
)
from jaxsgd.batch_losses._sub_batches import BatchLoss, on_sub_batch

__all__ = [
    "BatchLoss",
    "all_pairs",
    "auc_loss",
    "centered_squared_error",
    "cvar",
    "cvar_bound",
    "different_pairs",
    "info_nce",
    "log_mean_exp",
    "log_mean_exp_bound",
    "normalized_squared_error",
    "on_sub_batch",
    "product_of_losses",
    "product_of_means",
    "product_of_means_unbiased",
    "soft_dice",
    "token_mean",
    "wasserstein_to_bernoulli",
]

at_home(__name__, __all__)
