"""Finished cells -> one report, its Markdown table, and a picture of predictions."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from dsgan_datasets import LabelSchema
from dsgan_datasets.pictures import photo, sheet

from .cells import LATER, read_arrays, read_cell, read_json
from .rows import GAPS, ROWS, Row

Report = dict[str, Any]
#: Of a report, beside its rows and gaps.
CONFIGURATION = ("schema", "student", "width", "precision", "size", "steps", "batch_size", "hardware")
#: How many times as many steps the last trial and the seeds have as the other trials; older results do not say it.
LONGER = 2
FULL_FLOOR = 0.8  # mean IoU of full supervision at 128 pixels


def collect(cells: Path) -> Report:
    """The report of a folder of cells.

    Raises:
        ValueError: the folder holds no finished cell, or a damaged one.
    """
    rows, gaps = finished(cells, ROWS, "seed"), finished(cells, GAPS, "gap")
    for name, row in rows.items():
        row["trials"] = _trials(cells, name)
    if not rows and not gaps:
        raise ValueError(f"{cells} holds no finished cell (ROW.seed-N.json, ROW.gap-N.json): run the benchmark first")
    configuration = read_json(cells / "configuration.json", CONFIGURATION, "run the benchmark with another --out")
    parts = cells / "parts.json"
    counted = read_json(parts, (), "delete it, and run `parts` again") if parts.exists() else {}
    return _whole({**configuration, "rows": rows, "gaps": gaps, "parts": counted}, cells / "configuration.json")


def joined(report: Report, more: Report) -> Report:
    """A report with the rows of another run of the same configuration, which replace those of the same name.

    Raises:
        ValueError: another configuration. Hardware and fingerprint may differ: a new format of checkpoints changes the
            fingerprint of the same weights. Either may be without a checkpoint.
    """
    decisive = [name for name in CONFIGURATION if name not in ("hardware", "schema")]
    changed = [name for name in decisive if report[name] != more[name]]
    if longest(report) != longest(more):
        changed.append("longer")
    if len({each["checkpoint"] for each in (report, more) if "checkpoint" in each}) > 1:
        changed.append("checkpoint")
    if _classes(report) != _classes(more):
        changed.append("classes")
    if changed:
        raise ValueError(f"the cells have another {', '.join(changed)} than the report they are added to")
    rows = {**report["rows"], **more["rows"]}
    checkpoint = {name: more[name] for name in LATER if name in more}
    return {**checkpoint, **report, "rows": {name: rows[name] for name in ROWS if name in rows}}


def longest(report: Report) -> int:
    """Steps of the longest trainings."""
    steps: int = report["steps"] * report.get("longer", LONGER)
    return steps


def read_report(path: Path, needed: Sequence[str] = (*CONFIGURATION, "rows", "gaps")) -> Report:
    """A report that `collect` made; to be compared with (`comparison`) it need only have rows and gaps.

    Raises:
        ValueError: it is none.
    """
    report = read_json(path, needed, "it is not a result of this benchmark")
    return _whole(report, path) if "size" in needed else report


def _whole(report: Report, path: Path) -> Report:
    """A report that names its checkpoint, if one of its rows needs one; else a ValueError."""
    generated = [name for name in report["rows"] if name in ROWS and ROWS[name].checkpoint] + list(report["gaps"])
    lacking = [key for key in LATER if key not in report]
    if lacking and (generated or len(lacking) < len(LATER)):
        raise ValueError(f"{path} lacks {', '.join(lacking)}: it does not say what made the generated samples")
    return report


def finished(cells: Path, rows: dict[str, Row], kind: str) -> dict[str, Any]:
    """Rows of which at least one cell ROW.KIND-N.json is there."""
    found = {name: [read_cell(path) for path in sorted(cells.glob(f"{name}.{kind}-*.json"))] for name in rows}
    return {
        name: {
            "title": rows[name].title.format(renders=f"{done[0]['renders']:,}"),
            "settings": done[0]["settings"],
            "seeds": done,
        }
        for name, done in found.items()
        if done
    }


def _trials(cells: Path, row: str) -> list[dict[str, Any]]:
    """Settings of the row's search, with their mean IoU on validation."""
    tried = [read_cell(path) for path in sorted(cells.glob(f"{row}.search-*.json"))]
    return [{"settings": cell["settings"], "mean": cell["iou"][""]["mean"]} for cell in tried]


def markdown(report: Report) -> str:
    """The tables of rows and gaps: mean IoU and IoU of each class in %, mean ± standard deviation over the seeds."""
    lines = [_sizes(report)]
    if report["rows"]:
        lines += ["", *_table(report, report["rows"])]
        lines += ["", " ".join(f"{floor}." for floor in floors(report)), ""]
        chosen = (f"`{name}` {_chosen(row)}" for name, row in report["rows"].items())
        lines.append("Chosen on validation: " + "; ".join(chosen) + ".")
    for name, row in report["rows"].items():
        if facts := row["seeds"][0].get("facts"):
            lines += ["", f"`{name}`: {', '.join(f'{fact} {value:g}' for fact, value in facts.items())}."]
    if report["gaps"]:
        settings = _settings(next(iter(report["gaps"].values()))["settings"])
        lines += ["", f"From full supervision to the stream, on validation, every row with {settings}:", ""]
        lines += _table(report, report["gaps"])
    if report.get("parts"):
        lines += ["", "How often a part is seen (% of the images) and how large it is (% of all pixels):", ""]
        lines += _parts_table(report)
    return "\n".join(lines)


