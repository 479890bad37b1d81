"""The model card that is written when nobody wrote one."""

from __future__ import annotations

from collections.abc import Mapping
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


def model_card(config: Mapping[str, Any]) -> str:
    """README.md of a checkpoint, from its config."""
    generator, interpreter, recipe = config["generator"], config["interpreter"], config["recipe"]
    calibration = config["calibration"]
    side = generator["img_resolution"]
    classes = "\n".join(f"| {i} | {c['name']} | {c['color']} |" for i, c in enumerate(config["schema"]["classes"]))
    if calibration is None:
        filtering = "Not calibrated."
    else:
        filtering = (
            f"The most uncertain {calibration['reject_fraction']:.0%} are dropped: score above "
            f"{calibration['threshold']:.5g} ± {calibration['standard_error']:.2g} nats "
            f"({calibration['num_samples']} draws; {calibration['acceptance']:.1%} pass all rules)."
        )
    return f"""# Labelled-image generator

Generator: {generator["architecture"]}, {side}×{side}. Interpreter: {interpreter["members"]} pixel classifiers on
{interpreter["in_channels"]} features. Truncation psi {recipe["psi"]}. Licence: {config["license"]}.

{filtering}

| id | class | colour |
|---|---|---|
{classes}

Fingerprint: `{config["fingerprint"]}`
"""
