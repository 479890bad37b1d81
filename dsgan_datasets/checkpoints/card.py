"""The model card that is written when nobody wrote one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dsgan_datasets.checkpoints.fit_report import FitReport
from dsgan_datasets.recipe import Recipe

#: Pictures that may lie beside a card, and what they show.
PICTURES = {
    "preview.png": "Samples: image, mask, uncertainty",
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
    return f"""# {fit.title if fit else "Labeled-image generator"}
{f"{chr(10)}{fit.description}{chr(10)}" if fit and fit.description else ""}
Generator: {generator["architecture"]}, {"×".join(map(str, image_size(generator)))}. {_labels_from(config["parts"])}
Truncation psi {config["recipe"]["sampling"]["truncation_psi"]}. License: {config["license"]}.

{_picture("preview.png", pictures)}{_filtering(config)}

{_picture("calibration.png", pictures)}## Classes

{_class_tables(config["targets"], fit, (config["calibration"] or {}).get("dropped_by_class") or {})}
{_fitting(fit) if fit else ""}
Fingerprint: `{config["fingerprint"]}`
"""


def _picture(name: str, present: Collection[str]) -> str:
    return f"![{PICTURES[name]}]({name})\n\n" if name in present else ""


def _labels_from(parts: Mapping[str, Any]) -> str:
    if "interpreter" not in parts:
        return "It makes its labels itself."
    config = parts["interpreter"]["config"]
    facts = [f"{name} {value}" for name, value in config.items() if isinstance(value, int)]
    return f"Interpreter: {config['architecture']} ({', '.join(facts)}) on {sum(config['channels'])} features."


def _filtering(config: Mapping[str, Any]) -> str:
    calibration, recipe = config["calibration"], Recipe.from_dict(config["recipe"])
    ignored = ""
    if (level := recipe.labeling.max_uncertainty) is not None:
        ignored = f" Pixels more uncertain than {level:.4g} nats are ignored."
    if calibration is None or recipe.filter is None or recipe.filter.threshold is None:
        return "Not calibrated." + ignored
    share = f"{calibration['acceptance']:.1%} {'of the view groups ' if recipe.group_size > 1 else ''}pass all rules"
    return (
        f"The most uncertain {recipe.filter.reject_fraction:.0%} are dropped: score above "
        f"{recipe.filter.threshold:.5g} ± {calibration['standard_error']:.2g} nats "
        f"({calibration['num_samples']} draws; {share}).{ignored}"
    )


def _class_tables(targets: Sequence[Mapping[str, Any]], fit: FitReport | None, dropped: Mapping[str, float]) -> str:
    """A table for each target that has classes, a line for each other one."""
    return "\n\n".join(
        _class_table(target["classes"], fit, dropped) if "classes" in target else f"{target['field']}: {target['kind']}"
        for target in targets
    )


def _class_table(classes: Sequence[Mapping[str, Any]], fit: FitReport | None, dropped: Mapping[str, float]) -> str:
    """Rows of classes; `dropped` is the share of the draws that hold a class and are too uncertain."""
    iou = fit.iou if fit else {}
    heading = "| id | class | color |" + (" IoU |" if iou else "") + (" dropped |" if dropped else "")
    rows = [heading, "|---|---|---|" + ("---|" if iou else "") + ("---|" if dropped else "")]
    for i, entry in enumerate(classes):
        value = ""
        if iou:  # of the classes that were annotated: merged ones have none
            share = iou.get(entry["name"])
            value = f" {share:.2f} |" if share is not None else " not annotated |" if entry["name"] in iou else " |"
        if dropped:
            share = dropped.get(entry["name"])
            value += " |" if share is None else f" {share:.0%} |"
        rows.append(f"| {i} | {_cell(entry['name'])} | `#{bytes(entry['color']).hex()}` |{value}")
    return "\n".join(rows)


def _fitting(fit: FitReport) -> str:
    quality = ""
    if fit.mean_iou is not None:
        accuracy = "" if fit.pixel_accuracy is None else f", pixel accuracy {fit.pixel_accuracy:.3f}"
        quality = (
            f"\nHeld out: mean IoU {fit.mean_iou:.3f}{accuracy}. Each image was labeled by an ensemble fitted\n"
            f"without it ({fit.folds} folds); the interpreter here has seen all of them. With so few images these are "
            "estimates.\n"
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


def _cell(value: object) -> str:
    """Text that stays in its cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")
