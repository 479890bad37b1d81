"""How many images would a person have to label to do as well as the stream? Reports of several students -> the answer.

A student is trained on 16, 30, … exactly labeled renders, and on the stream, which has seen 16 labels. The answer is
the number of labels at which the first curve reaches the height of the second.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from PIL import Image

from dsgan_datasets.charts import DROPPED, GRID, INK, KEPT, blank_figure, plain, rendered

from .rows import ANNOTATED, CURVE
from .students import STUDENTS
from .table import Report, longest, named_checkpoint, spread

STREAM = "ours"
_SHOWN = {*CURVE.values(), STREAM}
SIZE = (1000, 520)  # pixels of the picture, of two students


def labels_worth(curve: Mapping[int, float], stream: float) -> float:
    """Number of labels at which a curve first reaches the stream; 0 if it begins above, infinite if it stays below.

    Between two numbers IoU is linear in the logarithm of the number. Where chance lets a curve cross the stream more
    than once, the first crossing counts: it claims least.

    Example:
        >>> round(labels_worth({16: 0.6, 64: 0.8}, 0.7))
        32
    """
    counts = sorted(curve)
    if curve[counts[0]] >= stream:
        return counts[0] if curve[counts[0]] == stream else 0.0
    for low, high in pairwise(counts):
        if curve[high] >= stream:
            share = (stream - curve[low]) / (curve[high] - curve[low])
            return low * (high / low) ** share
    return math.inf


def said(labels: float) -> str:
    """What `labels_worth` found, with its limits.

    Example:
        >>> [said(labels) for labels in (0.0, 57.3, math.inf)]
        ['fewer than 16', '57', 'more than 256']
    """
    if labels == 0:
        return f"fewer than {min(CURVE)}"
    return f"more than {max(CURVE)}" if math.isinf(labels) else f"{labels:.0f}"


def answer(report: Report) -> str | None:
    """The number of labels by the means over the seeds, and the range of single seeds; None if rows are missing."""
    rows = report["rows"]
    if missing_rows(report):
        return None
    means = {count: statistics.mean(by_seed(rows[name]).values()) for count, name in CURVE.items()}
    text = said(labels_worth(means, statistics.mean(by_seed(rows[STREAM]).values())))
    seeds = set.intersection(*(set(by_seed(rows[name])) for name in (*CURVE.values(), STREAM)))
    single = sorted(
        labels_worth({count: by_seed(rows[name])[seed] for count, name in CURVE.items()}, by_seed(rows[STREAM])[seed])
        for seed in seeds
    )
    if len(single) < 2:
        return text
    low, high = said(single[0]), said(single[-1])
    return f"{text} ({f'all {low}' if low == high else f'{low} to {high}'}, {len(single)} seeds)"


def missing_rows(report: Report) -> list[str]:
    """Rows that the answer needs and that have no finished cell."""
    return [name for name in (*CURVE.values(), STREAM) if name not in report["rows"]]


def by_seed(row: dict[str, Any]) -> dict[int, float]:
    """Mean IoU of a row by seed."""
    return {cell["seed"]: cell["iou"][""]["mean"] for cell in row["seeds"]}


def markdown(reports: Sequence[Report]) -> str:
    """A line for each student: mean IoU in % by the number of labels, that of the stream, and the answer.

    Raises:
        ValueError: reports that do not compare, or without any of these rows.
    """
    _check_comparable(reports)
    lines = ["| student | " + " | ".join(f"{count} labels" for count in CURVE)]
    lines[0] += f" | stream after {ANNOTATED} labels | which is worth, in labels |"
    lines.append("|---|" + "---|" * (len(CURVE) + 2))
    for report in reports:
        rows = report["rows"]
        cells = [spread(list(by_seed(rows[row]).values())) if row in rows else "–" for row in (*CURVE.values(), STREAM)]
        cells[-1] = f"**{cells[-1]}**"
        lines.append(f"| {STUDENTS[report['student']]} | {' | '.join(cells)} | {answer(report) or 'not finished'} |")
    report = next((report for report in reports if "checkpoint" in report), reports[0])
    seeds = max(len(row["seeds"]) for report in reports for name, row in report["rows"].items() if name in _SHOWN)
    about = (
        f"{report['size']}² pixels, at most {longest(report):,} steps of {report['batch_size']} images, "
        f"{named_checkpoint(report)}, {report['hardware']}; mean IoU on the test renders in %, mean ± standard "
        f"deviation over {seeds} seed{'s' * (seeds > 1)}."
    )
    return "\n".join([*lines, "", about])


def _check_comparable(reports: Sequence[Report]) -> None:
    for report in reports:
        if not _SHOWN & report["rows"].keys():
            names = ", ".join((*CURVE.values(), STREAM))
            raise ValueError(f"the result of student {report['student']} has none of the rows {names}")
        changed = [name for name in ("size", "steps", "batch_size") if report[name] != reports[0][name]]
        if longest(report) != longest(reports[0]) and not changed:
            changed.append("longer")
        if changed:
            raise ValueError(f"the results differ in {', '.join(changed)}: their curves cannot be compared")
    if len({report["fingerprint"] for report in reports if "fingerprint" in report}) > 1:
        raise ValueError("the results are of different checkpoints: their streams cannot be compared")
    if len({report["student"] for report in reports}) < len(reports):
        raise ValueError("two results are of the same student: give one of each kind")


def draw_curve(reports: Sequence[Report]) -> Image.Image:
    """A panel for each student: the curve, the stream, and the place where they meet.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: as `markdown`.
    """
    _check_comparable(reports)
    figure = blank_figure((SIZE[0] * (1 + len(reports)) // 3, SIZE[1]))
    figure.suptitle(
        f"A stream of generated images, taught with {ANNOTATED} labels: how many labels is it worth?",
        x=0.01, ha="left", fontsize=13, color=INK,
    )  # fmt: skip
    shared = None
    for column, report in enumerate(reports):
        axes = shared = figure.add_subplot(1, len(reports), column + 1, sharey=shared)
        axes.set_title(STUDENTS[report["student"]], loc="left", fontsize=10, color=INK)
        _panel(axes, report)
        if column == 0:
            axes.set_ylabel("agreement with the true labels (mean IoU, %)")
    named: dict[str, Any] = {}
    for axes in figure.axes:  # a curve that is not finished may lack either
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    figure.legend(named.values(), named, loc="outside lower left", ncols=2, frameon=False, fontsize=10)
    return rendered(figure)


def _panel(axes: Any, report: Report) -> None:
    rows = report["rows"]
    known = {
        count: [100 * value for value in by_seed(rows[name]).values()] for count, name in CURVE.items() if name in rows
    }
    means, errors = [statistics.mean(values) for values in known.values()], [_deviation(v) for v in known.values()]
    if known:
        axes.errorbar(
            list(known), means, errors, color=INK, marker="o", linewidth=2, capsize=4,
            label="trained on that many labeled images",
        )  # fmt: skip
    if STREAM in rows:
        values = [100 * value for value in by_seed(rows[STREAM]).values()]
        height, deviation = statistics.mean(values), _deviation(values)
        axes.axhspan(height - deviation, height + deviation, color=KEPT, alpha=0.2, linewidth=0)
        axes.axhline(height, color=KEPT, linewidth=2, label=f"trained on the stream after {ANNOTATED} labels")
        if not missing_rows(report):
            _mark(axes, labels_worth(dict(zip(known, means, strict=True)), height), height)
    axes.set_xscale("log")
    axes.set_xlim(min(CURVE) * 0.85, max(CURVE) * 1.18)
    axes.set_xticks(list(CURVE), [str(count) for count in CURVE])
    axes.minorticks_off()
    axes.margins(y=0.15)
    axes.set_xlabel("number of labeled images")
    axes.grid(color=GRID)
    plain(axes)


def _mark(axes: Any, labels: float, height: float) -> None:
    """The answer, at the place where curve and stream meet, or at the end that lies beyond."""
    inside = 0 < labels < math.inf
    at = labels if inside else (min(CURVE) if labels == 0 else max(CURVE))
    if inside:
        axes.axvline(at, color=DROPPED, linewidth=1.5, linestyle=":")
        axes.plot([at], [height], marker="o", markersize=9, color=DROPPED)
    left = at > math.sqrt(min(CURVE) * max(CURVE))  # above the curve; else below it, on its right
    axes.annotate(
        f"worth {'about ' if inside else ''}{said(labels)} labels",
        (at, height), xytext=(-12, 10) if left else (12, -10), textcoords="offset points",
        ha="right" if left else "left", va="bottom" if left else "top",
        fontsize=11, fontweight="bold", color=DROPPED,
    )  # fmt: skip


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
