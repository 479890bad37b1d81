"""`dsgan convert`: a generator of any known kind -> a checkpoint directory of the project."""

from __future__ import annotations

import argparse
from pathlib import Path

from dsgan_datasets.files import exists
from dsgan_datasets.generators import load_generator, save_generator
from dsgan_datasets.generators.dialects import read_average, read_centers
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.labelers.joint import MASK_CHANNEL, joint_labeler
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.tools import options
from dsgan_datasets.tools.info import info_rows


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(
        verbs,
        "convert",
        "turn a generator of another project into the project's own files, running nothing from it",
        "dsgan convert network-snapshot-025000.pkl my-generator\n"
        "  dsgan convert stylegan2-cat-config-f.pkl cats      # a TensorFlow pickle\n"
        "  dsgan convert ffhq.for_g_all.pt ffhq --avg-latent avg_latent_stylegan1.npy --license CC-BY-NC-SA-4.0\n"
        "  dsgan convert rgb-and-mask.pkl lesions --classes background,lesion --label-channel",
    )
    parser.add_argument(
        "source", help="generator file of another project (.pkl, .pt, .pth), or checkpoint directory (its generator)"
    )
    parser.add_argument("out", type=Path, help="checkpoint directory to write")
    parser.add_argument(
        "--avg-latent",
        type=Path,
        metavar="NPY",
        help="average w, [w_dim] or equal rows (default: the file's own; of StyleGAN1 <stem>_avg_latent.npy beside it; "
        "otherwise it is computed)",
    )
    parser.add_argument(
        "--centroids",
        type=Path,
        metavar="NPY",
        help="centers of w [K, w_dim] in place of one average: truncation pulls to the nearest (StyleGAN-XL)",
    )
    parser.add_argument(
        "--bgr",
        action="store_true",
        help="the file's colors are blue, green, red, as of networks that mmgeneration trained itself (default: RGB)",
    )
    parser.add_argument(
        "--label-channel",
        action="store_true",
        help="the fourth image channel is a binary mask (above 0 is class 1), not transparency: write a labeled "
        "checkpoint, which needs no fit",
    )
    parser.add_argument(
        "--classes",
        metavar="NAME,…",
        help="names of the classes of a generator that makes masks, by id (default: class_0,class_1,…)",
    )
    parser.add_argument("--license", help="license note of the weights, kept in config.json (default: unspecified)")
    options.add_overwrite(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Load, save, print what was found."""
    options.check_out(args)
    if exists(args.out / "interpreter.safetensors"):
        raise ValueError(
            f"{args.out} is a labeled checkpoint, whose interpreter would be left behind: choose another name"
        )
    average = None if args.avg_latent is None else read_average(args.avg_latent)
    centers = None if args.centroids is None else read_centers(args.centroids)
    classes = None if args.classes is None else [name.strip() for name in args.classes.split(",")]
    generator = load_generator(args.source, device="cpu", avg_latent=average, centroids=centers, bgr=args.bgr)
    notes = {}
    if args.label_channel or classes is not None or generator.extra_are_logits:
        labeler = joint_labeler(generator, classes, MASK_CHANNEL if args.label_channel else None)
        LabeledGenerator(labeler, Recipe(), license=args.license or None).save_pretrained(args.out)
    else:
        save_generator(generator, args.out, license=args.license)
        if generator.extra_channels:
            notes["note"] = (
                "channel 4 is dropped; if it is a mask, convert with --label-channel --classes background,NAME"
            )
    options.print_rows({**info_rows(args.out), **notes, "written to": str(args.out.resolve())})
