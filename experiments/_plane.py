"""The plane of the two parameters of the line fit, with contours of a loss and arrows of gradients."""

from typing import Any

import numpy as np

from experiments._harness import Arrays

THETA = (1.0, 1.0)  # where all gradients are taken


def line_axes(axes: Any, results: Arrays, losses: np.ndarray, title: str) -> None:
    """Contours of a loss, and θ."""
    side = results["line/side"]
    style = {"levels": [0.3, 1, 3, 6, 12, 24, 48], "colors": "0.6", "linewidths": 0.6}
    axes.contour(side + THETA[0], side + THETA[1], losses.reshape(len(side), -1).T, **style)
    axes.plot(*THETA, color="black", marker="o", markersize=2.2, linestyle="none", zorder=4)
    axes.set(xlabel="$m$", title=title, xlim=(-0.5, 2.5), ylim=(-0.5, 2.5), xticks=(0, 1, 2), yticks=(0, 1, 2))


def arrow(axes: Any, gradient: np.ndarray, color: str, **style: Any) -> None:
    """−g/5 from θ, if there is any."""
    shape = {"arrowstyle": "-|>", "color": color, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 7}
    if np.any(gradient):
        axes.annotate("", xy=np.array(THETA) - gradient / 5, xytext=THETA, arrowprops=shape | style)
