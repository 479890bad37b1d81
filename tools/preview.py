"""`dsgan preview`: a contact sheet of samples."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dsgan_datasets.checkpoints import directory as checkpoint_directory
from dsgan_datasets.files import atomic_write, is_folder
from dsgan_datasets.generators import load_generator
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.latents import draw_latents
from dsgan_datasets.pictures import contact_sheet, photo, sheet
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.samples import SampleBatch
from dsgan_datasets.tools import options
from dsgan_datasets.tools.messages import counted


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(
        verbs,
        "preview",
        "write a contact sheet: image, labels and uncertainty map of some samples",
        "dsgan preview demo-faces --num-samples 12 --seed 3 --out faces.png\n"
        "  dsgan preview network-snapshot.pkl      # a generator without labels: its images",
    )
    options.add_checkpoint(parser, more="; or a generator file, whose images are shown")
    options.add_seed(parser)
    parser.add_argument(
        "--num-samples", type=options.integer(1, 1000), default=12, help="samples on the sheet (default: 12)"
    )
    parser.add_argument("--start", type=options.index, default=0, help="index of the first sample (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("preview.png"), help="picture to write (default: preview.png)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Generate, draw, write."""
    options.check_file(args.out, "--out", ".png", ".jpg", ".jpeg")
    path = checkpoint_directory.find(args.checkpoint)
    has_labels = is_folder(path) and "labeler" in checkpoint_directory.read_config(path)
    picture = _samples(args) if has_labels else _images(args, path)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.out) as file:
        picture.save(file, format="PNG" if args.out.suffix.lower() == ".png" else "JPEG")
    what = counted(args.num_samples, "sample" if has_labels else "image")
    print(f"preview of {what}: {args.out.resolve()}")
    if not has_labels:
        name = args.checkpoint
        print(
            "dsgan: note: this is a generator without labels. Annotate some of its images, then fit to them:\n"
            f"  dsgan annotate export {name} to-annotate --classes background,…\n  dsgan fit {name} to-annotate OUT",
            file=sys.stderr,
        )


def _samples(args: argparse.Namespace) -> Image.Image:
    labeled = options.load(args)
    indices = range(args.start, args.start + args.num_samples)
    extras = ("uncertainty",) if labeled.labeler.has_uncertainty else ()
    samples = labeled.stream(indices, seed=args.seed, extras=extras)
    progress = tqdm(samples, "generating", total=args.num_samples, unit="sample", delay=2, leave=False)
    batch = SampleBatch.stack(list(progress))
    psi = " … ".join(f"{number:g}" for number in dict.fromkeys(labeled.recipe.psi_range))
    title = f"{options.short(args.checkpoint)} · psi {psi} · seed {args.seed} · {labeled.fingerprint[:8]}"
    columns = labeled.recipe.group_size if labeled.recipe.group_size > 1 else 3  # a view group fills a row
    return contact_sheet(batch, labeled.targets, title=title, columns=columns)


def _images(args: argparse.Namespace, path: Path) -> Image.Image:
    """Images of a generator that has no labels yet."""
    generator = load_generator(path, device=args.device)
    psi = options.BARE_PSI if generator.mean_w is not None else 1.0
    recipe = Recipe(truncation_psi=psi).override(**args.recipe)
    indices = torch.arange(args.start, args.start + args.num_samples)
    blocks = tqdm(indices.split(recipe.compute_batch), "generating", unit="batch", delay=2, leave=False)
    images: list[Tensor] = []
    for block in blocks:
        latents = draw_latents(recipe, generator.z_dim, block, seed=args.seed, attempt=torch.zeros_like(block))
        images += synthesize(generator, recipe, latents)[0].cpu()
    captions = [f"index {index}" for index in indices.tolist()]
    title = f"{options.short(args.checkpoint)} · images without labels · seed {args.seed}"
    return sheet([[photo(image)] for image in images], captions, title, columns=6)
