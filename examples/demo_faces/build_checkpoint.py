"""Builds `dsgan_datasets/pretrained/demo-faces`: sixteen annotated samples -> interpreter -> calibrated checkpoint.

    python examples/demo_faces/train_annotator.py --data DOMAIN --out annotator.safetensors
    python examples/demo_faces/build_checkpoint.py --generator DOMAIN/start --annotator annotator.safetensors \\
        --out dsgan_datasets/pretrained/demo-faces

DOMAIN is a folder of face renders with exact part masks. The annotator is a segmentation network trained on these
masks; it stands in for a person who annotates sixteen images of the generator.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from annotator import CLASSES, Annotator, load_annotator
from torch import Tensor
from training_state import read_tensors

from dsgan_datasets import Annotated, LabeledGenerator, LabelSchema, Recipe, calibrate, fit_interpreter
from dsgan_datasets.annotations.selection import diverse, pooled_features
from dsgan_datasets.evaluation import evaluate
from dsgan_datasets.generators.loading import build_generator, parse_config
from dsgan_datasets.generators.stylegan2 import StyleGAN2
from dsgan_datasets.labeled_generator import synthesize
from dsgan_datasets.latents import Purpose, sample_latents

PALETTE = (
    (0, 0, 0), (229, 180, 150), (190, 120, 90), (255, 220, 60), (230, 60, 60), (90, 50, 20),
    (40, 110, 255), (220, 40, 140), (90, 0, 0), (120, 200, 60), (20, 140, 120), (130, 90, 220),
)  # fmt: skip
RECIPE = Recipe(psi=0.7)
ANNOTATED = 16
CANDIDATES = 256
HELD_OUT_START = 10_000


def load_trained_generator(folder: Path) -> StyleGAN2:
    """The averaged generator of a training folder: config.json and generator_ema.safetensors."""
    trained = json.loads((folder / "config.json").read_text())
    fields = {
        "architecture": "stylegan2",
        "block": trained["architecture"].removeprefix("stylegan2-"),
        **{k: trained[k] for k in ("z_dim", "w_dim", "mapping_layers", "img_resolution", "channels", "conv_clamp")},
        "mapping_lr_multiplier": trained["mapping_lr_multiplier"],
    }
    tensors = read_tensors(folder, "generator_ema")
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("resample_filter")}
    generator = build_generator(parse_config(fields, folder), tensors, device="cpu", path=folder)
    assert isinstance(generator, StyleGAN2)
    check_against_training(generator, folder)
    return generator


def check_against_training(generator: StyleGAN2, folder: Path) -> None:
    """The training code left images of known latents: they must come out again."""
    check = np.load(folder / "check.npz")
    with torch.no_grad():
        image, _ = generator.synthesis(generator.mapping(torch.from_numpy(check["z"])))
    expected = torch.from_numpy(check["image_const"])
    error = ((image - expected).abs().max() / expected.abs().max()).item()
    if error > 1e-4:
        raise SystemExit(f"the generator does not reproduce {folder / 'check.npz'}: relative error {error:.1e}")


def diverse_indices(generator: StyleGAN2, count: int, candidates: int) -> list[int]:
    """Indices of samples unlike each other: sixteen random faces of this domain rarely hold a beard, and a person would
    not annotate sixteen look-alikes either.
    """
    latents = sample_latents(range(candidates), generator.z_dim, seed=0, purpose=Purpose.ANNOTATION)
    pooled = [pooled_features(synthesize(generator, RECIPE, block)[1]) for block in latents.split(32)]
    return diverse(torch.cat(pooled), count)


def annotate(generator: StyleGAN2, annotator: Annotator, indices: Sequence[int]) -> Annotated:
    """Let the stand-in annotate the images of some indices."""
    latents = sample_latents(indices, generator.z_dim, seed=0, purpose=Purpose.ANNOTATION)
    images, _ = synthesize(generator, RECIPE, latents)
    return Annotated(latents, annotator.annotate(images))


def held_out_iou(labeled: LabeledGenerator, truth: Annotated) -> Tensor:
    """IoU of each class, pixels of all images pooled; NaN for a class that occurs in neither."""
    return evaluate(labeled.generator, labeled.interpreter, truth, recipe=labeled.recipe).iou


def write_card(labeled: LabeledGenerator, iou: Tensor, held_out: int, images_seen: int) -> str:
    """The model card."""
    calibration = labeled.calibration
    assert calibration is not None
    rows = "\n".join(
        f"| {i} | {name} | {color} | {value:.2f} |"
        for i, (name, color, value) in enumerate(zip(CLASSES, PALETTE, iou.tolist(), strict=True))
    )
    return f"""# demo-faces

Rendered faces at 64×64 with twelve part classes, for the built-in demo. First version: the generator is a start, not a
finished model ({images_seen:,} training images seen). Heads, hair, skin and neck are clear; eyes and mouths are still
forming, and so are their labels.

- **Generator**: StyleGAN2, trained on 10,240 renders of MakeHuman / MPFB2 and Face Units assets (both CC0).
- **Annotations**: {ANNOTATED} samples of the generator, the most unlike each other of {CANDIDATES}, annotated by a
  segmentation network that was trained on the exact masks of the renders. It stands in for a person with an annotation
  tool.
- **Interpreter**: {labeled.interpreter.num_members} pixel classifiers (128/32 hidden units) on
  {labeled.interpreter.in_channels} features. Truncation psi {RECIPE.psi}.
- **Filter**: the most uncertain {calibration.reject_fraction:.0%} are dropped: score above {calibration.threshold:.4f}
  ± {calibration.standard_error:.4f} nats ({calibration.num_samples} draws).
- **Licence**: CC0-1.0 (weights and images).
- **Made by** `examples/demo_faces/`.

IoU against the same stand-in on {held_out} samples that were not annotated (agreement with that network, not with the
truth; mean {iou.nanmean():.3f}):

| id | class | colour | IoU |
|---|---|---|---|
{rows}
"""


def main() -> None:
    """Fit, calibrate, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", type=Path, required=True, help="training folder with generator_ema.safetensors")
    parser.add_argument("--annotator", type=Path, required=True, help="weights written by train_annotator.py")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint directory to write")
    parser.add_argument("--held-out", type=int, default=200, help="further samples to measure on (default: 200)")
    args = parser.parse_args()
    generator = load_trained_generator(args.generator)
    annotator = load_annotator(args.annotator)
    schema = LabelSchema(CLASSES, PALETTE)
    chosen = diverse_indices(generator, ANNOTATED, CANDIDATES)
    interpreter = fit_interpreter(generator, annotate(generator, annotator, chosen), schema, recipe=RECIPE)
    labeled = calibrate(LabeledGenerator(generator, interpreter, schema, RECIPE, license="CC0-1.0"))
    truth = annotate(generator, annotator, range(HELD_OUT_START, HELD_OUT_START + args.held_out))
    iou = held_out_iou(labeled, truth)
    images_seen = json.loads((args.generator / "config.json").read_text())["images_seen"]
    labeled.save_pretrained(args.out, card=write_card(labeled, iou, args.held_out, images_seen))
    for name, value in zip(CLASSES, iou.tolist(), strict=True):
        print(f"{name:>12} {value:.3f}")
    print(f"{'mean':>12} {iou.nanmean():.3f}\n{labeled.calibration}\nwritten to {args.out}")


if __name__ == "__main__":
    main()
