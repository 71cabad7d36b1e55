"""One look for all figures: sizes of a two-column paper, STIX letters, colors that survive color blindness and gray.

Figures are made without pyplot, so nothing depends on a display or on global state that an earlier figure left.
"""

from typing import Any

from tueplots import figsizes, fontsizes

# Okabe and Ito's palette (2008), from dark to light, so that the order shows in gray as well; each with its marker.
COLORS = ("#0072B2", "#D55E00", "#56B4E9")
MARKERS = ("o", "s", "^")

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
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}


def column(*, nrows: int = 1, ncols: int = 1, height_to_width_ratio: float = 0.62) -> tuple[float, float]:
    """Width and height, in inches, of a figure as wide as one column of a two-column paper."""
    size = figsizes.icml2024_half(nrows=nrows, ncols=ncols, height_to_width_ratio=height_to_width_ratio)
    width, height = size["figure.figsize"]
    return width, height


def page(*, nrows: int = 1, ncols: int = 1, height_to_width_ratio: float = 0.62) -> tuple[float, float]:
    """Width and height, in inches, of a figure as wide as the page of a two-column paper."""
    size = figsizes.icml2024_full(nrows=nrows, ncols=ncols, height_to_width_ratio=height_to_width_ratio)
    width, height = size["figure.figsize"]
    return width, height
