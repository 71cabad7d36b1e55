"""Negative controls of the table of published rates, in the form of :mod:`tests.support.controls`."""

import numpy as np

from tests.support.changes import Control, changed


def with_plain(steps: np.ndarray, factor: float) -> np.ndarray:
    """Steps by momentum and batch size, without momentum as few as with, but for that factor in large batches."""
    fewest = steps.min(axis=0)
    share = fewest[-1] / fewest  # of the last number of steps, 1 for large batches
    return np.concatenate([(fewest * (1 + (factor - 1) * share))[None], steps[1:]])


CONTROLS: list[Control] = [
    ("rates/six", lambda v: v * (1 + 1e-6), "must be those of the library's laws"),
    ("rates/few/K/independent", lambda v: v**2, r"exponents, independent, must be \(-1, -1\)"),
    ("rates/few/n/shuffled once", lambda v: v[[0, 0]], r"exponents, shuffled once, must be \(-1, -2\)"),
    ("rates/few/K/reshuffled", np.sqrt, "exponents, reshuffled, few epochs, must be"),
    ("rates/many/n/reshuffled", np.sqrt, "exponents, reshuffled, many epochs, must be"),
    ("rates/along/shuffled once", lambda v: v * 100, "errors must be below the bound"),
    ("rates/along/shuffled once", lambda v: v[::-1] / v[0] * v[-1], "one shuffle must have the rate of the bound"),
    ("rates/along/reshuffled", lambda v: v * np.geomspace(1, 40, len(v)), "no better rate than the bound must be"),
    ("rates/along/independent", lambda v: v / 1e3, "shuffling must be better than independent examples"),
    ("rates/along/independent", lambda v: v * np.geomspace(1, 1e-4, len(v)), "leads by a constant factor must be"),
    ("momentum/is_inside", np.zeros_like, "the best learning rate must lie inside those tried"),
    ("momentum/stationary risk", lambda v: v * [1, 1.01], "stationary risk: must be"),
    ("momentum/after 7 steps", lambda v: v * [1, 1.01], "after 7 steps: must be"),
    ("momentum/one by one", lambda v: v + 1, "one by one it must not take more steps"),
    ("momentum/one by one", lambda v: v // 2, "one by one it must take nearly as many steps"),
    ("momentum/steps", changed(0, lambda v: v * 1.02), "at B = 1 momentum must save less than 1%"),
    ("momentum/steps", lambda v: with_plain(v, 1.0), "momentum must raise the critical batch size"),
    ("momentum/steps", lambda v: with_plain(v, 2.9), "does little for large batches must be rejected"),
    ("strata/few", lambda v: v * (1 + 1e-6), "variances for few examples must be"),
    ("strata/ratio", changed((-1, 2), lambda v: v * 20), "clusters must leave least variance"),
    ("strata/ratio", lambda v: v * 6, "clusters are no better than random samples must be rejected"),
    ("strata/ratio", lambda v: v[:, [0, 1, 2, 2]], "clusters of the start must be worse at the end"),
    ("strata/moments", lambda v: v[:, ::-1], "rises along a run must be rejected here"),
    ("strata/moments", changed((..., -1, 1), lambda v: v * 100), "must rise along a run"),
    ("strata/moments", lambda v: v[::-1], "a smaller learning rate must have more variance"),
]
