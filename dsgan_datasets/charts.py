"""Charts for people: how uncertain samples are, and what their labels hold. Needs matplotlib (the extra "pictures").

Only matplotlib's object interface is used: a caller's own figures, backend and `pyplot` state stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dsgan_datasets.targets.base import Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colors of a chart: what the filter keeps, what it drops, and text.
KEPT, DROPPED, INK = "#3a6ea5", "#d66a4e", "#1e1e1e"
GRID = "#dedede"
_DPI = 100


def check_installed() -> None:
    """Raise the ImportError of the functions below at once rather than after long work.

    Raises:
        ImportError: matplotlib is not installed; the message says how to install it.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError("charts need matplotlib: pip install 'dsgan_datasets[pictures]'") from error


def histogram(
    scores: np.ndarray[Any, np.dtype[Any]],
    *,
    threshold: float | None = None,
    title: str = "",
    of: str = "draws",
    unit: str = "nats",
    size: tuple[int, int] = (720, 360),
) -> Image.Image:
    """How scores are distributed, and which of them the filter drops.

    Args:
        scores: [N].
        threshold: highest accepted score; None if there is no filter.
        title: first line.
        of: "draws" that the filter has not seen, or "samples" that it has accepted.
        unit: of the scores; empty for none.
        size: (width, height), pixels.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> histogram(np.array([0.1, 0.2, 0.4]), threshold=0.3, title="demo").size
        (720, 360)
    """
    limit = "" if threshold is None else f"{threshold:.4g} {unit}".rstrip()
    figure = blank_figure(size)
    axes = figure.add_subplot()
    highest = float(scores.max()) if scores.max() > 0 else 1.0
    edges = _bins(highest, min(60, max(10, int(len(scores) ** 0.5) * 2)), threshold)
    counts = np.histogram(scores, edges)[0]
    colors = [KEPT if threshold is None or low < threshold else DROPPED for low in edges[:-1]]
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colors, edgecolor="white", linewidth=0.7)
    axes.set_xlim(0, 1.01 * float(edges[-1]))  # room for a line at the end
    line = f"{len(scores)} {of}, {'no filter' if threshold is None else f'threshold {limit}'}"
    if threshold is not None and threshold <= float(edges[-1]):
        axes.axvline(threshold, color=INK, linewidth=1.5)
        dropped = float((scores > threshold).mean())
        line = f"threshold {limit}: {dropped:.1%} of {len(scores)} draws are more uncertain and dropped"
        if of != "draws":
            line = f"{len(scores)} {of}, all at or below the threshold of {limit}"
    axes.set_title(f"{title}\n{line}".strip(), loc="left", fontsize=10, color=INK, linespacing=1.5)
    axes.set_xlabel(f"uncertainty score ({unit})" if unit else "uncertainty score")
    axes.set_ylabel(f"number of {of}")
    axes.yaxis.set_major_locator(_whole_numbers())
    axes.grid(axis="y", color=GRID)
    plain(axes)
    return rendered(figure)


def tally_bars(
    columns: Mapping[str, Sequence[float]], target: Target, *, title: str = "", width: int = 720
) -> Image.Image:
    """A row for each thing that a target counts (such as classes), with a bar in its color for each column.

    Args:
        columns: heading -> one share (0-1) for each of ``target.tally_names``; NaN is shown as "none".
        target: names and colors.
        title: first line.
        width: pixels.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> schema = LabelSchema(("background", "face"))
        >>> tally_bars({"images with this class": [1.0, 0.8]}, schema).width
        720
    """
    names, colors = target.tally_names, [tuple(v / 255 for v in color) for color in target.tally_colors]
    figure = blank_figure((width, 90 + 24 * len(names)))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=INK)
    for k, (heading, values) in enumerate(columns.items()):
        axes = figure.add_subplot(1, len(columns), k + 1)
        shares = np.array(values, dtype=np.float64)
        bars = axes.barh(range(len(names)), np.nan_to_num(shares), 0.7, color=colors, edgecolor=INK, linewidth=0.6)
        axes.bar_label(bars, [" none" if np.isnan(v) else f" {v:.1%}" for v in shares], fontsize=9, color=INK)
        axes.set_xlim(0, 1.25 * max(float(np.nanmax(np.nan_to_num(shares))), 0.01))  # room for the numbers
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_yticks(range(len(names)), names if k == 0 else [""] * len(names))
        axes.set_xticks([])
        axes.tick_params(left=False)
        axes.set_title(heading, loc="left", fontsize=9, color=INK)
        plain(axes)
        axes.spines["bottom"].set_visible(False)
    return rendered(figure)


def blank_figure(size: tuple[int, int]) -> Figure:
    """A white figure of (width, height) pixels.

    Raises:
        ImportError: matplotlib is not installed.
    """
    check_installed()
    from matplotlib.figure import Figure

    figure = Figure((size[0] / _DPI, size[1] / _DPI), dpi=_DPI, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08)
    return figure


def plain(axes: Axes) -> None:
    """Axes without a frame at the top and at the right."""
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def rendered(figure: Figure) -> Image.Image:
    """The pixels of a figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _bins(highest: float, count: int, threshold: float | None) -> np.ndarray[Any, np.dtype[Any]]:
    """Edges of about `count` equal bins over 0 … highest; none of them lies on both sides of the threshold."""
    reach = highest * 1.02
    step = reach / count
    if threshold is None or not step <= threshold <= reach:
        return np.linspace(0, reach, count + 1)
    edge = float(np.nextafter(threshold, np.inf))  # a bin holds its lower edge, the filter accepts the threshold itself
    step = edge / max(1, round(edge / step))
    return np.concatenate([np.linspace(0, edge, round(edge / step) + 1), np.arange(edge + step, highest + step, step)])


def _whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)
