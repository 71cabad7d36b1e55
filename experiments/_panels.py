"""One look for all figures, and what they are made of: panels, lines and points, reference lines, small text.

Sizes are those of a two-column paper, letters STIX, colors survive color blindness and gray. Figures are made without
pyplot, so nothing depends on a display or on global state that an earlier figure left.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tueplots import figsizes, fontsizes

Arrays = dict[str, np.ndarray]

# Okabe and Ito's palette (2008), from dark to light, so that the order shows in gray as well; each with its marker.
BLUE, ORANGE, SKY = COLORS = ("#0072B2", "#D55E00", "#56B4E9")
MARKERS = ("o", "s", "^")
DASHED, LONG_DASHED, DOTTED = (0, (3, 1.5)), (0, (4, 1.5)), (0, (1, 1))

# In force while a figure is drawn and while it is rendered: Matplotlib resolves fonts at the last moment.
SETTINGS: dict[str, Any] = {
    **fontsizes.icml2024(),
    "figure.constrained_layout.use": True,
    "figure.autolayout": False,
    "font.family": "serif",
    "font.serif": ["STIXGeneral"],
    "mathtext.fontset": "stix",
    "text.usetex": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "jaxsgd",
    "savefig.dpi": 300,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.2,
    "legend.fontsize": "small",
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
}


SHAPE = {"nrows": 1, "ncols": 1, "height_to_width_ratio": 0.62}  # of a figure's panels


def column(**shape: Any) -> Figure:
    """An empty figure as wide as one column of a two-column paper."""
    return Figure(figsize=figsizes.icml2024_half(**SHAPE | shape)["figure.figsize"])


def page(**shape: Any) -> Figure:
    """An empty figure as wide as the page of a two-column paper."""
    return Figure(figsize=figsizes.icml2024_full(**SHAPE | shape)["figure.figsize"])


def page_of(results: Arrays, *panels: Callable[[Any, Arrays], None], nrows: int = 1, ratio: float) -> Figure:
    """A figure as wide as the page, of equal panels row by row: each function draws the results into one."""
    ncols = len(panels) // nrows
    figure = page(nrows=nrows, ncols=ncols, height_to_width_ratio=ratio)
    for axes, draw in zip(figure.subplots(nrows, ncols, squeeze=False).flat, panels, strict=True):
        draw(axes, results)
    return figure


def panel(
    axes: Any,
    title: str = "",
    *,
    x: str = "",
    y: str = "",
    log: str = "",
    legend: str | dict[str, Any] = "",
    **more: Any,
) -> None:
    """Say what a panel shows, once everything is drawn.

    Args:
        axes: the panel.
        title: its title.
        x: label of the horizontal axis.
        y: label of the vertical axis.
        log: the axes with a logarithmic scale, "x", "y" or "xy".
        legend: where the legend is, or all that Matplotlib's ``legend`` is given; none by default.
        **more: what Matplotlib's ``axes.set`` takes: ``xlim``, ``ylim``, ``xticks``.
    """
    texts = {name: text for name, text in {"title": title, "xlabel": x, "ylabel": y}.items() if text}
    axes.set(**{f"{axis}scale": "log" for axis in log}, **texts, **more)
    if legend:
        axes.legend(**({"loc": legend} if isinstance(legend, str) else legend))


def mark(place: int, *, line: Any = None, hollow: bool = False) -> dict[str, Any]:
    """The color and the marker of a place among several series, black at the fourth.

    Args:
        place: from 0.
        line: the line between the markers, such as ``DASHED``, or "none"; solid by default.
        hollow: draw empty markers.
    """
    style: dict[str, Any] = {"color": (*COLORS, "black")[place], "marker": (*MARKERS, "D")[place]}
    if line is not None:
        style["linestyle"] = line
    return style | ({"markerfacecolor": "white"} if hollow else {})


def series(axes: Any, x: Any, curves: Mapping[str, Any], **style: Any) -> None:
    """Curves by label, each with the color and the marker of its place; ``style`` holds for all of them."""
    for place, (label, y) in enumerate(curves.items()):
        axes.plot(x, y, label=label, **mark(place) | style)


def reference(axes: Any, *, y: Any = None, x: Any = None, **style: Any) -> None:
    """A line across the panel at a height, or at a place: gray and dotted unless ``style`` says otherwise."""
    style = {"color": "gray", "linewidth": 0.7, "linestyle": ":"} | style
    if y is not None:
        axes.axhline(y, **style)
    if x is not None:
        axes.axvline(x, **style)


def note(axes: Any, x: Any, y: Any, text: str, **style: Any) -> None:
    """Small text in a panel."""
    axes.text(x, y, text, **{"fontsize": "small"} | style)
