"""The model card that is written when nobody wrote one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


def generator_card(config: Mapping[str, Any]) -> str:
    """README.md of a generator without interpreter, from its config."""
    generator, source = config["generator"], config["source"]
    side = generator["img_resolution"]
    origin = f"Read from {source['file']} ({source['dialect']})." if source else "Where it came from is not recorded."
    notes = "".join(f"- {note}\n" for note in source["notes"]) if source else ""
    hashed = f"\nSHA-256 of that file: `{source['sha256']}`\n" if source else ""
    return f"""# Image generator

{generator["architecture"]}, {side}×{side}. Licence: {config["license"]}. {origin}

{notes}{hashed}"""


def model_card(config: Mapping[str, Any], fit: FitReport | None = None, pictures: Collection[str] = ()) -> str:
    """README.md of a checkpoint.

    Args:
        config: content of its config.json.
        fit: how its interpreter was fitted, if that is known.
        pictures: which of preview.png and calibration.png lie beside the card.
    """
    generator, interpreter, recipe = config["generator"], config["interpreter"], config["recipe"]
    side = generator["img_resolution"]
    return f"""# {fit.title if fit else "Labelled-image generator"}

Generator: {generator["architecture"]}, {side}×{side}. Interpreter: {interpreter["members"]} pixel classifiers on
{interpreter["in_channels"]} features. Truncation psi {recipe["psi"]}. Licence: {config["license"]}.

{_picture("preview.png", "Samples: image, mask, uncertainty", pictures)}{_filtering(config)}

{_picture("calibration.png", "Scores of the draws, and the threshold", pictures)}## Classes

{_class_table(config["schema"]["classes"], fit)}
{_fitting(fit, interpreter) if fit else ""}
Fingerprint: `{config["fingerprint"]}`
"""


@dataclass(frozen=True)
class FitReport:
    """What a card says about the fitting.

    Attributes:
        title: heading of the card.
        num_images: annotated images.
        folds: of the held-out check; 0 if there was none.
        pixel_accuracy: held out; None without the check.
        iou: held out, of each class; NaN for a class that occurs nowhere. None without the check.
        settings: of the training, name -> value.
        generator: where it was loaded from.
    """

    title: str
    num_images: int
    folds: int
    pixel_accuracy: float | None
    iou: Sequence[float] | None
    settings: Mapping[str, Any]
    generator: str


def _picture(name: str, text: str, pictures: Collection[str]) -> str:
    return f"![{text}]({name})\n\n" if name in pictures else ""


def _filtering(config: Mapping[str, Any]) -> str:
    calibration, recipe = config["calibration"], config["recipe"]
    ignored = ""
    if (level := recipe.get("ignore_js")) is not None:
        ignored = f" Pixels more uncertain than {level:.4g} nats are {config['schema']['ignore_index']} (ignored)."
    if calibration is None:
        return "Not calibrated." + ignored
    share = f"{calibration['acceptance']:.1%} {'of the view groups ' if recipe['views'] > 1 else ''}pass all rules"
    return (
        f"The most uncertain {calibration['reject_fraction']:.0%} are dropped: score above "
        f"{calibration['threshold']:.5g} ± {calibration['standard_error']:.2g} nats "
        f"({calibration['num_samples']} draws; {share}).{ignored}"
    )


def _class_table(classes: Sequence[Mapping[str, Any]], fit: FitReport | None) -> str:
    iou = fit.iou if fit else None
    heading = "| id | class | colour |" + (" IoU |" if iou else "")
    rows = [heading, "|---|---|---|" + ("---|" if iou else "")]
    for i, entry in enumerate(classes):
        value = "" if not iou else f" {iou[i]:.2f} |" if iou[i] == iou[i] else " not annotated |"
        rows.append(f"| {i} | {entry['name']} | {entry['color']} |{value}")
    return "\n".join(rows)


def _fitting(fit: FitReport, interpreter: Mapping[str, Any]) -> str:
    known = [value for value in fit.iou or () if value == value]
    quality = ""
    if known:
        quality = (
            f"\nHeld out: mean IoU {sum(known) / len(known):.3f}, pixel accuracy {fit.pixel_accuracy:.3f}. "
            f"Each image was labelled by an ensemble fitted\nwithout it ({fit.folds} folds); the interpreter here has "
            "seen all of them. With so few images these are estimates.\n"
        )
    settings = "\n".join(f"| {name} | {value} |" for name, value in fit.settings.items())
    return f"""{quality}
## How it was made

Fitted on {fit.num_images} annotated images of the generator `{fit.generator}`.

| setting | value |
|---|---|
{settings}
"""
