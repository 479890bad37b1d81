"""What inversion is worth, on `demo-faces` and the test renders of its domain, which play the part of real photos.

Four questions: does it find images of the generator again (golden)? Does it notice what is not in the domain, and let
photos that are in it pass? How good are the labels of photos that it gives, against exact masks? And what do sixteen
photos with masks of their own teach an interpreter, in place of sixteen annotated samples?
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from measuring import cpu_name, progress, write_report
from PIL import Image
from segmentation.data import TEST, TRAIN, Labeled, read_renders
from segmentation.taught import as_photos, psnr, taught
from torch import Tensor
from wrong_domain import wrong_domain

from dsgan_datasets import LabeledGenerator, __version__, sample_latents
from dsgan_datasets.fitting.quality import ConfusionMatrix, count_pairs
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.inversion import (
    Inversion,
    InversionSettings,
    Inverter,
    inversion_sheet,
    invert_photos,
)
from dsgan_datasets.labelers.interpreted import InterpretedLabeler
from dsgan_datasets.pictures import save_png

GOLDEN, GOLDEN_START, TAUGHT = 16, 1_000_000, 16
#: What must hold; a run in which it does not writes nothing.
LEAST_PSNR, LEAST_AGREEMENT, LEAST_FLAGGED, MOST_FLAGGED = 30.0, 0.97, 0.95, 0.05

EXAMPLE = "example: python benchmarks/photos.py --domain DIR --out benchmarks/results/photos.json"

Result = dict[str, Any]
Invert = Callable[[Tensor], Inversion]


class Shown(NamedTuple):
    """Images with their names and inversions."""

    names: Sequence[str]
    images: Tensor
    found: Inversion

    def rows(self, rows: Sequence[int]) -> Shown:
        some = list(rows)
        found = Inversion(*(getattr(self.found, field.name)[some] for field in dataclasses.fields(Inversion)))
        return Shown([self.names[row] for row in some], self.images[some], found)


def picture(*groups: Shown) -> Image.Image:
    """Photo, reconstruction and difference of some images of each group."""
    names = [name for group in groups for name in group.names]
    images = torch.cat([group.images for group in groups])
    fields = [field.name for field in dataclasses.fields(Inversion)]
    found = Inversion(*(torch.cat([getattr(group.found, field) for group in groups]) for field in fields))
    return inversion_sheet(as_photos(names, images), found, title="demo-faces", columns=4)


def masks_of(labeler: Any, found: Inversion, recipe: Any) -> Tensor:
    """Labels where the inversions lie, int64 [N, H, W]."""
    return torch.cat([labeler.label(ws, recipe)["mask"] for ws in found.styles.split(8)])


def golden(labeled: LabeledGenerator, invert: Invert) -> Result:
    """Images that the generator made itself."""
    indices = range(GOLDEN_START, GOLDEN_START + GOLDEN)
    z = sample_latents(indices, labeled.generator.z_dim, seed=0)
    images, _ = synthesize(labeled.generator, labeled.recipe, z)
    found = invert(images)
    true = labeled.labeler.label(labeled.generator.mapping(z), labeled.recipe)["mask"]
    agreement = (masks_of(labeled.labeler, found, labeled.recipe) == true).float().mean((1, 2))
    decibels = psnr(found.images, images)
    return {
        "images": GOLDEN,
        "psnr_median": round(float(decibels.median()), 2),
        "psnr_least": round(float(decibels.min()), 2),
        "label_agreement_mean": round(float(agreement.mean()), 4),
        "label_agreement_least": round(float(agreement.min()), 4),
        "flagged": int((~found.trusted).sum()),
    }


def foreign(invert: Invert, size: int) -> tuple[Result, Shown]:
    """Images of noise, textures and other objects."""
    made = list(wrong_domain(2 * size))
    pictures = [each.resize((size, size), Image.Resampling.BOX) for _, each in made]
    images = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2).contiguous()
    found = invert(images)
    result = {
        "images": len(made),
        "flagged": int((~found.trusted).sum()),
        "least_score": round(float(found.scores.min()), 3),
        "not_flagged": [name for (name, _), trusted in zip(made, found.trusted.tolist(), strict=True) if trusted],
    }
    return result, Shown([name for name, _ in made], images, found)


def quality(predicted: Tensor, exact: Tensor, labeled: LabeledGenerator) -> Result:
    """How well masks [N, H, W] agree with exact ones."""
    schema = labeled.schema
    confusion = ConfusionMatrix(count_pairs(exact, predicted, schema.num_classes, schema.ignore_index))
    return {
        "mean_iou": round(confusion.mean_iou, 4),
        "pixel_accuracy": round(confusion.pixel_accuracy, 4),
        "iou": {name: round(value, 4) for name, value in zip(schema.classes, confusion.iou.tolist(), strict=True)},
    }


def renders(labeled: LabeledGenerator, invert: Invert, images: Tensor, exact: Tensor) -> tuple[Result, Inversion]:
    """Photos of the domain that the generator has not seen, with exact masks."""
    found = invert(images)
    decibels, predicted = psnr(found.images, images), masks_of(labeled.labeler, found, labeled.recipe)
    trusted = found.trusted
    result = {
        "images": len(images),
        "flagged": int((~trusted).sum()),
        "score_median": round(float(found.scores.median()), 3),
        "psnr_median": round(float(decibels.median()), 2),
        "error_median": round(float(found.errors.median()), 3),
        "labels_of_trusted": quality(predicted[trusted], exact[trusted], labeled),
        "labels_of_all": quality(predicted, exact, labeled),
    }
    return result, found


def learned_from(labeled: LabeledGenerator, invert: Invert, train: Labeled, found: Inversion, exact: Tensor) -> Result:
    """An interpreter fitted to sixteen photos with exact masks, tested on the inversions of others."""
    interpreter, facts = taught(labeled, train, invert(train.images))
    labeler = InterpretedLabeler(labeled.generator, interpreter, [labeled.schema])
    predicted, trusted = masks_of(labeler, found, labeled.recipe), found.trusted
    return {**facts, "labels_of_trusted": quality(predicted[trusted], exact[trusted], labeled)}


def failures(report: Result) -> list[str]:
    """What does not hold."""
    checks = {
        f"golden PSNR below {LEAST_PSNR} dB": report["golden"]["psnr_median"] >= LEAST_PSNR,
        f"golden agreement below {LEAST_AGREEMENT}": report["golden"]["label_agreement_mean"] >= LEAST_AGREEMENT,
        "foreign images not flagged": report["foreign"]["flagged"] >= LEAST_FLAGGED * report["foreign"]["images"],
        "renders flagged": report["renders"]["flagged"] <= MOST_FLAGGED * report["renders"]["images"],
    }
    return [name for name, holds in checks.items() if not holds]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument("--domain", type=Path, required=True, help="renders with exact masks: train-*.tar, test-*.tar")
    parser.add_argument("--renders", type=int, default=200, help="test renders to label (default: 200)")
    parser.add_argument("--steps", type=int, default=InversionSettings().steps, help="of the inversion")
    parser.add_argument("--compare-by", default="pixels")
    parser.add_argument("--work", type=Path, help="folder that keeps finished inversions: the same command resumes")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--picture", type=Path, help="PNG file to write: eight renders and four other images")
    args = parser.parse_args()
    labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu", reject_fraction=0.0)
    settings = InversionSettings(steps=args.steps, compare_by=args.compare_by)
    inverter = Inverter(labeled.generator, labeled.recipe, settings)

    def invert(images: Tensor) -> Inversion:
        names = [f"{row:03d}" for row in range(len(images))]
        return invert_photos(inverter, as_photos(names, images), work=args.work)

    size = labeled.generator.img_resolution
    test, train = (
        read_renders(sorted(args.domain.glob(pattern))[:1], labeled.schema, size)[:count]
        for pattern, count in ((TEST, args.renders), (TRAIN, TAUGHT))
    )
    report: Result = {
        "benchmark": "photos",
        "checkpoint": "demo-faces",
        "version": __version__,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "settings": {"steps": settings.steps, "starts": settings.starts, "compare_by": settings.compare_by},
    }
    with torch.no_grad():
        progress("golden")
        report["golden"] = golden(labeled, invert)
        progress("foreign")
        report["foreign"], others = foreign(invert, size)
        progress("sixteen photos, and renders")
        invert(train.images)
        report["renders"], found = renders(labeled, invert, test.images, test.masks.long())
    report["interpreter_of_photos"] = learned_from(labeled, invert, train, found, test.masks.long())
    print(report)
    if wrong := failures(report):
        print(f"does not hold: {', '.join(wrong)}", file=sys.stderr)
        return 1
    if args.out is not None:
        write_report(args.out, report)
    if args.picture is not None:
        names = [f"render {row}" for row in range(len(test.images))]
        some = [row for row, name in enumerate(others.names) if name in ("ball-0", "clouds-0", "car-0", "plate-1")]
        save_png(picture(Shown(names, test.images, found).rows(range(8)), others.rows(some)), args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
