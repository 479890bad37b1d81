"""The model card that is written when nobody wrote one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dsgan_datasets.checkpoints.fit_report import Figures, FitReport
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.base import target_from_dict

#: Pictures that may lie beside a card, and what they show.
PICTURES = {
    "preview.png": "Samples: image, {labels}, uncertainty",
    "calibration.png": "Scores of the draws, and the threshold",
}


def image_size(generator: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of a generator's images, from its section of a config.json."""
    height, width = generator.get("img_size") or [generator["img_resolution"]] * 2
    return height, width


def generator_card(config: Mapping[str, Any]) -> str:
    """README.md of a generator without interpreter, from its config."""
    generator, source = config["parts"]["generator"]["config"], config["provenance"]
    origin = f"Read from {source['file']} ({source['dialect']})." if source else "Where it came from is not recorded."
    notes = "".join(f"- {note}\n" for note in source["notes"]) if source else ""
    hashed = f"\nSHA-256 of that file: `{source['sha256']}`\n" if source else ""
    return f"""# Image generator

{generator["architecture"]}, {"×".join(map(str, image_size(generator)))}. License: {config["license"]}. {origin}

{notes}{hashed}"""


def model_card(config: Mapping[str, Any], pictures: Collection[str] = ()) -> str:
    """README.md of a checkpoint.

    Args:
        config: content of its config.json.
        pictures: which of `PICTURES` lie beside the card.
    """
    generator = config["parts"]["generator"]["config"]
    fit = FitReport.from_dict(config["fit"]) if config["fit"] else None
    shown = ", ".join(target_from_dict(target).field for target in config["targets"])
    return f"""# {fit.title if fit else "Labeled-image generator"}
{f"{chr(10)}{fit.description}{chr(10)}" if fit and fit.description else ""}
Generator: {generator["architecture"]}, {"×".join(map(str, image_size(generator)))}. {_labels_from(config["parts"])}
Truncation psi {config["recipe"]["sampling"]["truncation_psi"]}. License: {config["license"]}.

{_picture("preview.png", pictures, shown)}{_filtering(config)}

{_picture("calibration.png", pictures, shown)}{_labels(config["targets"], fit, config["calibration"] or {})}
{_fitting(fit) if fit else ""}
Fingerprint: `{config["fingerprint"]}`
"""


def _picture(name: str, present: Collection[str], labels: str) -> str:
    return f"![{PICTURES[name].format(labels=labels)}]({name})\n\n" if name in present else ""


def _labels_from(parts: Mapping[str, Any]) -> str:
    interpreters = [part["config"] for name, part in parts.items() if name.startswith("interpreter")]
    if not interpreters:
        return "It makes its labels itself."
    sentences = []
    for config in interpreters:
        facts = [f"{name} {value}" for name, value in config.items() if type(value) in (int, float)]
        sentences.append(
            f"Interpreter: {config['architecture']} ({', '.join(facts)}) on {sum(config['channels'])} features."
        )
    return "\n".join(sentences)


def _filtering(config: Mapping[str, Any]) -> str:
    calibration, recipe = config["calibration"], Recipe.from_dict(config["recipe"])
    ignored = ""
    if (level := recipe.labeling.max_uncertainty) is not None:
        ignored = f" Pixels more uncertain than {level:.4g} nats are ignored."
    dropped = []
    if recipe.threshold is not None:
        error = f" ± {calibration['standard_error']:.2g}" if calibration else ""
        unit = " nats" if any("classes" in target for target in config["targets"][:1]) else ""
        dropped.append(f"{recipe.reject_fraction:.0%}: score above {recipe.threshold:.5g}{error}{unit}")
    dropped += [
        f"{score.reject_fraction:.0%} by {score.field}: score above {score.threshold:.5g}"
        for score in recipe.scores
        if score.threshold is not None
    ]
    if calibration is None or not dropped:
        return "Not calibrated." + ignored
    share = f"{calibration['acceptance']:.1%} {'of the view groups ' if recipe.group_size > 1 else ''}pass all rules"
    return (
        f"The most uncertain draws are dropped, {', '.join(dropped)} ({calibration['num_samples']} draws; {share})."
        f"{ignored}"
    )


def _labels(targets: Sequence[Mapping[str, Any]], fit: FitReport | None, calibration: Mapping[str, Any]) -> str:
    """A section for each target: what its parts are, and how good each was found to be."""
    sections = []
    for number, target in enumerate(targets):
        figures = (fit.quality if fit else {}).get(target["field"], Figures({}))
        dropped = {} if number else calibration.get("dropped_by_class") or {}
        sections.append(_label(target, figures, dropped))
    return "\n\n".join(sections)


def _label(target: Mapping[str, Any], figures: Figures, dropped: Mapping[str, float]) -> str:
    """Heading and table of one target; `dropped` is the share of the draws that hold a part and are too uncertain."""
    known = target_from_dict(target)
    if "classes" in target:
        title, what, parts = "Classes", "class", [(e["name"], _color(e["color"])) for e in target["classes"]]
    elif "names" in target:
        title, what = "Keypoints", "point"
        parts = [(n, _color(c)) for n, c in zip(known.tally_names, known.tally_colors, strict=True)]
    else:
        title, what = target["field"].capitalize(), "channel"
        parts = [(name, "") for name in next(iter(figures.by_name.values()), {})]
    if not parts:
        return f"## {title}\n\n{_cell(known.summary)}"
    headings = ["id", what, "color", *figures.by_name, *(["dropped"] if dropped else [])]
    rows = [headings, ["---"] * len(headings)]
    for i, (name, color) in enumerate(parts):
        # Of the parts that were annotated: merged ones have no figures.
        values = ["" if name not in column else _number(column[name]) for column in figures.by_name.values()]
        share = [""] * bool(dropped) if dropped.get(name) is None else [f"{dropped[name]:.0%}"]
        rows.append([str(i), _cell(name), color, *values, *share])
    return f"## {title}\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _number(value: float | None) -> str:
    return "not annotated" if value is None else f"{value:.3g}" if abs(value) >= 100 else f"{value:.2f}"


def _color(color: Sequence[int]) -> str:
    return f"`#{bytes(color).hex()}`"


def _fitting(fit: FitReport) -> str:
    quality = ""
    if fit.quality:
        found = "".join(f"- {field}: {_summary(figures)}\n" for field, figures in fit.quality.items())
        quality = (
            f"\nHeld out:\n\n{found}\nEach image was labeled by interpreters fitted without it ({fit.folds} folds); "
            "those here have seen\nall of them. With so few images these are estimates.\n"
        )
    settings = "\n".join(
        f"| {_cell(name)} | {_cell(value)} |" for name, value in fit.settings.items() if value is not None
    )
    return f"""{quality}
## How it was made

Fitted on {fit.num_images} annotated images of the generator `{fit.generator}`.

| setting | value |
|---|---|
{settings}
"""


def _summary(figures: Figures) -> str:
    known = {name: value for name, value in figures.summary.items() if value is not None}
    return ", ".join(f"{name} {value:.3f}" for name, value in known.items())


def _cell(value: object) -> str:
    """Text that stays in its cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")
