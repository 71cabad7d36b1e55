"""The figures of a report: sizes of a two-column paper, letters that come with Matplotlib, no display needed.

Matplotlib is imported inside the functions only, so that importing the package does not import it.
"""

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxsgd.report._findings import Findings

_WIDTH, _HEIGHT = 3.25, 2.2  # inches, one column
_INK, _QUIET = "#0a0b0c", "#7f8081"  # in a page, both become colors of the page
_SPREAD = 20  # between the shortest and the longest gradient: a logarithmic axis from here on
_COLORS = ("#0072b2", "#d55e00", "#56b4e9")  # Okabe and Ito's palette, 2008

_SETTINGS: dict[str, Any] = {
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.family": "STIXGeneral",
    "font.size": 8,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "mathtext.fontset": "stix",
    "pdf.fonttype": 42,
    "savefig.dpi": 300,
    "svg.fonttype": "path",
    "svg.hashsalt": "jaxsgd",
    "text.color": _INK,
    "xtick.color": _INK,
    "xtick.labelsize": 7,
    "ytick.color": _INK,
    "ytick.labelsize": 7,
}


def draw_all(findings: Findings, formats: tuple[str, ...]) -> dict[str, dict[str, bytes]]:
    """Every figure in every format, ``draw_all(…)["variance"]["pdf"]``: the same bytes for the same findings."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn: dict[str, dict[str, bytes]] = {}
    for name, fill in FIGURES.items():
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            parameters: Any = matplotlib.rcParams
            parameters.update(_SETTINGS)
            figure = Figure(figsize=(_WIDTH, _HEIGHT))
            FigureCanvasAgg(figure)
            fill(findings, figure.add_subplot())
            drawn[name] = {each: _render(figure, each) for each in formats}
    return drawn


def inline(svg: bytes, name: str) -> str:
    """An SVG image as part of a page: colors by the page's style, identifiers that no other image has, no prologue."""
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for before in (' id="', "url(#", 'href="#'):
        text = text.replace(before, f"{before}{name}-")
    for color, variable in zip((_INK, _QUIET, *_COLORS), ("ink", "quiet", "first", "second", "third"), strict=True):
        text = text.replace(color, f"var(--{variable})")
    text = text.replace(' xmlns="http://www.w3.org/2000/svg"', "").replace(' version="1.1"', "")
    text = text.replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "").replace("xlink:href", "href")
    start = rf'<svg \1 role="img" aria-label="{ALT[name]}">'
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', start, text, count=1)


def _variance(findings: Findings, ax: Any) -> None:
    """The noise of a batch against its size, and where it is as long as the mean gradient."""
    sizes = findings.batch_sizes
    positive = findings.variance > 0
    ax.plot(sizes, findings.variance_with_replacement, color=_COLORS[1], ls="--", label="with replacement")
    ax.plot(sizes[positive], findings.variance[positive], color=_COLORS[0], label="without replacement")
    if findings.squared_mean_norm > 0:
        ax.axhline(findings.squared_mean_norm, color=_QUIET, lw=0.8, ls=":", label=r"signal $\Vert\bar{g}\Vert^2$")
        at = findings.noise_scale, findings.squared_mean_norm
        ax.plot(*at, "o", color=_INK, ms=4, label="noise scale $B$", zorder=5)
    ax.set(xscale="log", xlabel="batch size $M$", ylabel=r"noise $\mathrm{E}\Vert\hat{g}-\bar{g}\Vert^2$")
    if findings.trace_covariance > 0:
        last = findings.variance_with_replacement[-1]
        ax.set(yscale="log", ylim=(last / 30, None))
    _plain(ax.xaxis)
    ax.legend(loc="lower left")


