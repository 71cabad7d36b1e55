"""The names of :mod:`jaxsgd.noise` where 0.1 had them; ``jaxsgd.noise_scale`` itself is the function."""

from jaxsgd.noise import (
    HessianNoiseScale,
    NoiseScale,
    NoiseScaleLaw,
    hessian_noise_scale,
    noise_scale,
    noise_scale_law,
    two_batch_noise_scale,
    variance_factor,
)

__all__ = [
    "HessianNoiseScale",
    "NoiseScale",
    "NoiseScaleLaw",
    "hessian_noise_scale",
    "noise_scale",
    "noise_scale_law",
    "two_batch_noise_scale",
    "variance_factor",
]
