"""Moments of ratios over independent examples, w_i = a_i I_i / Σ_k a_k I_k, as integrals over one variable.

With S = Σ a_k I_k and 1/S = ∫ e^{−xS} dx, 1/S² = ∫ x e^{−xS} dx over x > 0, independence turns both moments into

    E[w_i; S > 0]      = ∫ F(x) r_i(x) dx,
    E[w_i w_j; S > 0]  = ∫ x F(x) r_i(x) r_j(x) dx   (i ≠ j),      E[w_i²; S > 0] = ∫ x F(x) a_i r_i(x) dx,

with F(x) = Π_k (1 − π_k + π_k e^{−a_k x}) and r_i(x) = π_i a_i e^{−a_i x} / (1 − π_i + π_i e^{−a_i x}). With
x = e^s all integrands are positive, and analytic and bounded for |Im s| < π/2, so the trapezoidal rule of step h in s
has an error of the order of e^{−π²/h}: h = 1/4 leaves that of rounding.

References:
    L. N. Trefethen and J. A. C. Weideman, "The exponentially convergent trapezoidal rule", SIAM Review 56, 2014.
"""

import numpy as np
from jaxtyping import Float64

_STEP = 1 / 4
_NEGLIGIBLE = 40.0  # of s at the lower end, where integrands fall like e^s
_LARGEST_EXPONENT = 50.0  # of e^{−a x} at the upper end


def first_moments(probabilities: Float64[np.ndarray, " n"], a: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """E[w_i; not empty], shape (N,), for ``probabilities`` π and ratios ``a``."""
    nodes, coefficients = _rule(a)
    products, ratios = _integrands(nodes, probabilities, a)
    return (coefficients * products) @ ratios


def second_moments(
    probabilities: Float64[np.ndarray, " n"], a: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, "n n"]:
    """E[w_i w_j; not empty], shape (N, N), for ``probabilities`` π and ratios ``a``."""
    nodes, coefficients = _rule(a)
    products, ratios = _integrands(nodes, probabilities, a)
    measure = coefficients * nodes * products
    moments = np.einsum("qi,qj->ij", measure[:, None] * ratios, ratios, optimize=True)
    np.fill_diagonal(moments, a * (measure @ ratios))
    return moments


def _rule(a: Float64[np.ndarray, " n"]) -> tuple[Float64[np.ndarray, " q"], Float64[np.ndarray, " q"]]:
    """Nodes and coefficients of ∫ over x > 0."""
    first, last = -np.log(a.sum()) - _NEGLIGIBLE, np.log(_LARGEST_EXPONENT / a.min())
    nodes = np.exp(np.arange(first, last, _STEP))
    return nodes, nodes * _STEP


def _integrands(
    nodes: Float64[np.ndarray, " q"], probabilities: Float64[np.ndarray, " n"], a: Float64[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, " q"], Float64[np.ndarray, "q n"]]:
    """F, shape (Q,), and r, shape (Q, N), at the nodes."""
    exponents = nodes[:, None] * a[None]
    with np.errstate(divide="ignore"):  # log 0, of an example that is always or never there
        logs = np.logaddexp(np.log1p(-probabilities)[None], np.log(probabilities)[None] - exponents)
    present = np.exp(np.log(np.maximum(probabilities, _TINY))[None] - exponents - logs) * (probabilities > 0)[None]
    return np.exp(logs.sum(axis=1)), present * a[None]


_TINY = np.finfo(np.float64).tiny