def _tradeoff(findings: Findings, ax: Any) -> None:
    """Steps and examples against batch size, relative to the fewest."""
    B = findings.noise_scale
    if not 0 < B < np.inf:
        ax.text(0.5, 0.5, "no noise scale, no trade-off", ha="center", va="center", transform=ax.transAxes)
        ax.set_axis_off()
        return
    first, last = max(min(B, findings.num_examples) / 32, 1), min(32 * max(B, 1), findings.num_examples)
    sizes = np.geomspace(first, last, 200)
    ax.plot(sizes, findings.steps(sizes), color=_COLORS[0], label="steps")
    ax.plot(sizes, findings.examples(sizes), color=_COLORS[1], ls="--", label="examples")
    M = findings.batch_size
    ax.axvline(M, color=_QUIET, lw=0.8, ls=":")
    ax.annotate(f"$M={M}$", (M, 1), (3, 0), ("data", "axes fraction"), "offset points", va="top")
    ax.set(xscale="log", yscale="log", xlabel="batch size $M$", ylabel="relative to the fewest")
    _plain(ax.yaxis)
    if max(findings.steps(first), findings.examples(last)) < 64:
        ticks = [1, 2, 4, 8, 16, 32]
        ax.set_yticks(ticks, [f"{tick}×" for tick in ticks])
        ax.set_ylim(0.9, 40)
        ax.yaxis.set_tick_params(which="minor", left=False)
    _plain(ax.xaxis)
    ax.legend(loc="upper center", ncols=2, bbox_to_anchor=(0.5, 1.15))


def _designs(findings: Findings, ax: Any) -> None:
    """Designs by their noise, relative to independent draws."""
    rows = [row for row in findings.designs if np.isfinite(row.effect)]
    places = np.arange(len(rows))[::-1]
    effects = np.asarray([row.effect for row in rows])
    ax.hlines(places, np.minimum(effects, 1), np.maximum(effects, 1), color=_QUIET, lw=1)
    ax.plot(effects, places, "o", color=_COLORS[0], ms=4)
    ax.axvline(1, color=_QUIET, lw=0.8, ls=":")
    ax.set_yticks(places, [row.name for row in rows])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlim(left=0)
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.set_xlabel(f"relative noise at $M={findings.batch_size}$")


def _norms(findings: Findings, ax: Any) -> None:
    """How long the gradients of single examples are."""
    norms = findings.norms[findings.norms > 0]
    length = findings.squared_mean_norm**0.5
    largest = max([*norms, length]) or 1.0
    spread = largest / min([*norms, length or largest]) > _SPREAD
    if norms.size:
        bins = min(40, max(5, norms.size // 8))
        edges = np.geomspace(norms.min(), norms.max() * 1.001, bins + 1) if spread else bins
        ax.hist(norms, bins=edges, color=_COLORS[2])
    if length > 0:
        ax.axvline(length, color=_COLORS[1], ls="--", label=r"$\Vert\bar{g}\Vert$, norm of the mean")
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1))
    if spread:
        ax.set_xscale("log")
        _plain(ax.xaxis)
    else:
        ax.set_xlim(0, 1.05 * largest)
    ax.set(xlabel=r"$\Vert g_i\Vert$", ylabel="examples")


def _plain(axis: Any) -> None:
    """Numbers instead of powers of ten on a logarithmic axis, where there is room for them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(numticks=6))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}" if x < 1e4 else f"$10^{{{np.log10(x):.3g}}}$"))


FIGURES: dict[str, Callable[[Findings, Any], None]] = {
    "variance": _variance,
    "tradeoff": _tradeoff,
    "designs": _designs,
    "norms": _norms,
}

ALT = {
    "variance": "Noise of the minibatch gradient against batch size",
    "tradeoff": "Steps and examples of a run against batch size",
    "designs": "Noise of sampling designs relative to independent draws",
    "norms": "Histogram of the norms of per-example gradients",
}

_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}


def _render(figure: Any, file_format: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=file_format, metadata=_METADATA[file_format], transparent=file_format == "svg")
    figure.set_layout_engine("none")  # the first format has found the layout for all
    return buffer.getvalue()