def comparison(before: Report, now: Report) -> str:
    """Mean IoU in % of the rows and gaps that two reports have in common, such as those of two checkpoints."""
    lines = ["| trained on | measured on | before | now |", "|---|---|---|---|"]
    for part, measured_on in (("rows", "test"), ("gaps", "validation")):
        lines += [
            f"| {row['title']} | {measured_on} | {spread(_means(before[part][name]))} | **{spread(_means(row))}** |"
            for name, row in now[part].items()
            if name in before[part]
        ]
    return "\n".join(lines)


def _table(report: Report, rows: dict[str, Any]) -> list[str]:
    classes = _classes(report)
    lines = ["| trained on | seeds | mean IoU | " + " | ".join(classes) + " |", "|---|" + "---|" * (len(classes) + 2)]
    for row in rows.values():
        for variant in row["seeds"][0]["iou"]:
            title = row["title"] + (f"; {variant}" if variant else "")
            measured = [cell["iou"][variant] for cell in row["seeds"]]
            cells = [f"**{spread([m['mean'] for m in measured])}**"]
            cells += [spread([m["classes"][i] for m in measured]) for i in range(len(classes))]
            lines.append(f"| {title} | {len(measured)} | " + " | ".join(cells) + " |")
    return lines


class Floor(NamedTuple):
    """What says that an implementation, not a method, is at fault; `held` is None if this report cannot tell."""

    text: str
    held: bool | None

    def __str__(self) -> str:
        return f"Floor {({True: 'held', False: 'missed', None: 'not checked'})[self.held]}: {self.text}"


def floors(report: Report) -> list[Floor]:
    """The floors of the rows that a report has, in the order of the table."""
    mean = {name: statistics.mean(_means(row)) for name, row in report["rows"].items()}
    found = []
    for semi, few in (("semi", "few"), ("semi-real", "few-real")):
        if semi in mean and few in mean:
            found.append(
                Floor(f"{semi} ({mean[semi]:.3f}) is not worse than {few} ({mean[few]:.3f})", mean[semi] >= mean[few])
            )
    if "full" in mean:
        text, size = f"full supervision ({mean['full']:.3f}) reaches {FULL_FLOOR} at 128²", report["size"]
        held = mean["full"] >= FULL_FLOOR if size == 128 else None
        found.append(Floor(text if size == 128 else f"{text}, this is {size}²", held))
    return found


def _parts_table(report: Report) -> list[str]:
    """One line each whose masks: presence / area by class."""
    classes = _classes(report)
    lines = ["| in | images | " + " | ".join(classes) + " |", "|---|" + "---|" * (len(classes) + 1)]
    for part in report["parts"].values():
        cells = (f"{100 * p:.0f} / {100 * a:.2f}" for p, a in zip(part["present"], part["area"], strict=True))
        lines.append(f"| {part['title']} | {part['images']:,} | " + " | ".join(cells) + " |")
    return lines


def fill(page: Path, name: str, text: str) -> None:
    """Replace what stands between the marks of a table on a page of the documentation.

    Raises:
        ValueError: the page has no such marks.
    """
    begin, end = f"<!-- table {name} -->\n", f"<!-- end of {name} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page} lacks the lines {begin.strip()} and {end}: the table goes between them")
    page.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")


def picture(cells: Path, report: Report) -> Image.Image:
    """Some test images: image, truth, and what the first seed of every row predicts."""
    schema = LabelSchema.from_dict(report["schema"])
    examples = read_arrays(cells / "examples.npz")
    images, truth = examples["images"], examples["masks"]
    columns = {"truth": truth}
    for name, row in report["rows"].items():
        columns[name] = read_arrays(cells / f"{name}.seed-{row['seeds'][0]['seed']}.npy")["masks"]
    pictures, captions = [], []
    for i, image in enumerate(images):
        pixels = torch.from_numpy(image)
        pictures.append([photo(pixels)])
        captions.append("image")
        for name, masks in columns.items():
            pictures.append([schema.draw(photo(pixels), torch.from_numpy(masks[i]), opacity=0.8)])
            captions.append(name)
    title = f"Test renders of {report['size']} pixels, student {report['student']}"
    return sheet(pictures, captions, title, schema, columns=len(columns) + 1)


def _classes(report: Report) -> list[str]:
    return [entry["name"] for entry in report["schema"]["classes"]]


def _means(row: dict[str, Any]) -> list[float]:
    return [cell["iou"][""]["mean"] for cell in row["seeds"]]


def _sizes(report: Report) -> str:
    return (
        f"{report['size']}² pixels, student {report['student']}"
        + (f" (width {report['width']})" if report["student"] == "unet" else "")
        + f" in {report['precision']}"
        + f", at most {longest(report):,} steps of {report['batch_size']} images, "
        f"{named_checkpoint(report)}, {report['hardware']}; IoU in %, mean ± standard deviation over the seeds."
    )


def named_checkpoint(report: Report) -> str:
    """The checkpoint that made the generated samples, if any row saw some."""
    if "checkpoint" not in report:
        return "no checkpoint"
    return f"checkpoint {report['checkpoint']} ({report['fingerprint'][:8]})"


def _settings(settings: dict[str, Any]) -> str:
    return f"rate {settings['learning_rate']:g}, {settings['steps']:,} steps, {settings['augmentation']} augmentation"


def _chosen(row: dict[str, Any]) -> str:
    of = row["seeds"][0].get("settings_of")
    return f"not searched, as `{of}`" if of else _settings(row["settings"])


def spread(values: Sequence[float | None]) -> str:
    """In %; a dash for a class that neither truth nor predictions hold."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "–"
    return f"{statistics.mean(known):.1f}" + (f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else "")
