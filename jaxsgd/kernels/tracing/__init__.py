"""From the loss of one example to the factored gradients of a batch."""

from jaxsgd.kernels.tracing._recipe import Factor
from jaxsgd.kernels.tracing._trace import loss_and_factors

__all__ = ["Factor", "loss_and_factors"]
