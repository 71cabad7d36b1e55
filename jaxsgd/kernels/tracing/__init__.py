"""From the loss of one example to the factored gradients of a batch."""

from jaxsgd.kernels.tracing._trace import loss_and_factors

__all__ = ["loss_and_factors"]
